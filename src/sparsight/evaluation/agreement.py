"""Correlations of predictions with measurements, for many resamples of the documents at once."""

from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.record import Estimate

# Numbers in one block of weights: bounds the memory at 16 MB.
BLOCK = 2_000_000


class Resamples:
    """Draws of whole documents with replacement: every pair weighs as often as its document was drawn.

    Unlike sums (`bootstrap`), rank correlations need the pairs themselves. All statistics of one object see the same
    draws, so that differences are paired.

    Args:
        documents: Document of each pair.
        n_resamples: Draws.
        level: Nominal coverage, between 0 and 1.
        seed: Of the draws.
    Raises:
        ValueError: `level` or `n_resamples` is out of range.
        UndefinedMetric: there are fewer than two documents.
    """

    def __init__(self, documents: Int64[Tensor, " p"], *, n_resamples: int, level: float, seed: int) -> None:
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, such as 0.95, got {level}")
        if n_resamples < 2:
            raise ValueError(f"n_resamples must be at least 2, got {n_resamples}; 1000 is usual")
        distinct, self.place = torch.unique(documents, return_inverse=True)
        self.n_documents = len(distinct)
        if self.n_documents < 2:
            raise UndefinedMetric(
                f"an interval over documents needs at least two documents, got {self.n_documents}; sample more tokens"
            )
        drawn = torch.randint(
            self.n_documents, (n_resamples, self.n_documents), generator=torch.Generator().manual_seed(seed)
        )
        one = torch.ones((), dtype=torch.float64)
        self.times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, one.expand(drawn.shape))
        self.level = level

    def estimate(self, statistic: Callable[[Tensor], Tensor]) -> Estimate:
        """A statistic of weights `[r, p]` with values `[r]`, on all pairs once and on every resample.

        Raises:
            UndefinedMetric: it does not exist on some draw.
        """
        rows = max(1, BLOCK // len(self.place))
        value = float(statistic(torch.ones(1, len(self.place), dtype=torch.float64)))
        values = torch.cat([statistic(times[:, self.place]) for times in torch.split(self.times, rows)])
        if not bool(torch.isfinite(values).all() & torch.isfinite(torch.tensor(value))):
            raise UndefinedMetric(
                f"no interval: predictions or effects do not vary on some draws of {self.n_documents} documents; "
                "sample more tokens"
            )
        tail = (1 - self.level) / 2
        low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return Estimate(value=value, low=low, high=high, standard_error=float(values.std()))


def pearson(
    x: Float64[Tensor, "*r p"], y: Float64[Tensor, "*r p"], weights: Float64[Tensor, "r p"]
) -> Float64[Tensor, " r"]:
    """Weighted correlation, in `[-1, 1]`; not finite where `x` or `y` does not vary."""
    xx, xy, yy = _moments(x, y, weights)
    return xy / (xx * yy).sqrt()


def slope(
    x: Float64[Tensor, "*r p"], y: Float64[Tensor, "*r p"], weights: Float64[Tensor, "r p"]
) -> Float64[Tensor, " r"]:
    """Weighted least-squares slope of `y` on `x`, with an intercept, in units of `y` over those of `x`."""
    xx, xy, _ = _moments(x, y, weights)
    return xy / xx


def spearman(
    x: Float64[Tensor, " p"], y: Float64[Tensor, " p"], weights: Float64[Tensor, "r p"]
) -> Float64[Tensor, " r"]:
    """Weighted rank correlation: of midranks, a pair of weight 2 counting as two pairs."""
    return pearson(midranks(x, weights), midranks(y, weights), weights)


def midranks(x: Float64[Tensor, " p"], weights: Float64[Tensor, "r p"]) -> Float64[Tensor, "r p"]:
    """Ranks from 1 where each entry stands `weights` times; equal entries share the mean of their ranks."""
    values, place = torch.unique(x, return_inverse=True)
    mass = weights.new_zeros(len(weights), len(values)).index_add_(1, place, weights)
    return (mass.cumsum(dim=1) - mass / 2 + 0.5)[:, place]


def _moments(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = weights.sum(dim=1, keepdim=True)
    x = x - (weights * x).sum(dim=1, keepdim=True) / total
    y = y - (weights * y).sum(dim=1, keepdim=True) / total
    xx, xy, yy = ((weights * a * b).sum(dim=1) for a, b in ((x, x), (x, y), (y, y)))
    return xx, xy, yy
