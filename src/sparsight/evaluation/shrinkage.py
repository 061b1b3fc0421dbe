"""Is a reconstruction too short, or merely imperfect? The family of one-scalar answers, told apart."""

import math
from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.pairs import float64_pair

ROUNDING = 1e-13  # of the terms of a sum about a centre, below which it counts as 0


@dataclass(frozen=True)
class Shrinkage:
    """Two numbers, and what follows from them: with `a = E|x|^2`, `h = E|x_hat|^2`, `c = E<x, x_hat>`.

    `rho` and `nu` carry everything: `r = nu / rho`, `alpha = rho / nu`, `beta = rho * nu`. A `nu` below 1 is expected
    of any imperfect reconstruction (an orthogonal projection has it and cannot be improved by a scalar); shrinkage is
    `r` below 1.

    Attributes:
        rho: Population cosine `c / sqrt(a h)`, in `[-1, 1]`.
        nu: Norm ratio `sqrt(h / a)`, `>= 0`.
        r: Relative reconstruction bias `h / c`, the `g` that minimises `E|x_hat / g - x|^2`. 1 is unbiased, below 1 is
            shrunk, above 1 overshoots; negative when `x_hat` points away from `x`.
        alpha: Scalar that would repair the output: `c / h`, the minimiser of `E|alpha x_hat - x|^2`; `1 / r`.
        beta: Multiple of the input nearest to the output: `c / a`, the minimiser of `E|x_hat - beta x|^2`. Confounds
            angle with length. `alpha * beta = rho^2`.
        gamma_v1: `sqrt(h / (a - m))` with `m = E|x - x_hat|^2`, the unit of early papers: `sqrt(r / (2 - r))`, for
            comparison with them. None when it does not exist (`r >= 2` or `r < 0`).
        scale_gain: Loss that the scalar `alpha` would remove, as a fraction of `a`: `h (1 - alpha)^2 / a`, `>= 0`.

    Source:
        Rajamanoharan et al., "Improving Dictionary Learning with Gated Sparse Autoencoders", 2024, equations 9 and 10
        in both versions. All are ratios of sums over tokens; the mean of per-token ratios is another quantity.
    """

    rho: float
    nu: float
    r: float
    alpha: float
    beta: float
    gamma_v1: float | None
    scale_gain: float


@dataclass(frozen=True, eq=False)
class ShrinkageSums:
    """Sums from which `Shrinkage` follows about any centre, chosen afterwards.

    Attributes:
        n: Tokens.
        sum_x: `sum x`.
        sum_x_hat: `sum x_hat`.
        sum_x_sq: `sum |x|^2`.
        sum_x_hat_sq: `sum |x_hat|^2`.
        sum_dot: `sum <x, x_hat>`.
    """

    n: int
    sum_x: Float64[Tensor, " d_in"]
    sum_x_hat: Float64[Tensor, " d_in"]
    sum_x_sq: float
    sum_x_hat_sq: float
    sum_dot: float

    @staticmethod
    def of(x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"]) -> "ShrinkageSums":
        """Sums of one batch."""
        x, x_hat = float64_pair(x, x_hat)
        return ShrinkageSums(
            len(x),
            x.sum(dim=0),
            x_hat.sum(dim=0),
            x.square().sum().item(),
            x_hat.square().sum().item(),
            (x * x_hat).sum().item(),
        )

    def __add__(self, other: "ShrinkageSums") -> "ShrinkageSums":
        return ShrinkageSums(
            self.n + other.n,
            self.sum_x + other.sum_x,
            self.sum_x_hat + other.sum_x_hat,
            self.sum_x_sq + other.sum_x_sq,
            self.sum_x_hat_sq + other.sum_x_hat_sq,
            self.sum_dot + other.sum_dot,
        )

    @property
    def value(self) -> Shrinkage:
        """The family about the origin. Raises as `about` does."""
        return family_of(self.sum_x_sq, self.sum_x_hat_sq, self.sum_dot)

    def about(self, centre: Float[Tensor, " d_in"]) -> Shrinkage:
        """The family of `x - centre` and `x_hat - centre`.

        Args:
            centre: In the units of the site; the dictionary's `b_dec`, or the mean activation.
        Raises:
            UndefinedMetric: activations or reconstructions are all at the centre, or do not correlate at all.
        """
        c = centre.double().to(self.sum_x.device)
        length = self.n * c.square().sum().item()
        along_x, along_x_hat = (c @ self.sum_x).item(), (c @ self.sum_x_hat).item()
        a = self.sum_x_sq - 2 * along_x + length
        h = self.sum_x_hat_sq - 2 * along_x_hat + length
        dot = self.sum_dot - along_x - along_x_hat + length
        # What rounding leaves of sums that cancel is nothing.
        none_a, none_h = (
            of <= ROUNDING * (plain + length) for of, plain in ((a, self.sum_x_sq), (h, self.sum_x_hat_sq))
        )
        return family_of(0.0 if none_a else a, 0.0 if none_h else h, dot)


def family_of(a: float, h: float, c: float) -> Shrinkage:
    """The family from the three second moments (or their sums over tokens: only ratios enter)."""
    if a <= 0 or h <= 0 or c == 0:
        raise UndefinedMetric(
            "shrinkage is undefined: "
            + (
                "every activation is at the centre"
                if a <= 0
                else "every reconstruction is at the centre"
                if h <= 0
                else "activations and reconstructions do not correlate"
            )
        )
    alpha = c / h
    return Shrinkage(
        rho=c / math.sqrt(a * h),
        nu=math.sqrt(h / a),
        r=h / c,
        alpha=alpha,
        beta=c / a,
        # a - m = 2c - h.
        gamma_v1=math.sqrt(h / (2 * c - h)) if 2 * c > h else None,
        scale_gain=h * (1 - alpha) ** 2 / a,
    )


def shrinkage(
    x: Float[Tensor, "n d_in"], x_hat: Float[Tensor, "n d_in"], *, centre: Float[Tensor, " d_in"] | None = None
) -> Shrinkage:
    """The shrinkage family of one batch, about the origin or about `centre`. Raises as `ShrinkageSums.about` does."""
    sums = ShrinkageSums.of(x, x_hat)
    return sums.value if centre is None else sums.about(centre)
