"""Coders of one dictionary side by side at equal L0: does pursuit choose better latents, or only better values?"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import kept_search
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.approximate import Approximate, ApproximateCoder, spread_rows
from sparsight.evaluation.arms import ARMS, DEFAULT_ARMS, SEARCHING, Coder, Setting, canonical, has_encoder, make_arm
from sparsight.evaluation.comparison.diagnosis import Diagnosis, Sampler
from sparsight.evaluation.comparison.record import Comparison, Difference, Level
from sparsight.evaluation.comparison.runner import CENTRED, RESIDUAL, Batch, Runner, budgets, run_arms
from sparsight.evaluation.comparison.source import Source, source_of
from sparsight.evaluation.evaluate import describe, ratio, reconstruction
from sparsight.evaluation.fvu import Fvu
from sparsight.evaluation.reading import Predicts, StoredActivations, batches, reported, row_blocks
from sparsight.evaluation.record import Estimate
from sparsight.evaluation.record_values import Resampling
from sparsight.evaluation.splice import measure_losses
from sparsight.evaluation.sums import Frame, frame_of
from sparsight.models import Site

# Pairs whose difference answers a question: (first, second).
QUESTIONS = (
    ("pursuit", "refit"),
    ("polished", "refit"),
    ("orthogonal_matching_pursuit", "refit"),
    ("refit", "encoder"),
    ("pursuit", "encoder"),
)

ORACLE = "oracle"
"""The arm that is told the planted latents."""


def compare_coders(
    dictionary: AbstractDictionary,
    store: StoredActivations | Float[Tensor, "n d_in"],
    ks: Sequence[Level],
    arms: Sequence[str] | None = None,
    *,
    model: Predicts | None = None,
    truth: SparseCode | None = None,
    true_atoms: Float[Tensor, "n_true d_in"] | None = None,
    train: Float[Tensor, "m d_in"] | None = None,
    search: Approximate | None = None,
    split: str = "heldout",
    site: Site | str | None = None,
    n_tokens: int | None = 32_768,
    loss_tokens: int | None = 8_192,
    fit_tokens: int = 16_384,
    diagnostic_tokens: int = 512,
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
        store: Activations with their documents; or a plain tensor of them, rows independent, all of them judged.
        ks: Latents per token, or `"own"`.
        arms: Names from `sparsight.evaluation.arms.ARMS`; encoder, topk, refit and pursuit when None.
        model: The model the activations came from, for the loss.
        truth: With a tensor: the planted code of its rows. Adds the arm "oracle", recall and precision.
        true_atoms: The atoms `truth` is over, if they are not the dictionary's; matched to those one to one.
        train: With a tensor: activations on which what an arm must fit is fitted. A store has its training documents.
        search: None for the exact search of the pursuits; an approximate one is recorded, with its cost on a sample.
        split: "heldout", "train", or "all"; what an arm must fit is always fitted on training documents.
        site: Where, if not at the dictionary's own site.
        n_tokens: Code about this many tokens, spread evenly; all when None.
        loss_tokens: The same for the loss.
        fit_tokens: Training tokens for the arms that fit something.
        diagnostic_tokens: The same for the diagnostics that look at single codes closely; 0 for no diagnostics.
        batch_size: Rows coded at once.
        n_resamples: Draws of the bootstrap over documents.
        level: Nominal coverage of the intervals.
        seed: Of the bootstrap, and of the random atoms that overlaps are held against.
        force: Measure though the dictionary was made for another site or model.
        progress: Show a bar on stderr.
    Returns:
        FVU, L0, support overlap, loss added, diagnostics and time of every arm, and paired differences.
    Raises:
        ValueError: no `k`, one out of range, an unknown arm, an arm without what it needs, or a dictionary of several
            sites.
        DataError: the store lacks the site or the split, or the dictionary was made for another site or model.
        UndefinedMetric: the activations do not vary.
    """
    names = _checked(dictionary, ks, arms, truth, search)
    source = source_of(
        dictionary,
        store,
        truth=truth,
        true_atoms=true_atoms,
        train=train,
        split=split,
        site=site,
        model=model,
        fit_tokens=fit_tokens,
        force=force,
    )
    blocks = row_blocks(len(source.part), batch_size, n_tokens)
    intervals = Resampling(n_resamples, level, seed)
    frame, own_l0, runners = _coded(dictionary, source, names, ks, blocks, diagnostic_tokens, seed, search, progress)
    added, no_loss_because = _losses_added(dictionary, runners, model, source, intervals, loss_tokens, progress)
    return Comparison(
        dictionary=describe(dictionary),
        site=source.site_name,
        model=source.model_name,
        split=source.split,
        n_tokens=frame.n,
        n_documents=runners[0].documents.n_documents,
        own_l0=own_l0,
        level=level,
        n_resamples=n_resamples,
        seed=seed,
        arms=[runner.record(intervals.estimate, loss) for runner, loss in zip(runners, added, strict=True)],
        differences=_differences(runners, intervals),
        no_loss_because=no_loss_because,
        notes=_notes(runners),
    )


