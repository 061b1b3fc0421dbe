"""Means of per-token ratios: norm ratio and nearest multiple as often reported, for comparison with ratios of sums."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.pairs import float64_pair


@dataclass(frozen=True)
class TokenScales:
    """Per-token `|x_hat| / |x|` and `<x, x_hat> / |x|^2`, averaged over tokens.

    Every token weighs alike, so these are not the scalars that minimise a loss over all tokens: where long tokens are
    reconstructed otherwise than short ones, `beta` here and `Shrinkage.beta` disagree. Both fall below 1 for any
    imperfect reconstruction that could not be improved by a scalar, an orthogonal projection for one.

    Attributes:
        n: Tokens.
        n_zero: Tokens whose activation is zero, which have no ratio.
        sum_norm_ratio: Sum of `|x_hat| / |x|` over the others.
        sum_beta: Sum of `<x, x_hat> / |x|^2` over the others.

    Source:
        The norm ratio is the "L2 ratio" of several code bases; for `sum_beta`, Marks' comments on the Gated SAE paper.
    """

    n: int
    n_zero: int
    sum_norm_ratio: float
    sum_beta: float

    @staticmethod
    def of(x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"]) -> "TokenScales":
        """Sums of one batch. Subtract a centre from both first, to have the ratios about it."""
        x, x_hat = float64_pair(x, x_hat)
        lengths = torch.linalg.vector_norm(x, dim=1)
        there = lengths > 0
        # A direction of its own, so that squares of tiny and huge units stay in range.
        directions = x[there] / lengths[there].unsqueeze(1)
        ratios = x_hat[there] / lengths[there].unsqueeze(1)
        return TokenScales(
            len(x),
            len(x) - int(there.sum()),
            torch.linalg.vector_norm(ratios, dim=1).sum().item(),
            (directions * ratios).sum().item(),
        )

    def __add__(self, other: "TokenScales") -> "TokenScales":
        return TokenScales(
            self.n + other.n,
            self.n_zero + other.n_zero,
            self.sum_norm_ratio + other.sum_norm_ratio,
            self.sum_beta + other.sum_beta,
        )

    @property
    def norm_ratio(self) -> float:
        """Mean of `|x_hat| / |x|`.

        Raises:
            UndefinedMetric: an activation is zero, or there is none.
        """
        return self.sum_norm_ratio / self._counted

    @property
    def beta(self) -> float:
        """Mean of `<x, x_hat> / |x|^2`. Raises as `norm_ratio` does."""
        return self.sum_beta / self._counted

    @property
    def _counted(self) -> int:
        if self.n_zero or not self.n:
            raise UndefinedMetric(
                f"per-token ratios are undefined: {self.n_zero} of {self.n} activations are zero; the ratios of sums "
                "in Shrinkage have no such gap"
            )
        return self.n
