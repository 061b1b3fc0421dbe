"""Percentiles of a non-negative quantity that stream."""

from jaxtyping import Float
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.norms import NormHistogram


class Tail:
    """How a non-negative quantity is spread over tokens, kept as counts in logarithmic bins: right to 1.1 %."""

    def __init__(self) -> None:
        self._histogram: NormHistogram | None = None

    def add(self, values: Float[Tensor, " n"]) -> None:
        """Add a batch; rounding below 0 counts as 0."""
        here = NormHistogram.of(values.double().clamp_min(0).unsqueeze(1))
        self._histogram = here if self._histogram is None else self._histogram + here

    def percentile(self, q: float | int) -> float:
        """The value that at least `q` percent of all do not exceed, zeros included.

        Raises:
            UndefinedMetric: nothing was added.
        """
        if self._histogram is None:
            raise UndefinedMetric("a percentile is undefined: there is no value")
        n, n_zero = int(self._histogram.counts.sum()), self._histogram.n_zero
        needed = q / 100 * (n + n_zero)
        if n == 0 or needed <= n_zero:
            return 0.0
        return self._histogram.percentile(min(100.0, 100 * (needed - n_zero) / n))