def _checked(
    dictionary: AbstractDictionary,
    ks: Sequence[Level],
    arms: Sequence[str] | None,
    truth: SparseCode | None,
    search: Approximate | None,
) -> list[str]:
    """Names of the arms, the encoder first: the others are compared with it; the oracle last, if there is a truth."""
    if dictionary.places:
        raise ValueError(
            f"{type(dictionary).__name__} is of several sites: it does not code what its atoms write, so "
            "that no other coder has its task; compare a dictionary of one site, or measure this one with evaluate"
        )
    if len(ks) == 0:
        raise ValueError("ks must name at least one number of latents per token, got none; 8, 16, 32 are usual")
    for k in ks:
        if k != "own" and not 1 <= k <= dictionary.n_latents:
            raise ValueError(f"k must be between 1 and n_latents={dictionary.n_latents}, got k={k}")
    if arms is None:
        arms = DEFAULT_ARMS if has_encoder(dictionary) else ("encoder", "pursuit")
    if len(arms) == 0:
        raise ValueError(f"arms must name at least one coder, got none; choose from {', '.join(ARMS)}")
    if ORACLE in arms and truth is None:
        raise ValueError("the oracle needs the planted code: pass a tensor of activations and truth=")
    names = list(dict.fromkeys(canonical(name) for name in arms if name != ORACLE))
    if search is not None and not set(names) & set(SEARCHING):
        raise ValueError(f"an approximate search is for {', '.join(SEARCHING)}; none of them is among the arms")
    return sorted(names, key=lambda name: name != "encoder") + ([] if truth is None else [ORACLE])


def _coded(
    dictionary: AbstractDictionary,
    source: Source,
    names: Sequence[str],
    ks: Sequence[Level],
    blocks: list[slice],
    diagnostic_tokens: int,
    seed: int,
    search: Approximate | None,
    progress: bool,
) -> tuple[Frame, float, list[Runner]]:
    """All arms on all blocks: what the activations are, the dictionary's own mean L0, and what the arms gave."""
    part, site, device = source.part, source.site, dictionary.atoms.device
    n = sum(block.stop - block.start for block in blocks)
    sampler = Sampler(dictionary, n, diagnostic_tokens) if diagnostic_tokens > 0 else None
    with reported("comparing", 3 * n, shown=progress) as advance:
        frame = frame_of(part, site, blocks, device, advance)
        own_l0 = _own_l0(dictionary, batches(part, site, blocks, device, advance)) / n
        runners = _runners(dictionary, source, names, ks, own_l0, n, seed if sampler else None, search)
        for block, x in batches(part, site, blocks, device, advance):
            ids = part.tokens(block).document_ids
            centred_sq = (x.double() - frame.mean).square().sum(dim=1)
            planted = None if source.planted is None else source.planted[block]
            sample = None if sampler is None else sampler.sample(x, ids)
            run_arms(dictionary, runners, Batch(x, ids, centred_sq, planted, sample))
    if search is not None:
        _tell_searches(
            dictionary, runners, spread_rows(lambda b: part.rows(site, b).to(device), len(part), search.checked)
        )
    totals = runners[0].documents.sums.sum(dim=0)
    # Refuses activations that do not vary.
    _ = Fvu(frame.n, frame.mean, totals[CENTRED].item(), totals[RESIDUAL].item()).value
    return frame, own_l0, runners


def _own_l0(dictionary: AbstractDictionary, activations: Iterable[tuple[slice, Tensor]]) -> int:
    """Latents the dictionary's own code uses, over all tokens."""
    with torch.no_grad():
        return sum(int(dictionary.encode(x).l0().sum()) for _, x in activations)


