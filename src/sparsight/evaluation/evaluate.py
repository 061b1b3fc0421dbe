"""All measurements of one dictionary, in two passes over stored activations that keep nothing but sums."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import kept_search
from sparsight.dictionaries import AbstractDictionary, TranscoderDictionary
from sparsight.errors import UndefinedMetric
from sparsight.evaluation import sums as terms
from sparsight.evaluation.approximate import Approximate, ApproximateCode, ApproximateCoder, spread_rows
from sparsight.evaluation.arms import Setting, make_arm
from sparsight.evaluation.fvu import Fvu
from sparsight.evaluation.reading import Predicts, StoredActivations, check_model, reported, row_blocks
from sparsight.evaluation.record import (
    DensityRecord,
    DictionaryRecord,
    Estimate,
    Evaluation,
    L0Record,
    LossRecord,
    estimate,
)
from sparsight.evaluation.shrinkage import Shrinkage
from sparsight.evaluation.shrinkage_panel import SAMPLE_TOKENS, PanelSums, ranges
from sparsight.evaluation.shrinkage_panel_record import ShrinkagePanel
from sparsight.evaluation.sides import Reading, SiteSums, reading_of
from sparsight.evaluation.splice import FromSite, Replacement, ablations, measure_losses
from sparsight.evaluation.sums import Sums
from sparsight.models import Site

Code = Callable[[Tensor], SparseCode]
Estimator = Callable[..., Estimate]


def evaluate(
    dictionary: AbstractDictionary,
    store: StoredActivations | Sequence[StoredActivations],
    *,
    model: Predicts | None = None,
    coder: str | None = None,
    k: int | None = None,
    search: Approximate | None = None,
    split: str = "heldout",
    site: Site | str | None = None,
    n_tokens: int | None = None,
    loss_tokens: int | None = 65_536,
    shrinkage_tokens: int = 0,
    batch_size: int = 4096,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Measure a dictionary: sparsity, reconstruction, density, shrinkage, and the loss it adds to the model.

    Two passes over the rows: the first for their mean and median norm, the second for everything else. Memory does not
    grow with the number of rows (14 sums are kept for each document).

    A transcoder is measured by what it makes of its input against the output of the module, and its loss is that of the
    model with the transcoder in the module's place. A crosscoder is measured on all its sites together, each in the
    units of its training so that all weigh alike, and its FVU also at each.

    Args:
        dictionary: Takes raw activations, as `train` and `load_dictionary` give it.
        store: Activations with their documents; for a crosscoder of several models one store for each site.
        model: The model they came from, for the loss. A model without a next-token loss is noted, not refused.
        coder: None for the dictionary's own code; else the name of an arm of `compare_coders`, with `k`.
        k: Latents per token, with `coder`.
        search: None for the exact search of a pursuit; an approximate one is recorded, with its cost on a sample.
        split: "heldout", "train", or "all".
        site: Where, if not at the dictionary's own site.
        n_tokens: Measure on about this many tokens, spread evenly; all when None.
        loss_tokens: The same for the loss.
        shrinkage_tokens: The same for the panel that says where shrinkage is and of which kind. 0 leaves it out: it
            refits every code, at several times the cost of coding.
        batch_size: Rows coded at once.
        n_resamples: Draws of the bootstrap over documents.
        level: Nominal coverage of the intervals.
        seed: Of the bootstrap.
        force: Measure though the dictionary was made for another site or model.
        progress: Show a bar on stderr.
    Returns:
        Every number with its convention; `.to_json()`, `.to_table()`.
    Raises:
        ValueError: widths differ, or an argument is out of range.
        DataError: the store lacks the site or the split, or the dictionary was made for another site or model.
        UndefinedMetric: the activations do not vary.
    """
    began = time.perf_counter()
    reading = reading_of(dictionary, store, split, site, force=force)
    part, chosen = reading.part, reading.site
    if shrinkage_tokens and reading.columns:
        raise ValueError("a shrinkage panel is of one site, got a crosscoder; leave shrinkage_tokens at 0")
    code = coder_of(dictionary, coder, k, len(part), search)
    if model is not None:
        check_model(model, part, force=force)
    blocks = row_blocks(len(part), batch_size, n_tokens)
    device = dictionary.atoms.device
    with reported("measuring", 2 * sum(b.stop - b.start for b in blocks), shown=progress) as advance:
        offset = reading.weigh(dictionary.b_dec.detach())
        sums = Sums(reading.frame(blocks, device, advance), dictionary.n_latents, offset)
        by_site = SiteSums(reading.columns, sums.frame)
        for block in blocks:
            x, y = reading.rows(block, device)
            z = code(x)
            with torch.no_grad():
                y_hat = reading.weigh(dictionary.reconstruct(x, z))
            ids = part.tokens(block).document_ids
            sums.add(y, y_hat, z, ids)
            by_site.add(y, y_hat, ids)
            advance(block.stop - block.start)
    searched = None
    if isinstance(code, ApproximateCode) and search is not None:
        searched = code.record(spread_rows(lambda block: reading.rows(block, device)[0], len(part), search.checked))
    panel = None
    if shrinkage_tokens:
        panel = shrinkage_panel(dictionary, reading, code, row_blocks(len(part), batch_size, shrinkage_tokens), device)
    estimator = partial(estimate, n_resamples=n_resamples, level=level, seed=seed)
    loss, no_loss_because = None, "no model was given"
    if model is not None and not model.has_causal_loss:
        no_loss_because = f"{model.name} ({model.family}) has no causal loss"
    elif model is not None and len(reading.columns) > 1:
        no_loss_because = "a crosscoder reads several sites at once, so it replaces none of them"
    elif model is not None:
        coded = reconstruction(dictionary, code)
        spliced = coded if reading.reads is None else FromSite(reading.reads, coded)
        try:
            loss = measure_loss(model, part, chosen, spliced, sums.frame.mean, estimator, loss_tokens, progress)
        except UndefinedMetric as error:
            no_loss_because = str(error)
    return Evaluation(
        sparsight_version=_version(),
        dictionary=describe(dictionary),
        site=str(chosen),
        model=reading.model,
        split=split,
        coder=coder or "encoder",
        k=k,
        search=searched,
        level=level,
        n_resamples=n_resamples,
        seed=seed,
        shrinkage_panel=panel,
        loss=loss,
        no_loss_because=None if loss else no_loss_because,
        by_site=by_site.records(reading.places, estimator),
        seconds=time.perf_counter() - began,
        **_measured(sums, estimator),
    )


