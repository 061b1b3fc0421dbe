"""Fraction of variance unexplained: the headline, and two relatives under names of their own."""

from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.pairs import float64_pair

# Below this share of the mean's energy, a variance is the rounding of a float64 mean and nothing else.
_ROUNDING = 1e-26


@dataclass(frozen=True, eq=False)
class Fvu:
    """Fraction of variance unexplained: `sum |x - x_hat|^2 / sum |x - mean(x)|^2`, dimensionless, `>= 0`.

    0 is perfect, 1 is no better than answering the mean of `x` over all the activations, above 1 is worse than that.
    One ratio of sums over all tokens and coordinates, never a mean of ratios; `1 - FVU` is the explained variance R².
    The mean is subtracted before squaring, batch by batch, and batches are joined by the parallel-axis identity, so
    that a large common mean does not cancel the digits away.

    Attributes:
        n: Tokens.
        mean: Mean activation, in the units of the site.
        sum_centred_sq: `sum |x - mean|^2`.
        sum_residual_sq: `sum |x - x_hat|^2`.
    """

    n: int
    mean: Float64[Tensor, " d_in"]
    sum_centred_sq: float
    sum_residual_sq: float

    @staticmethod
    def of(x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"]) -> "Fvu":
        """Sums of one batch.

        Raises:
            ValueError: the batch is empty, shapes differ, or a value is not finite.
        """
        x, x_hat = float64_pair(x, x_hat)
        if len(x) == 0:
            raise ValueError("a batch must hold at least one activation, got none")
        mean = x.mean(dim=0)
        return Fvu(len(x), mean, (x - mean).square().sum().item(), (x - x_hat).square().sum().item())

    def __add__(self, other: "Fvu") -> "Fvu":
        n = self.n + other.n
        shift = other.mean - self.mean
        between = shift.square().sum().item() * self.n * other.n / n
        return Fvu(
            n,
            self.mean + shift * (other.n / n),
            self.sum_centred_sq + other.sum_centred_sq + between,
            self.sum_residual_sq + other.sum_residual_sq,
        )

    @property
    def value(self) -> float:
        """The fraction.

        Raises:
            UndefinedMetric: the activations are all equal, so that there is no variance to explain.
        """
        if self.sum_centred_sq <= _ROUNDING * self.n * self.mean.square().sum().item():
            raise UndefinedMetric(f"FVU is undefined: the {self.n} activations are all equal; evaluate on more tokens")
        return self.sum_residual_sq / self.sum_centred_sq


@dataclass(frozen=True)
class FvuUncentred:
    """Energy unexplained: `sum |x - x_hat|^2 / sum |x|^2`, dimensionless, `>= 0`.

    0 is perfect and 1 is no better than answering zero. It rewards a reconstruction for the mean alone: where the mean
    carries most of the energy this is small for a useless dictionary. Given beside the headline because it is the
    "normalised MSE" of several papers.

    Attributes:
        sum_sq: `sum |x|^2`.
        sum_residual_sq: `sum |x - x_hat|^2`.
    """

    sum_sq: float
    sum_residual_sq: float

    @staticmethod
    def of(x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"]) -> "FvuUncentred":
        """Sums of one batch."""
        x, x_hat = float64_pair(x, x_hat)
        return FvuUncentred(x.square().sum().item(), (x - x_hat).square().sum().item())

    def __add__(self, other: "FvuUncentred") -> "FvuUncentred":
        return FvuUncentred(self.sum_sq + other.sum_sq, self.sum_residual_sq + other.sum_residual_sq)

    @property
    def value(self) -> float:
        """The fraction.

        Raises:
            UndefinedMetric: every activation is zero.
        """
        if self.sum_sq == 0:
            raise UndefinedMetric("uncentred FVU is undefined: every activation is zero")
        return self.sum_residual_sq / self.sum_sq


@dataclass(frozen=True)
class FvuTokenMean:
    """Mean over tokens of `|x - x_hat|^2 / |x - mean|^2`, dimensionless, `>= 0`.

    Every token weighs the same whatever its norm, so that it looks stable while the few tokens of large norm are
    reconstructed badly; the headline shows those. Not a fraction of a variance, though often published as one.

    Attributes:
        n: Tokens.
        n_at_mean: Tokens equal to the mean, where the ratio does not exist.
        sum_ratio: Sum of the ratio over the other tokens.
    """

    n: int
    n_at_mean: int
    sum_ratio: float

    @staticmethod
    def of(
        x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"], *, mean: Float[Tensor, " d_in"]
    ) -> "FvuTokenMean":
        """Sums of one batch; `mean` is the mean activation of *all* batches, the same in each."""
        x, x_hat = float64_pair(x, x_hat)
        centred_sq = (x - mean.double()).square().sum(dim=1)
        there = centred_sq > 0
        ratio = (x - x_hat).square().sum(dim=1)[there] / centred_sq[there]
        return FvuTokenMean(len(x), int((~there).sum()), ratio.sum().item())

    def __add__(self, other: "FvuTokenMean") -> "FvuTokenMean":
        return FvuTokenMean(self.n + other.n, self.n_at_mean + other.n_at_mean, self.sum_ratio + other.sum_ratio)

    @property
    def value(self) -> float:
        """The mean ratio.

        Raises:
            UndefinedMetric: there is no token, or one of them equals the mean.
        """
        if self.n == 0 or self.n_at_mean:
            raise UndefinedMetric(
                f"token-mean FVU is undefined: {self.n_at_mean} of {self.n} tokens equal the mean; use the pooled FVU"
            )
        return self.sum_ratio / self.n
