"""From the sums of an evaluation to its numbers."""

from typing import Any

import torch
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation import sums as terms
from sparsight.evaluation.core_records import DenseLatent
from sparsight.evaluation.fvu import Fvu
from sparsight.evaluation.record import DensityRecord, Estimate, L0Record
from sparsight.evaluation.record_values import Drawn, ratio
from sparsight.evaluation.shrinkage import Shrinkage
from sparsight.evaluation.sums import Sums


def summary(sums: Sums, drawn: Drawn) -> dict[str, Any]:
    """Everything that follows from the sums, by the names of the record."""
    frame, totals = sums.frame, sums.totals
    # Refuses activations that do not vary, before any ratio is formed.
    fvu = Fvu(frame.n, frame.mean, totals[terms.CENTRED].item(), totals[terms.RESIDUAL].item()).value
    estimates = _estimates(totals, drawn)
    n_outliers = frame.n - int(totals[terms.INNER])
    without = _fvu_without_outliers(sums, drawn) if n_outliers else estimates["fvu"]
    shrinkage, centred = _shrinkage(sums)
    notes = _notes(sums, fvu, n_outliers, without, shrinkage, centred)
    l0 = sums.l0
    return {
        **estimates,
        "n_tokens": frame.n,
        "n_documents": sums.documents.n_documents,
        "l0": L0Record(
            mean=drawn.estimate(ratio(terms.LATENTS, terms.TOKENS)),
            median=l0.median,
            p5=l0.percentile(5),
            p95=l0.percentile(95),
            p99=l0.percentile(99),
        ),
        "n_outliers": n_outliers,
        "fvu_without_outliers": without,
        "density": _density(sums),
        "shrinkage": shrinkage,
        "shrinkage_centred": centred,
        "notes": notes,
    }


def _estimates(totals: Tensor, drawn: Drawn) -> dict[str, Estimate | None]:
    fvu = ratio(terms.RESIDUAL, terms.CENTRED)
    return {
        "fvu": drawn.estimate(fvu),
        "explained_variance": drawn.estimate(lambda s: 1 - fvu(s)),
        "mse": drawn.estimate(ratio(terms.RESIDUAL, terms.TOKENS)),
        "l1": drawn.estimate(ratio(terms.MAGNITUDE, terms.TOKENS)),
        "norm_ratio": drawn.estimate(ratio(terms.NORM_RATIO, terms.DIRECTED)) if totals[terms.DIRECTED] > 0 else None,
        "fvu_uncentred": drawn.estimate(ratio(terms.RESIDUAL, terms.ENERGY)),
        "fvu_token_mean": None if totals[terms.AT_MEAN] > 0 else drawn.estimate(ratio(terms.RATIO, terms.TOKENS)),
        "cosine": drawn.estimate(ratio(terms.COSINE, terms.DIRECTED)),
        "cosine_centred": drawn.estimate(ratio(terms.COSINE_C, terms.DIRECTED_C)),
    }


def _density(sums: Sums) -> DensityRecord:
    density = sums.density
    histogram = density.histogram()
    return DensityRecord(
        n_tokens=density.n,
        dead_fraction=density.dead_fraction,
        dead_bound=density.dead_bound,
        dense_fraction=density.dense_fraction(),
        over_1_percent=density.dense_fraction(0.01),
        uses_over_1_percent=density.uses_of(0.01),
        uses_dense=density.uses_of(),
        densest=tuple(DenseLatent(latent=j, density=p) for j, p in density.densest()),
        histogram_edges=histogram.edges.tolist(),
        histogram_counts=histogram.counts.tolist(),
    )


def _fvu_without_outliers(sums: Sums, drawn: Drawn) -> Estimate | None:
    """FVU about the mean of the tokens that are not outliers; None where those do not vary."""
    # sum |x - m'|^2 = sum |x - m|^2 - n |m' - m|^2, for the mean m' of those tokens.
    shift_sq = sums.inner_shift_sq

    def variance(s: Tensor) -> Tensor:
        return s[..., terms.CENTRED_IN] - s[..., terms.INNER] * shift_sq

    if variance(sums.totals).item() <= 1e-12 * sums.totals[terms.CENTRED_IN].item():
        return None
    return drawn.estimate(lambda s: s[..., terms.RESIDUAL_IN] / variance(s))


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
    if sums.documents.n_documents < 2:
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
