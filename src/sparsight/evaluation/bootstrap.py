"""Percentile bootstrap over documents: intervals for anything that is a function of sums."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric

MOST = 8192
"""Rows that a `DocumentSums` keeps at most."""

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
    is resampled. Up to `MOST` documents have a row of their own; later ones share these rows, chosen by their number,
    and are drawn together. That keeps memory flat in the number of documents, and leaves an interval what it is: the
    spread of a sum over thousands of independent groups of documents is that over the documents.

    Args:
        n_terms: Terms of a token.
        most: Rows at most.
    """

    def __init__(self, n_terms: int, most: int = MOST) -> None:
        self._sums = torch.zeros(0, n_terms, dtype=torch.float64)
        self._place: dict[int, int] = {}
        self._most = most
        self._shared = 0  # documents without a row of their own
        self._last = -1  # the document whose tokens came last

    def add(self, document_ids: Int64[Tensor, " n"], terms: Float64[Tensor, "n m"]) -> None:
        """Add the terms of `n` tokens to the sums of the documents they come from.

        Tokens of one document come one after the other, in as many calls as it takes, or documents beyond the first
        `most` are counted more than once in `n_documents` (the sums are right all the same).
        """
        if len(document_ids) == 0:
            return
        document_ids = document_ids.cpu()
        ids, where = torch.unique(document_ids, return_inverse=True)
        places = torch.tensor([self._row(i) for i in ids.tolist()], dtype=torch.int64)
        missing = len(self._place) - len(self._sums)
        if missing > 0:
            # Grow by doubling: documents arrive one batch at a time.
            room = self._sums.new_zeros(max(missing, len(self._sums)), self._sums.shape[1])
            self._sums = torch.cat([self._sums, room])
        self._sums.index_add_(0, places[where], terms.detach().cpu())
        self._last = int(document_ids[-1])

    def _row(self, document: int) -> int:
        """The row of a document: its own while there are any, else one it shares."""
        own = self._place.get(document)
        if own is not None:
            return own
        if len(self._place) < self._most:
            return self._place.setdefault(document, len(self._place))
        self._shared += document != self._last
        return document % self._most

    def __len__(self) -> int:
        """Rows: what is drawn."""
        return len(self._place)

    @property
    def n_documents(self) -> int:
        """Documents seen."""
        return len(self._place) + self._shared

    @property
    def sums(self) -> Float64[Tensor, "n_documents m"]:
        """One row for each document, in the order in which they were first seen; at most `most` rows."""
        return self._sums[: len(self._place)]

    @property
    def totals(self) -> Float64[Tensor, " m"]:
        """The terms summed over all documents."""
        return self.sums.sum(dim=0)


@dataclass(frozen=True, eq=False)
class Resamples:
    """Sums of resampled documents, drawn once for every statistic that is asked of them.

    Attributes:
        total: The terms summed over all documents.
        drawn: The same of each resample: as many documents as there are, drawn with replacement.
        level: Nominal coverage of the intervals.
        n_documents: What was drawn from.
    """

    total: Float64[Tensor, " m"]
    drawn: Float64[Tensor, "n_resamples m"]
    level: float
    n_documents: int

    @staticmethod
    def of(
        sums: Float64[Tensor, "n_documents m"], *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
    ) -> "Resamples":
        """Draw.

        Raises:
            ValueError: `level` or `n_resamples` is out of range.
            UndefinedMetric: there are fewer than two documents.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, such as 0.95, got {level}")
        if n_resamples < 2:
            raise ValueError(f"n_resamples must be at least 2, got {n_resamples}; 1000 is usual")
        n = len(sums)
        if n < 2:
            raise UndefinedMetric(f"an interval over documents needs at least two documents, got {n}")
        generator = torch.Generator().manual_seed(seed)
        drawn_sums = torch.empty(n_resamples, sums.shape[1], dtype=torch.float64)
        step = max(1, 2_000_000 // n)  # resamples at once: bounds the memory at 16 MB of draws
        for start in range(0, n_resamples, step):
            rows = min(step, n_resamples - start)
            drawn = torch.randint(n, (rows, n), generator=generator)
            times = torch.zeros(rows, n, dtype=torch.float64).scatter_add_(
                1, drawn, torch.ones(rows, n, dtype=torch.float64)
            )
            drawn_sums[start : start + rows] = times @ sums
        return Resamples(sums.sum(dim=0), drawn_sums, level, n)

    def interval(self, statistic: Statistic) -> Interval:
        """Value and interval of a statistic of summed terms.

        Raises:
            UndefinedMetric: the statistic does not exist on some resample.
        """
        value, values = statistic(self.total).item(), statistic(self.drawn)
        return _interval(value, values, self.level, self.n_documents)

    def minus(self, other: "Resamples", statistic: Statistic) -> Interval:
        """Value and interval of `statistic(these) - statistic(others)`, drawn independently: two sets of documents.

        Raises:
            UndefinedMetric: the statistic does not exist on some resample.
        """
        value = statistic(self.total).item() - statistic(other.total).item()
        values = statistic(self.drawn) - statistic(other.drawn)
        return _interval(value, values, self.level, min(self.n_documents, other.n_documents))


def _interval(value: float, values: Float64[Tensor, " n_resamples"], level: float, n: int) -> Interval:
    if not (torch.isfinite(values).all() and torch.isfinite(torch.tensor(value))):
        raise UndefinedMetric(
            f"no interval: the statistic does not exist on some of {len(values)} draws of {n} documents"
        )
    tail = (1 - level) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(value, low, high, values.std().item(), level, n)


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
    return Resamples.of(sums, n_resamples=n_resamples, level=level, seed=seed).interval(statistic)


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
