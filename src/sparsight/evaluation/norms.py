"""Which tokens have norms out of all proportion: attention sinks and their like."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric

OUTLIER = 10.0  # times the median norm
_PER_OCTAVE, _OCTAVES = 64, 160  # bins 1.1 % wide, from 2^-80 to 2^80


@dataclass(frozen=True, eq=False)
class NormHistogram:
    """Tokens by the logarithm of their norm: a median that streams, right to 1.1 %.

    Attributes:
        counts: Tokens in each bin of `1 / 64` octave.
        n_zero: Tokens of norm 0.
    """

    counts: Int64[Tensor, " bins"]
    n_zero: int

    @staticmethod
    def of(x: Float[Tensor, "n d_in"]) -> "NormHistogram":
        """Counts of one batch."""
        norms = torch.linalg.vector_norm(x.double(), dim=1)
        there = norms[norms > 0]
        bins = ((there.log2() + _OCTAVES / 2) * _PER_OCTAVE).floor().long().clamp(0, _OCTAVES * _PER_OCTAVE - 1)
        return NormHistogram(torch.bincount(bins, minlength=_OCTAVES * _PER_OCTAVE).cpu(), len(norms) - len(there))

    def __add__(self, other: "NormHistogram") -> "NormHistogram":
        return NormHistogram(self.counts + other.counts, self.n_zero + other.n_zero)

    @property
    def median(self) -> float:
        """Median norm over tokens of norm above 0; see `percentile`."""
        return self.percentile(50)

    def percentile(self, q: float | int) -> float:
        """The norm that at least `q` percent of the tokens of norm above 0 do not exceed.

        It is the upper edge of the bin of the nearest rank, so never below the truth and at most 1.1 % above it.

        Raises:
            ValueError: `q` is outside `[0, 100]`.
            UndefinedMetric: every activation is zero.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"q must be a percentage between 0 and 100, got {q}")
        n = int(self.counts.sum())
        if n == 0:
            raise UndefinedMetric(f"the median norm is undefined: all {self.n_zero} activations are zero")
        place = int((self.counts.cumsum(0) >= max(q / 100 * n, 1)).nonzero()[0])
        return float(2.0 ** ((place + 1) / _PER_OCTAVE - _OCTAVES / 2))