def coder_of(
    dictionary: AbstractDictionary,
    coder: str | None,
    k: int | None,
    n_rows: int = 0,
    search: Approximate | None = None,
) -> Code:
    """The dictionary's own rule, or an arm at `k` latents per token, from activations to codes.

    A pursuit over many rows (`n_rows` in all) keeps one table of inner products for all batches. With an approximate
    search the result is an `ApproximateCode`.

    Raises:
        ValueError: one of `coder` and `k` came without the other, one is out of range, or nothing is searched.
    """
    if coder is None:
        if k is not None:
            raise ValueError(f"k={k} needs a coder to use it; pass coder='gradient_pursuit', or leave k out")
        if search is not None:
            raise ValueError("the dictionary's own rule searches no atoms; pass coder='gradient_pursuit' and k")
        return torch.no_grad()(dictionary.encode)
    if isinstance(dictionary, TranscoderDictionary):
        raise ValueError(f"coder={coder!r} codes what atoms write, but a transcoder codes what it reads; leave it out")
    if k is None:
        raise ValueError(f"coder={coder!r} needs k, the latents per token; 16 to 64 are usual")
    if not 1 <= k <= dictionary.n_latents:
        raise ValueError(f"k must be between 1 and n_latents={dictionary.n_latents}, got k={k}")

    def refuse() -> Tensor:
        raise ValueError(f"coder={coder!r} must be fitted on training rows; use compare_coders")

    setting = Setting(dictionary, False, k, refuse, partial(kept_search, dictionary.atoms.detach(), n_rows, k))
    if search is not None:
        return ApproximateCode(ApproximateCoder(coder, setting, search), k)
    arm = make_arm(coder, setting)
    return lambda x: arm(x, torch.full((len(x),), k, device=x.device))


