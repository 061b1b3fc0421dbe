"""In how many dimensions a feature is represented: by the spread of class means, and by what LEACE must erase."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.features.labelled import Part
from sparsight.evaluation.features.leace import Leace
from sparsight.evaluation.features.scores import Resampling
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.record import Estimate


class DimensionRecord(Record):
    """Dimensions of a representation, counted in three ways.

    Attributes:
        participation: `(sum of eigenvalues)^2 / sum of their squares` of the held-out scatter of class means: how many
            dimensions it would take at equal spread. Null where means do not differ.
        leace_rank: Dimensions that LEACE erases whose correlation with the classes is above 0 on held-out documents.
        correlations: These correlations, held out, most correlated while fitting first.
        mediated_rank: Dimensions of class means, largest first, that carry nine tenths of the effect of exchanging the
            whole activation. Null where these do not, or where no effect was measured.
    """

    participation: float | None
    leace_rank: int
    correlations: list[Estimate]
    mediated_rank: int | None


def participation_ratio(gram: Float64[Tensor, "c c"]) -> float:
    """`(sum of eigenvalues)^2 / sum of their squares`; negative ones, which are noise, count 0.

    From 1 (all on a line) to one less than the classes (equally far apart in every direction).

    Raises:
        UndefinedMetric: no eigenvalue is positive.
    """
    values = torch.linalg.eigvalsh((gram + gram.T) / 2).clamp_min(0)
    if values.max() <= 0:
        raise UndefinedMetric("class means do not differ: no dimension is used")
    return float(values.sum().square() / values.square().sum())


def heldout_correlations(
    eraser: Leace, x: Float[Tensor, "n d"], part: Part, n_classes: int, resampling: Resampling, *, most: int = 12
) -> list[Estimate]:
    """Correlation of each erased dimension with its combination of classes, on documents it was not fitted on."""
    found = []
    z = torch.nn.functional.one_hot(part.y, n_classes).double()
    read = (x.double() - eraser.mean) @ eraser.readouts.T
    said = z @ eraser.label_readouts.T
    for k in range(min(most, eraser.rank)):
        a, b = read[:, k], said[:, k]
        terms = torch.stack([torch.ones_like(a), a, b, a * a, b * b, a * b], dim=1)
        sums = DocumentSums(6)
        sums.add(part.document_ids, terms)
        found.append(resampling.of(sums.sums, _correlation))
    return found


def leading(correlations: list[Estimate]) -> int:
    """How many correlations are above 0 before the first that is not known to be."""
    for k, estimate in enumerate(correlations):
        if (estimate.low if estimate.low is not None else estimate.value) <= 0:
            return k
    return len(correlations)


def _correlation(sums: Float64[Tensor, "*draws m"]) -> Float64[Tensor, "*draws"]:
    n, a, b, aa, bb, ab = sums.unbind(dim=-1)
    variances = (aa / n - (a / n).square()) * (bb / n - (b / n).square())
    # A draw without variance has no correlation to show: 0.
    return torch.where(variances > 0, (ab / n - a * b / n.square()) / variances.clamp_min(1e-300).sqrt(), 0.0)