def _runners(
    dictionary: AbstractDictionary,
    source: Source,
    names: Sequence[str],
    ks: Sequence[Level],
    own_l0: float,
    n: int,
    seed: int | None,
    approximate: Approximate | None,
) -> list[Runner]:
    """Every arm at every sparsity, fitted where it must be; with diagnostics if there is a seed for them."""
    steps = sum(k if isinstance(k, int) else round(own_l0) for k in ks)
    search = cache(partial(kept_search, dictionary.atoms.detach(), n, steps))
    runners = []
    for k in ks:
        own = k == "own" or k == round(own_l0)
        setting = Setting(dictionary, own, k if isinstance(k, int) and not own else own_l0, source.train_rows, search)
        for name in names:
            coder: Coder | None = None if name == ORACLE else make_arm(name, setting)
            if approximate is not None and name in SEARCHING:
                coder = ApproximateCoder(name, setting, approximate)
            diagnosis = None if seed is None else Diagnosis(dictionary, name, seed)
            runners.append(Runner(name, k, coder, own, diagnosis))
    return runners


def _tell_searches(dictionary: AbstractDictionary, runners: Sequence[Runner], x: Float[Tensor, "n d_in"]) -> None:
    """Have every arm with an approximate search say what it did, before the contexts are coded too."""
    for runner in runners:
        if isinstance(runner.coder, ApproximateCoder):
            runner.searched = runner.coder.record(x, budgets(dictionary, x, runner))


def _losses_added(
    dictionary: AbstractDictionary,
    runners: Sequence[Runner],
    model: Predicts | None,
    source: Source,
    intervals: Resampling,
    limit: int | None,
    progress: bool,
) -> tuple[list[Estimate | None], str | None]:
    """Next-token loss that each arm adds, in one pass over the contexts; or why there is none."""
    nothing: list[Estimate | None] = [None] * len(runners)
    if model is None:
        return nothing, "no model was given"
    if not model.has_causal_loss:
        return nothing, f"{model.name} ({model.family}) has no causal loss"

    def splice(runner: Runner, coder: Coder) -> Callable[[Tensor], Tensor]:
        return reconstruction(dictionary, lambda x: coder(x, budgets(dictionary, x, runner)))

    # The oracle has no coder and is never here: contexts have no planted truth.
    replacements = {f"{r.arm} {r.k}": splice(r, r.coder) for r in runners if r.coder is not None}
    try:
        documents, columns = measure_losses(
            model, source.part, source.site, replacements, limit=limit, progress=progress
        )
    except UndefinedMetric as error:
        return nothing, str(error)
    return [intervals.estimate(documents, _added(columns[name], columns["clean"])) for name in replacements], None


def _added(column: int, clean: int) -> Callable[[Tensor], Tensor]:
    return lambda s: (s[..., column] - s[..., clean]) / s[..., 0]


def _differences(runners: Sequence[Runner], intervals: Resampling) -> list[Difference]:
    """The paired differences that answer a question, wherever both arms are there."""
    by_name = {(runner.arm, runner.k): runner.documents.sums for runner in runners}
    fvu = ratio(RESIDUAL, CENTRED)
    return [
        Difference(
            first=first, second=second, k=k, fvu=intervals.difference(by_name[first, k], by_name[second, k], fvu)
        )
        for k in dict.fromkeys(runner.k for runner in runners)
        for first, second in QUESTIONS
        if (first, k) in by_name and (second, k) in by_name
    ]


def _notes(runners: Sequence[Runner]) -> list[str]:
    """Where "equal L0" is not quite so."""
    notes = []
    if runners[0].documents.n_documents < 2:
        notes.append("one document only: no interval is possible")
    for k in dict.fromkeys(runner.k for runner in runners):
        l0 = {runner.arm: runner.l0 for runner in runners if runner.k == k and runner.arm != ORACLE}
        low, high = min(l0, key=lambda name: l0[name]), max(l0, key=lambda name: l0[name])
        if l0[high] > 1.01 * l0[low]:
            notes.append(f"at k={k}, mean L0 runs from {l0[low]:.4g} ({low}) to {l0[high]:.4g} ({high})")
    return notes