@torch.no_grad()
def shrinkage_panel(
    dictionary: AbstractDictionary, reading: Reading, code: Code, blocks: list[slice], device: torch.device
) -> ShrinkagePanel:
    """The panel over some rows: its ranges from rows spread over them, then its sums from all."""

    def coded(block: slice) -> tuple[Tensor, SparseCode]:
        x, y = reading.rows(block, device)
        z = code(x)
        return y - (dictionary.reconstruct(x, z) - z.decode(dictionary.atoms)), z

    few = blocks[:: max(1, sum(b.stop - b.start for b in blocks) // SAMPLE_TOKENS)]
    targets, codes = zip(*(coded(block) for block in few), strict=True)
    sums = PanelSums(dictionary.atoms, *ranges(torch.cat(targets), SparseCode.cat(codes)))
    for block in blocks:
        sums.add(*coded(block), reading.part.tokens(block).positions)
    return sums.panel


def reconstruction(dictionary: AbstractDictionary, code: Code) -> Callable[[Tensor], Tensor]:
    """From activations on any device to reconstructions on the same."""

    def reconstruct(x: Tensor) -> Tensor:
        with torch.no_grad():
            taken = x.to(dictionary.atoms)
            return dictionary.reconstruct(taken, code(taken)).to(x)

    return reconstruct


def measure_loss(
    model: Predicts,
    part: StoredActivations,
    site: Site,
    reconstruct: Replacement | FromSite,
    mean: Tensor,
    estimator: Estimator,
    loss_tokens: int | None,
    progress: bool,
) -> LossRecord:
    """Losses with the reconstruction spliced in and with the site ablated, over the contexts of a store.

    Raises:
        UndefinedMetric: no stored token is predicted from another.
    """
    replacements: dict[str, Replacement | FromSite] = {"spliced": reconstruct, **ablations(mean)}
    documents, columns = measure_losses(model, part, site, replacements, limit=loss_tokens, progress=progress)
    totals = documents.sums.sum(dim=0)
    n, clean = totals[0].item(), columns["clean"]

    def added(name: str) -> Callable[[Tensor], Tensor]:
        return lambda s: (s[..., columns[name]] - s[..., clean]) / s[..., 0]

    def fraction(name: str) -> Estimate | None:
        if added(name)(totals).item() <= 0:
            return None
        return estimator(documents, lambda s: added("spliced")(s) / added(name)(s))

    return LossRecord(
        n_tokens=int(n),
        n_documents=len(documents),
        clean=totals[clean].item() / n,
        added=estimator(documents, added("spliced")),
        added_by_zero=estimator(documents, added("zero")),
        added_by_mean=estimator(documents, added("mean")),
        fraction_of_zero=fraction("zero"),
        fraction_of_mean=fraction("mean"),
        kl=estimator(documents, lambda s: s[..., columns["spliced"] + 1] / s[..., 0]),
    )


def describe(dictionary: AbstractDictionary) -> DictionaryRecord:
    """Which dictionary this is, for a record."""
    return DictionaryRecord(
        architecture=getattr(dictionary.config, "architecture", type(dictionary).__name__),
        n_latents=dictionary.n_latents,
        d_in=dictionary.d_in,
        site=None if dictionary.site is None else str(dictionary.site),
        model=dictionary.model,
    )


def ratio(numerator: int, denominator: int) -> Callable[[Tensor], Tensor]:
    """A ratio of two summed terms."""
    return lambda s: s[..., numerator] / s[..., denominator]


def _measured(sums: Sums, estimator: Estimator) -> dict[str, Any]:
    """Everything that follows from the sums, by the names of the record."""
    frame, totals, documents = sums.frame, sums.totals, sums.documents
    # Refuses activations that do not vary, before any ratio is formed.
    fvu = Fvu(frame.n, frame.mean, totals[terms.CENTRED].item(), totals[terms.RESIDUAL].item()).value
    estimates = {
        "fvu": estimator(documents, ratio(terms.RESIDUAL, terms.CENTRED)),
        "fvu_uncentred": estimator(documents, ratio(terms.RESIDUAL, terms.ENERGY)),
        "fvu_token_mean": None if totals[terms.AT_MEAN] > 0 else estimator(documents, ratio(terms.RATIO, terms.TOKENS)),
        "cosine": estimator(documents, ratio(terms.COSINE, terms.DIRECTED)),
        "cosine_centred": estimator(documents, ratio(terms.COSINE_C, terms.DIRECTED_C)),
    }
    n_outliers = frame.n - int(totals[terms.INNER])
    without = _fvu_without_outliers(sums, estimator) if n_outliers else estimates["fvu"]
    shrinkage, centred = _shrinkage(sums)
    notes = _notes(sums, fvu, n_outliers, without, shrinkage, centred)
    l0, density = sums.l0, sums.density
    histogram = density.histogram()
    return {
        **estimates,
        "n_tokens": frame.n,
        "n_documents": len(documents),
        "l0": L0Record(
            mean=estimator(documents, ratio(terms.LATENTS, terms.TOKENS)),
            median=l0.median,
            p5=l0.percentile(5),
            p95=l0.percentile(95),
            p99=l0.percentile(99),
        ),
        "n_outliers": n_outliers,
        "fvu_without_outliers": without,
        "density": DensityRecord(
            n_tokens=density.n,
            dead_fraction=density.dead_fraction,
            dead_bound=density.dead_bound,
            dense_fraction=density.dense_fraction(),
            histogram_edges=histogram.edges.tolist(),
            histogram_counts=histogram.counts.tolist(),
        ),
        "shrinkage": shrinkage,
        "shrinkage_centred": centred,
        "notes": notes,
    }


def _fvu_without_outliers(sums: Sums, estimator: Estimator) -> Estimate | None:
    """FVU about the mean of the tokens that are not outliers; None where those do not vary."""
    # sum |x - m'|^2 = sum |x - m|^2 - n |m' - m|^2, for the mean m' of those tokens.
    shift_sq = sums.inner_shift_sq

    def variance(s: Tensor) -> Tensor:
        return s[..., terms.CENTRED_IN] - s[..., terms.INNER] * shift_sq

    if variance(sums.totals).item() <= 1e-12 * sums.totals[terms.CENTRED_IN].item():
        return None
    return estimator(sums.documents, lambda s: s[..., terms.RESIDUAL_IN] / variance(s))


def _shrinkage(sums: Sums) -> tuple[Shrinkage | None, Shrinkage | None]:
    """The family about the origin and about `b_dec`; None where it does not exist."""
    found: list[Shrinkage | None] = []
    for centre in (torch.zeros_like(sums.frame.mean), sums.offset.double()):
        try:
            found.append(sums.shrinkage.about(centre))
        except UndefinedMetric:
            found.append(None)
    return found[0], found[1]


def _notes(
    sums: Sums,
    fvu: float,
    n_outliers: int,
    without: Estimate | None,
    shrinkage: Shrinkage | None,
    centred: Shrinkage | None,
) -> list[str]:
    """What a reader should know before quoting a number."""
    notes = []
    n, totals = sums.frame.n, sums.totals
    if len(sums.documents) < 2:
        notes.append("one document only: no interval is possible")
    if n_outliers and (without is None or abs(without.value - fvu) > 0.05 * fvu):
        share = 1 - totals[terms.CENTRED_IN].item() / totals[terms.CENTRED].item()
        alone = "undefined" if without is None else f"{without.value:.4g}"
        notes.append(
            f"{n_outliers} of {n} tokens have more than 10 times the median norm and carry {share:.0%} of the "
            f"variance: FVU is {fvu:.4g} with them, {alone} without"
        )
    if totals[terms.AT_MEAN] > 0:
        notes.append(f"{int(totals[terms.AT_MEAN])} tokens equal the mean: no token-mean FVU")
    if shrinkage is None:
        notes.append(
            "no shrinkage about the origin: reconstructions are all zero, or do not correlate with activations"
        )
    if centred is None:
        notes.append(
            "no shrinkage about b_dec: reconstructions are all at b_dec (every latent silent), or do not correlate "
            "with activations"
        )
    return notes


def _version() -> str:
    from importlib.metadata import version

    return version("sparsight")
