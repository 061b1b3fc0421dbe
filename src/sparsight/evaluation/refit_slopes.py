"""How the values of each latent relate to the best ones on the same support."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode


@dataclass(frozen=True, eq=False)
class RefitSlopes:
    """For each latent, the line of refitted values on its own ones, over the tokens on which it is active.

    A slope of 1 through the origin: values cannot be improved by a factor of that latent's own. Above 1: shrunk. Each
    latent's line is fitted alone, since refitting has answered for the others already.

    Attributes:
        n: Tokens on which each latent is active.
        sum_value: Sum of its values.
        sum_refit: Sum of the refitted ones.
        sum_value_sq: Sum of squares of its values.
        sum_product: Sum of products of the two.
    """

    n: Int64[Tensor, " n_latents"]
    sum_value: Float64[Tensor, " n_latents"]
    sum_refit: Float64[Tensor, " n_latents"]
    sum_value_sq: Float64[Tensor, " n_latents"]
    sum_product: Float64[Tensor, " n_latents"]

    @staticmethod
    def of(code: SparseCode, refitted: SparseCode) -> "RefitSlopes":
        """Sums of one batch.

        Args:
            code: As the coder wrote it.
            refitted: `refit(x, atoms, code.support())`: the same slots, other values.
        Raises:
            ValueError: the codes have other slots.
        """
        if code.indices.shape != refitted.indices.shape or code.n_latents != refitted.n_latents:
            raise ValueError("codes must have the same slots: pass refit(x, atoms, code.support())")
        on = code.values != 0
        if not torch.equal(code.indices[on], refitted.indices[on]):
            raise ValueError("codes must have the same slots: pass refit(x, atoms, code.support())")
        latent, value, fitted = code.indices[on], code.values[on].detach().double(), refitted.values[on].double()

        def total(values: Tensor) -> Tensor:
            return torch.zeros(code.n_latents, dtype=values.dtype, device=values.device).index_add_(0, latent, values)

        return RefitSlopes(
            total(torch.ones_like(latent)), total(value), total(fitted), total(value.square()), total(value * fitted)
        )

    def __add__(self, other: "RefitSlopes") -> "RefitSlopes":
        return RefitSlopes(
            self.n + other.n,
            self.sum_value + other.sum_value,
            self.sum_refit + other.sum_refit,
            self.sum_value_sq + other.sum_value_sq,
            self.sum_product + other.sum_product,
        )

    @property
    def slope(self) -> Float64[Tensor, " n_latents"]:
        """Slope through the origin; 1 for a latent that is never active, as `fit_scale` has it."""
        tiny = torch.finfo(torch.float64).tiny
        return torch.where(self.n > 0, self.sum_product / self.sum_value_sq.clamp_min(tiny), 1.0)

    @property
    def line(self) -> tuple[Float64[Tensor, " n_latents"], Float64[Tensor, " n_latents"]]:
        """Slope and intercept of the least-squares line; 1 and 0 for a latent whose values do not vary.

        A latent shrunk by a factor `g` has `(1 / g, 0)`, one from which an amount `t` is taken off `(1, t)`.
        """
        spread = self.n * self.sum_value_sq - self.sum_value.square()
        varies = (self.n > 1) & (spread > 1e-12 * self.n * self.sum_value_sq)
        safe = torch.where(varies, spread, 1.0)
        slope = torch.where(varies, (self.n * self.sum_product - self.sum_value * self.sum_refit) / safe, 1.0)
        offset = (self.sum_refit - slope * self.sum_value) / self.n.clamp_min(1)
        return slope, torch.where(varies, offset, 0.0)
