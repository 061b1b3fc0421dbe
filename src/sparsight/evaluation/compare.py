"""Coders of one dictionary side by side at equal L0: does pursuit choose better latents, or only better values?"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import kept_search
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.arms import ARMS, DEFAULT_ARMS, Coder, Setting, canonical, has_encoder, make_arm
from sparsight.evaluation.bootstrap import DocumentSums, paired_difference
from sparsight.evaluation.evaluate import describe, ratio, reconstruction
from sparsight.evaluation.fvu import Fvu
from sparsight.evaluation.pairs import float64_pair
from sparsight.evaluation.reading import (
    Predicts,
    StoredActivations,
    batches,
    check_model,
    part_of,
    reported,
    row_blocks,
    site_for,
)
from sparsight.evaluation.record import (
    CONVENTIONS,
    TOKEN_POLICY,
    DictionaryRecord,
    Estimate,
    Record,
    estimate,
    of_interval,
)
from sparsight.evaluation.splice import measure_losses
from sparsight.evaluation.sums import frame_of
from sparsight.models import Site

if TYPE_CHECKING:
    import plotly.graph_objects

Level = int | Literal["own"]
"""A number of latents per token, or as many in each token as the dictionary's own code uses there."""

# Pairs whose difference answers a question: (first, second).
QUESTIONS = (("pursuit", "refit"), ("refit", "encoder"), ("pursuit", "encoder"))

TOKENS, LATENTS, RESIDUAL, CENTRED, JACCARD = range(5)

COMPARISON_CONVENTIONS = {
    "encoder": "the dictionary's own code where its mean L0 rounds to k; else the k largest pre-activations",
    "topk": "the k largest positive pre-activations of each token, with their own values",
    "refit": "the latents of the encoder arm, values by non-negative least squares",
    "thresholded": "positive pre-activations above one threshold, set on training documents for a mean L0 of k",
    "scaled": "the encoder arm's code times one factor, fitted on training documents",
    "joint_scaled": "the encoder arm's code times one factor for each latent, fitted jointly on training documents",
    "pursuit": "non-negative gradient pursuit, k steps",
    "matching_pursuit": "non-negative matching pursuit, k steps",
    "orthogonal_matching_pursuit": "non-negative orthogonal matching pursuit, k steps",
    "lasso": "support of the non-negative lasso at one penalty, set on training documents for a mean L0 of k; values "
    "by non-negative least squares",
    "own_l0": "where k is the mean L0 of the dictionary's own code, each token keeps the L0 of that code in every arm "
    "(thresholded and lasso match the mean instead)",
    "l0": CONVENTIONS["l0"] + "; may fall below k where fewer latents are positive or the residual vanishes",
    "fvu": CONVENTIONS["fvu"],
    "jaccard": "latents in both this arm's code and the encoder arm's over latents in either; mean over tokens",
    "loss_added": "next-token loss with the reconstruction spliced in, minus the clean loss, nats per token",
    "seconds": "time to code n_tokens",
    "interval": CONVENTIONS["interval"] + "; differences draw the same documents for both",
}


class ArmRecord(Record):
    """One coder at one sparsity.

    Attributes:
        arm: Name of the coder.
        k: Sparsity asked for.
        l0: Mean L0 it realised.
        fvu: Fraction of variance unexplained.
        jaccard: Overlap of its support with the encoder arm's; None when that arm is absent.
        loss_added: Next-token loss added, in nats per token; None without a causal model.
        seconds: Time to code the tokens.
        own_l0: Whether each token kept the L0 of the dictionary's own code.
    """

    arm: str
    k: Level
    l0: float
    fvu: Estimate
    jaccard: float | None
    loss_added: Estimate | None
    seconds: float
    own_l0: bool


class Difference(Record):
    """FVU of one arm minus that of another, the same documents drawn for both: below 0, the first is better."""

    first: str
    second: str
    k: Level
    fvu: Estimate


