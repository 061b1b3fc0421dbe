"""L0: how many latents a code uses, as a distribution over tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric


@dataclass(frozen=True, eq=False)
class L0:
    """Latents in use per token: `#{j : z_j != 0}`, a count; `value` is its mean over tokens.

    The whole distribution is kept as counts, because a mean hides a heavy tail: codes whose length varies may spend ten
    times their mean on a few tokens. Percentiles are by nearest rank: the smallest count that at least `q` percent of
    the tokens do not exceed, hence always a count that occurred.

    Attributes:
        counts: `counts[c]` tokens use exactly `c` latents.
    """

    counts: Int64[Tensor, " sizes"]

    @staticmethod
    def of(code: SparseCode) -> "L0":
        """Counts of one batch of codes."""
        return L0(torch.bincount(code.l0(), minlength=1).cpu())

    def __add__(self, other: "L0") -> "L0":
        size = max(len(self.counts), len(other.counts))
        pad = torch.nn.functional.pad
        return L0(pad(self.counts, (0, size - len(self.counts))) + pad(other.counts, (0, size - len(other.counts))))

    @property
    def n(self) -> int:
        """Tokens."""
        return int(self.counts.sum())

    @property
    def value(self) -> float:
        """Mean number of latents in use.

        Raises:
            UndefinedMetric: there is no token.
        """
        self._refuse_no_token()
        return int((self.counts * torch.arange(len(self.counts))).sum()) / self.n

    @property
    def median(self) -> int:
        """The 50th percentile, by nearest rank."""
        return self.percentile(50)

    def percentile(self, q: float | int) -> int:
        """The smallest count that at least `q` percent of the tokens do not exceed.

        Raises:
            ValueError: `q` is outside `[0, 100]`.
            UndefinedMetric: there is no token.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"q must be a percentage between 0 and 100, got {q}")
        self._refuse_no_token()
        reached = self.counts.cumsum(0)
        # At least one token, so that the 0th percentile is the least count that occurred.
        needed = max(q / 100 * self.n, 1)
        return int((reached >= needed).nonzero()[0])

    def _refuse_no_token(self) -> None:
        if self.n == 0:
            raise UndefinedMetric("L0 is undefined: there is no token; evaluate on a split that has rows")
