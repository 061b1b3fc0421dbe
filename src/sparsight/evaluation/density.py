"""How often each latent is in use; which are dead, which are dense."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric

DENSE = 0.1  # a latent in use on more than one token in ten is called dense


@dataclass(frozen=True, eq=False)
class Density:
    """Share of tokens on which each latent is in use: `#{t : z_tj != 0} / N`, in `[0, 1]`.

    A latent never seen is called dead *in N tokens*, and only that: one of true density `p` is missed with probability
    `(1 - p)^N`, so that `3 / N` is the upper end of a 95 % interval for the density of a latent never seen. `N` travels
    with every number here.

    Attributes:
        n: Tokens.
        counts: Tokens on which each latent is in use.
    """

    n: int
    counts: Int64[Tensor, " n_latents"]

    @staticmethod
    def of(code: SparseCode) -> "Density":
        """Counts of one batch of codes."""
        return Density(len(code), torch.bincount(code.indices[code.values != 0], minlength=code.n_latents).cpu())

    def __add__(self, other: "Density") -> "Density":
        if len(self.counts) != len(other.counts):
            raise ValueError(
                f"densities must be of one dictionary, got {len(self.counts)} and {len(other.counts)} latents"
            )
        return Density(self.n + other.n, self.counts + other.counts)

    @property
    def value(self) -> Float64[Tensor, " n_latents"]:
        """Density of each latent.

        Raises:
            UndefinedMetric: there is no token.
        """
        self._refuse_no_token()
        return self.counts.double() / self.n

    @property
    def dead(self) -> Bool[Tensor, " n_latents"]:
        """Latents never in use in the `n` tokens."""
        self._refuse_no_token()
        return self.counts == 0

    @property
    def dead_fraction(self) -> float:
        """Share of latents never in use in the `n` tokens, in `[0, 1]`."""
        return self.dead.double().mean().item()

    @property
    def dead_bound(self) -> float:
        """Largest density, at 95 % confidence, of a latent never seen in the `n` tokens: `3 / n`, at most 1."""
        self._refuse_no_token()
        return min(3 / self.n, 1.0)

    def dense_fraction(self, threshold: float = DENSE) -> float:
        """Share of latents in use on more than `threshold` of the tokens, in `[0, 1]`."""
        return (self.value > threshold).double().mean().item()

    def uses_of(self, threshold: float = DENSE) -> float:
        """Share of all uses that falls on latents denser than `threshold`, in `[0, 1]`; 0 when none is ever in use."""
        total = int(self.counts.sum())
        return float(self.counts[self.value > threshold].sum()) / total if total else 0.0

    def densest(self, threshold: float = DENSE, most: int = 20) -> list[tuple[int, float]]:
        """Latents denser than `threshold` with their density, densest first, at most `most`."""
        density, latents = self.value.sort(descending=True, stable=True)
        return [
            (int(j), float(p))
            for j, p in zip(latents[:most].tolist(), density[:most].tolist(), strict=True)
            if p > threshold
        ]

    def histogram(self, per_decade: int = 4) -> "DensityHistogram":
        """Live latents by `log10` of their density, in bins of `1 / per_decade` decades that end at 0 (always in use).

        The lowest bin holds `log10(1 / n)`, the smallest density that can be seen.
        """
        if per_decade < 1:
            raise ValueError(f"per_decade must be at least 1, got {per_decade}")
        density = self.value[~self.dead]
        # A bin is [low, high), and the last takes density 1 as well; 1e-9 forgives rounding at an edge.
        n_bins = max(1, math.ceil(math.log10(self.n) * per_decade - 1e-9))
        bins = ((density.log10() * per_decade + 1e-9).floor().long() + n_bins).clamp(0, n_bins - 1)
        edges = (torch.arange(n_bins + 1).double() - n_bins) / per_decade
        return DensityHistogram(edges, torch.bincount(bins, minlength=n_bins), int(self.dead.sum()))

    def _refuse_no_token(self) -> None:
        if self.n == 0:
            raise UndefinedMetric("density is undefined: there is no token; evaluate on a split that has rows")


@dataclass(frozen=True, eq=False)
class DensityHistogram:
    """Latents by `log10` density.

    Attributes:
        edges: Edges of the bins, in `log10` of density; the last is 0.
        counts: Live latents in each bin.
        n_dead: Latents never seen, which have no logarithm and are in no bin.
    """

    edges: Float64[Tensor, " edges"]
    counts: Int64[Tensor, " bins"]
    n_dead: int