class Comparison(Record):
    """Coders of one dictionary on one part of a store."""

    schema_version: Literal[1] = 1
    dictionary: DictionaryRecord
    site: str
    model: str
    split: str
    n_tokens: int
    n_documents: int
    own_l0: float
    token_policy: str = TOKEN_POLICY
    conventions: dict[str, str] = COMPARISON_CONVENTIONS
    level: float
    n_resamples: int
    seed: int
    arms: list[ArmRecord]
    differences: list[Difference]
    no_loss_because: str | None
    notes: list[str]

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """A table for people."""
        from sparsight.evaluation.tables import comparison_table

        return comparison_table(self)

    def to_figure(self) -> "plotly.graph_objects.Figure":
        """FVU against realised L0, one line for each arm, with intervals."""
        from sparsight.evaluation.tables import comparison_figure

        return comparison_figure(self)


class Runner:
    """One arm at one sparsity, and what it has cost and given so far.

    Attributes:
        arm: Name of the coder.
        k: Sparsity asked for.
        coder: From activations and budgets to codes.
        own: Whether each token keeps the L0 of the dictionary's own code.
        documents: Terms summed within each document.
        seconds: Time spent coding.
        compared: Whether supports were compared with the encoder's.
    """

    def __init__(self, arm: str, k: Level, coder: Coder, own: bool) -> None:
        self.arm, self.k, self.coder, self.own = arm, k, coder, own
        self.documents = DocumentSums(5)
        self.seconds = 0.0
        self.compared = False

    @property
    def l0(self) -> float:
        """Mean L0 realised."""
        totals = self.documents.sums.sum(dim=0)
        return (totals[LATENTS] / totals[TOKENS]).item()

    def record(self, estimator: Callable[..., Estimate], loss_added: Estimate | None) -> ArmRecord:
        """The row of the comparison."""
        totals = self.documents.sums.sum(dim=0)
        return ArmRecord(
            arm=self.arm,
            k=self.k,
            l0=self.l0,
            fvu=estimator(self.documents, ratio(RESIDUAL, CENTRED)),
            jaccard=(totals[JACCARD] / totals[TOKENS]).item() if self.compared else None,
            loss_added=loss_added,
            seconds=self.seconds,
            own_l0=self.own,
        )


