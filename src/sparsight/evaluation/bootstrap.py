"""Percentile bootstrap over documents: intervals for anything that is a function of sums."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric

Statistic = Callable[[Tensor], Tensor]
"""From sums `[..., m]` to values `[...]`: `lambda s: s[..., 0] / s[..., 1]` is a ratio of sums."""


@dataclass(frozen=True)
class Interval:
    """A value with what resampling whole documents does to it.

    Attributes:
        value: The statistic of all documents.
        low: Lower end: the `(1 - level) / 2` quantile over resamples.
        high: Upper end: the `(1 + level) / 2` quantile over resamples.
        standard_error: Standard deviation over resamples.
        level: Nominal coverage, such as 0.95.
        n_documents: Documents resampled.
    """

    value: float
    low: float
    high: float
    standard_error: float
    level: float
    n_documents: int


class DocumentSums:
    """Sums of per-token terms for each document, filled batch by batch.

    Tokens of one document are not independent, so that an interval over tokens would be too narrow: documents are what
    is resampled. Memory grows with the number of documents (`8 m` bytes each), not with tokens.
    """

    def __init__(self, n_terms: int) -> None:
        self._sums = torch.zeros(0, n_terms, dtype=torch.float64)
        self._place: dict[int, int] = {}

    def add(self, document_ids: Int64[Tensor, " n"], terms: Float64[Tensor, "n m"]) -> None:
        """Add the terms of `n` tokens to the sums of the documents they come from."""
        ids, where = torch.unique(document_ids.cpu(), return_inverse=True)
        places = torch.tensor([self._place.setdefault(i, len(self._place)) for i in ids.tolist()], dtype=torch.int64)
        missing = len(self._place) - len(self._sums)
        if missing > 0:
            # Grow by doubling: documents arrive one batch at a time.
            room = self._sums.new_zeros(max(missing, len(self._sums)), self._sums.shape[1])
            self._sums = torch.cat([self._sums, room])
        self._sums.index_add_(0, places[where], terms.detach().cpu())

    def __len__(self) -> int:
        return len(self._place)

    @property
    def sums(self) -> Float64[Tensor, "n_documents m"]:
        """One row for each document, in the order in which they were first seen."""
        return self._sums[: len(self._place)]


def bootstrap(
    sums: Float64[Tensor, "n_documents m"],
    statistic: Statistic,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic of summed terms, by drawing documents with replacement.

    Each resample draws as many documents as there are, adds up their rows of `sums` and applies `statistic`; the ends
    of the interval are quantiles over resamples. Two calls with one seed and one number of documents draw the same.

    Args:
        sums: Terms summed within each document.
        statistic: From sums `[..., m]` to values `[...]`.
        n_resamples: Draws. 1000 place the ends of a 95 % interval within about a tenth of its width.
        level: Nominal coverage, between 0 and 1.
        seed: Of the draws.
    Returns:
        The statistic of all documents with its interval.
    Raises:
        ValueError: `level` or `n_resamples` is out of range.
        UndefinedMetric: there are fewer than two documents, or the statistic does not exist on some resample.
    Source:
        Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, got {level}")
    if n_resamples < 2:
        raise ValueError(f"n_resamples must be at least 2, got {n_resamples}; 1000 is usual")
    n = len(sums)
    if n < 2:
        raise UndefinedMetric(f"an interval over documents needs at least two documents, got {n}")
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(n_resamples, dtype=torch.float64)
    step = max(1, 2_000_000 // n)  # resamples at once: bounds the memory at 16 MB of draws
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        drawn = torch.randint(n, (rows, n), generator=generator)
        times = torch.zeros(rows, n, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(rows, n, dtype=torch.float64)
        )
        values[start : start + rows] = statistic(times @ sums)
    value = statistic(sums.sum(dim=0)).item()
    if not (torch.isfinite(values).all() and torch.isfinite(torch.tensor(value))):
        raise UndefinedMetric(
            f"no interval: the statistic does not exist on some of {n_resamples} draws of {n} documents"
        )
    tail = (1 - level) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(value, low, high, values.std().item(), level, n)


def paired_difference(
    first: Float64[Tensor, "n_documents m"],
    second: Float64[Tensor, "n_documents m"],
    statistic: Statistic,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of `statistic(first) - statistic(second)`, the same documents drawn for both.

    What two coders find hard is hard for both: drawn together, the difference is known far better than either.

    Args:
        first: Terms of one way of coding, summed within each document.
        second: Those of the other, the same documents in the same order.
        statistic: From sums `[..., m]` to values `[...]`.
        n_resamples: Draws.
        level: Nominal coverage.
        seed: Of the draws.
    Raises:
        ValueError, UndefinedMetric: as `bootstrap`.
    """
    m = first.shape[1]
    return bootstrap(
        torch.cat([first, second], dim=1),
        lambda sums: statistic(sums[..., :m]) - statistic(sums[..., m:]),
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )
