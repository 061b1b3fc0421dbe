"""A number with its interval, and how the interval is drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.bootstrap import DocumentSums, Interval, Resamples, Statistic
from sparsight.evaluation.frozen_record import Record


class Estimate(Record):
    """A value, with its interval over documents where there is one (there is none for a single document).

    Attributes:
        value: Of all tokens.
        low: Lower end of the interval.
        high: Upper end.
        standard_error: Standard deviation over resamples of the documents.
    """

    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None

    def __str__(self) -> str:
        ends = "" if self.low is None else f"  [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{ends}"


def of_interval(interval: Interval) -> Estimate:
    """The estimate an interval stands for."""
    return Estimate(value=interval.value, low=interval.low, high=interval.high, standard_error=interval.standard_error)


def ratio(numerator: int, denominator: int) -> Callable[[Tensor], Tensor]:
    """A ratio of two summed terms."""
    return lambda s: s[..., numerator] / s[..., denominator]


class Drawn:
    """Sums of some documents, with the resamples that all their statistics share.

    Attributes:
        sums: One row for each document.
        total: The terms summed over all of them.
    """

    def __init__(self, sums: DocumentSums | Tensor, resamples: "Resampling") -> None:
        self.sums = sums.sums if isinstance(sums, DocumentSums) else sums
        self.total = self.sums.sum(dim=0)
        self._resamples = resamples.of(self.sums)

    def estimate(self, statistic: Statistic) -> Estimate:
        """A statistic of all documents, with an interval wherever one exists."""
        if self._resamples is not None:
            try:
                return of_interval(self._resamples.interval(statistic))
            except UndefinedMetric:
                pass
        return Estimate(value=float(statistic(self.total)))

    def minus(self, other: "Drawn", statistic: Statistic) -> Estimate:
        """The statistic of these documents less that of others, which are drawn independently."""
        if self._resamples is not None and other._resamples is not None:
            try:
                return of_interval(self._resamples.minus(other._resamples, statistic))
            except UndefinedMetric:
                pass
        return Estimate(value=float(statistic(self.total)) - float(statistic(other.total)))


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn: percentile bootstrap over documents.

    Attributes:
        n_resamples: Draws.
        level: Nominal coverage.
        seed: Of the draws; two sets of sums over the same documents are drawn alike.
    """

    n_resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def of(self, sums: Tensor) -> Resamples | None:
        """The resamples of some documents; None for a single one.

        Raises:
            ValueError: `level` or `n_resamples` is out of range.
        """
        try:
            return Resamples.of(sums, n_resamples=self.n_resamples, level=self.level, seed=self.seed)
        except UndefinedMetric:
            return None

    def over(self, sums: DocumentSums | Tensor, *, apart: bool = False) -> Drawn:
        """Draw from documents; `apart`, independently of all other documents that are drawn with this seed."""
        how = Resampling(self.n_resamples, self.level, self.seed + 7919) if apart else self
        return Drawn(sums, how)

    def estimate(self, sums: DocumentSums | Tensor, statistic: Statistic) -> Estimate:
        """A statistic with its interval, where one exists."""
        return self.over(sums).estimate(statistic)

    def difference(self, first: Tensor, second: Tensor, statistic: Statistic) -> Estimate:
        """A statistic of the first sums less that of the second, the same documents drawn for both."""
        m = first.shape[1]
        return self.estimate(torch.cat([first, second], dim=1), lambda s: statistic(s[..., :m]) - statistic(s[..., m:]))


def estimate(
    sums: DocumentSums | Tensor, statistic: Statistic, *, n_resamples: int, level: float, seed: int
) -> Estimate:
    """A statistic of all documents, with an interval wherever one exists."""
    return Resampling(n_resamples, level, seed).estimate(sums, statistic)


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of some estimates; ends and errors are averaged alike, as if all erred together: never too narrow."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(estimates) else None

    return Estimate(
        value=sum(e.value for e in estimates) / len(estimates),
        low=mean([e.low for e in estimates]),
        high=mean([e.high for e in estimates]),
        standard_error=mean([e.standard_error for e in estimates]),
    )