def compare_coders(
    dictionary: AbstractDictionary,
    store: StoredActivations,
    ks: Sequence[Level],
    arms: Sequence[str] | None = None,
    *,
    model: Predicts | None = None,
    split: str = "heldout",
    site: Site | str | None = None,
    n_tokens: int | None = 32_768,
    loss_tokens: int | None = 8_192,
    fit_tokens: int = 16_384,
    batch_size: int = 2048,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> Comparison:
    """Code the same held-out activations in several ways with the same atoms, at equal L0.

    Where `k` is the mean L0 of the dictionary's own code (rounded), "encoder" is that code as trained, and every other
    arm gets its L0 as a budget, token by token: an encoder whose L0 varies (JumpReLU) is then compared at exactly equal
    L0. At any other `k`, every arm writes at most `k` latents in each token, and "encoder" falls back on the `k`
    largest pre-activations. `"own"` asks for the first of the two whatever the mean is. The L0 realised is reported.

    Args:
        dictionary: Atoms for all arms, and the encoder of some.
        store: Activations with their documents.
        ks: Latents per token, or `"own"`.
        arms: Names from `sparsight.evaluation.arms.ARMS`; encoder, topk, refit and pursuit when None.
        model: The model the activations came from, for the loss.
        split: "heldout", "train", or "all"; what an arm must fit is always fitted on training documents.
        site: Where, if not at the dictionary's own site.
        n_tokens: Code about this many tokens, spread evenly; all when None.
        loss_tokens: The same for the loss.
        fit_tokens: Training tokens for the arms that fit something.
        batch_size: Rows coded at once.
        n_resamples: Draws of the bootstrap over documents.
        level: Nominal coverage of the intervals.
        seed: Of the bootstrap.
        force: Measure though the dictionary was made for another site or model.
        progress: Show a bar on stderr.
    Returns:
        FVU, L0, support overlap, loss added and time of every arm, and paired differences.
    Raises:
        ValueError: no `k`, one out of range, or an unknown arm.
        DataError: the store lacks the site or the split, or the dictionary was made for another site or model.
        UndefinedMetric: the activations do not vary.
    """
    part = part_of(store, split)
    chosen = site_for(dictionary, part, site, force=force)
    names = _checked(dictionary, ks, arms)
    if model is not None:
        check_model(model, store, force=force)
    blocks = row_blocks(len(part), batch_size, n_tokens)
    device = dictionary.atoms.device
    n = sum(block.stop - block.start for block in blocks)
    with reported("comparing", 3 * n, shown=progress) as advance:
        frame = frame_of(part, chosen, blocks, device, advance)
        own_l0 = _own_l0(dictionary, batches(part, chosen, blocks, device, advance)) / n
        training = cache(partial(_training_rows, store, chosen, fit_tokens, device))
        steps = sum(k if isinstance(k, int) else round(own_l0) for k in ks)
        search = cache(partial(kept_search, dictionary.atoms.detach(), n, steps))
        runners = [
            Runner(
                name,
                k,
                make_arm(
                    name, Setting(dictionary, own, k if isinstance(k, int) and not own else own_l0, training, search)
                ),
                own,
            )
            for k in ks
            for name in names
            for own in [k == "own" or k == round(own_l0)]
        ]
        for block, x in batches(part, chosen, blocks, device, advance):
            run_arms(dictionary, runners, x, part.tokens(block).document_ids, frame.mean)
    estimator = partial(estimate, n_resamples=n_resamples, level=level, seed=seed)
    added, no_loss_because = _losses_added(dictionary, runners, model, part, chosen, estimator, loss_tokens, progress)
    first = runners[0].documents.sums.sum(dim=0)
    # Refuses activations that do not vary.
    _ = Fvu(frame.n, frame.mean, first[CENTRED].item(), first[RESIDUAL].item()).value
    return Comparison(
        dictionary=describe(dictionary),
        site=str(chosen),
        model=store.model,
        split=split,
        n_tokens=frame.n,
        n_documents=len(runners[0].documents),
        own_l0=own_l0,
        level=level,
        n_resamples=n_resamples,
        seed=seed,
        arms=[runner.record(estimator, loss) for runner, loss in zip(runners, added, strict=True)],
        differences=_differences(runners, n_resamples=n_resamples, level=level, seed=seed),
        no_loss_because=no_loss_because,
        notes=_notes(runners),
    )


def _checked(dictionary: AbstractDictionary, ks: Sequence[Level], arms: Sequence[str] | None) -> list[str]:
    """Names of the arms, the encoder first: the others are compared with it."""
    if len(ks) == 0:
        raise ValueError("ks must name at least one number of latents per token, got none; 8, 16, 32 are usual")
    for k in ks:
        if k != "own" and not 1 <= k <= dictionary.n_latents:
            raise ValueError(f"k must be between 1 and n_latents={dictionary.n_latents}, got k={k}")
    if arms is None:
        arms = DEFAULT_ARMS if has_encoder(dictionary) else ("encoder", "pursuit")
    if len(arms) == 0:
        raise ValueError(f"arms must name at least one coder, got none; choose from {', '.join(ARMS)}")
    names = list(dict.fromkeys(canonical(name) for name in arms))
    return sorted(names, key=lambda name: name != "encoder")


def _own_l0(dictionary: AbstractDictionary, activations: Iterable[tuple[slice, Tensor]]) -> int:
    """Latents the dictionary's own code uses, over all tokens."""
    with torch.no_grad():
        return sum(int(dictionary.encode(x).l0().sum()) for _, x in activations)


def _training_rows(store: StoredActivations, site: Site, limit: int, device: torch.device) -> Tensor:
    """Activations of training documents, spread evenly, about `limit` of them."""
    part = part_of(store, "train")
    blocks = row_blocks(len(part), 4096, limit)
    return torch.cat([x for _, x in batches(part, site, blocks, device)])


def budgets(dictionary: AbstractDictionary, x: Float[Tensor, "n d_in"], runner: Runner) -> Int64[Tensor, " n"]:
    """Largest L0 of each row in an arm: that of the dictionary's own code, or `k`."""
    if runner.own:
        with torch.no_grad():
            return dictionary.encode(x).l0()
    return torch.full((len(x),), int(runner.k), device=x.device)


def run_arms(
    dictionary: AbstractDictionary,
    runners: Sequence[Runner],
    x: Float[Tensor, "n d_in"],
    document_ids: Int64[Tensor, " n"],
    mean: Float64[Tensor, " d_in"],
) -> None:
    """Code one batch in every arm and add up what it costs and gives."""
    reference: dict[Level, SparseCode] = {}
    centred_sq = (x.double() - mean).square().sum(dim=1)
    for runner in runners:
        budget = budgets(dictionary, x, runner)
        began = time.perf_counter()
        code = runner.coder(x, budget)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        runner.seconds += time.perf_counter() - began
        if runner.arm == "encoder":
            reference[runner.k] = code
        with torch.no_grad():
            exact, x_hat = float64_pair(x, dictionary.decode(code))
        overlap = torch.zeros_like(centred_sq)
        if runner.k in reference:
            overlap, runner.compared = jaccard(code, reference[runner.k]), True
        residual_sq = (exact - x_hat).square().sum(dim=1)
        columns = [torch.ones_like(centred_sq), code.l0().double(), residual_sq, centred_sq, overlap]
        runner.documents.add(document_ids, torch.stack(columns, dim=1))


def jaccard(first: SparseCode, second: SparseCode) -> Float64[Tensor, " n"]:
    """Latents in both supports over latents in either, for each row; 1 where both are silent."""
    a, b = first.support(), second.support()
    rows = max(1, 2**24 // max(1, a.shape[1] * b.shape[1]))
    both = torch.cat(
        [
            ((p[:, :, None] == q[:, None, :]) & (p >= 0)[:, :, None]).sum(dim=(1, 2))
            for p, q in zip(torch.split(a, rows), torch.split(b, rows), strict=True)
        ]
    )
    either = first.l0() + second.l0() - both
    return torch.where(either > 0, both.double() / either.clamp_min(1), 1.0)


def _losses_added(
    dictionary: AbstractDictionary,
    runners: Sequence[Runner],
    model: Predicts | None,
    part: StoredActivations,
    site: Site,
    estimator: Callable[..., Estimate],
    limit: int | None,
    progress: bool,
) -> tuple[list[Estimate | None], str | None]:
    """Next-token loss that each arm adds, in one pass over the contexts; or why there is none."""
    nothing: list[Estimate | None] = [None] * len(runners)
    if model is None:
        return nothing, "no model was given"
    if not model.has_causal_loss:
        return nothing, f"{model.name} ({model.family}) has no causal loss"

    def splice(runner: Runner) -> Callable[[Tensor], Tensor]:
        return reconstruction(dictionary, lambda x: runner.coder(x, budgets(dictionary, x, runner)))

    replacements = {f"{runner.arm} {runner.k}": splice(runner) for runner in runners}
    try:
        documents, columns = measure_losses(model, part, site, replacements, limit=limit, progress=progress)
    except UndefinedMetric as error:
        return nothing, str(error)
    found: list[Estimate | None] = []
    for name in replacements:
        column = columns[name]
        found.append(estimator(documents, _added(column, columns["clean"])))
    return found, None


def _added(column: int, clean: int) -> Callable[[Tensor], Tensor]:
    return lambda s: (s[..., column] - s[..., clean]) / s[..., 0]


def _differences(runners: Sequence[Runner], *, n_resamples: int, level: float, seed: int) -> list[Difference]:
    """The paired differences that answer a question, wherever both arms are there."""
    found = []
    by_name = {(runner.arm, runner.k): runner.documents.sums for runner in runners}
    for k in dict.fromkeys(runner.k for runner in runners):
        for first, second in QUESTIONS:
            if (first, k) not in by_name or (second, k) not in by_name:
                continue
            a, b = by_name[first, k], by_name[second, k]
            fvu = ratio(RESIDUAL, CENTRED)
            try:
                difference = of_interval(paired_difference(a, b, fvu, n_resamples=n_resamples, level=level, seed=seed))
            except UndefinedMetric:
                difference = Estimate(value=(fvu(a.sum(dim=0)) - fvu(b.sum(dim=0))).item())
            found.append(Difference(first=first, second=second, k=k, fvu=difference))
    return found


def _notes(runners: Sequence[Runner]) -> list[str]:
    """Where "equal L0" is not quite so."""
    notes = []
    if len(runners[0].documents) < 2:
        notes.append("one document only: no interval is possible")
    for k in dict.fromkeys(runner.k for runner in runners):
        l0 = {runner.arm: runner.l0 for runner in runners if runner.k == k}
        low, high = min(l0, key=lambda name: l0[name]), max(l0, key=lambda name: l0[name])
        if l0[high] > 1.01 * l0[low]:
            notes.append(f"at k={k}, mean L0 runs from {l0[low]:.4g} ({low}) to {l0[high]:.4g} ({high})")
    return notes
