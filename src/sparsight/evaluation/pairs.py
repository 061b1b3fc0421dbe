"""The one gate through which activations and their reconstructions reach a metric."""

import torch
from jaxtyping import Float64
from torch import Tensor


def float64_pair(x: Tensor, x_hat: Tensor) -> tuple[Float64[Tensor, "n d_in"], Float64[Tensor, "n d_in"]]:
    """Activations and reconstructions in double precision, refused when they cannot be compared row by row.

    A pair of different shapes would broadcast to a plausible number, and one NaN would poison a sum for good.

    Args:
        x: Activations `[n, d_in]`.
        x_hat: Their reconstructions, the same shape.
    Raises:
        ValueError: the shapes differ or are not two-dimensional, or a value is not finite.
    """
    if x.dim() != 2 or x.shape != x_hat.shape:
        raise ValueError(
            f"x and x_hat must both be [n, d_in], got {list(x.shape)} and {list(x_hat.shape)}; "
            "flatten batch and position"
        )
    x, x_hat = x.detach().double(), x_hat.detach().double()
    for name, values in (("x", x), ("x_hat", x_hat)):
        # The sum of a tensor is finite only if its entries are: one pass, no mask kept.
        if not torch.isfinite(values.sum()):
            bad = int((~torch.isfinite(values)).any(dim=1).sum())
            raise ValueError(f"{name} must be finite, got {bad} of {len(values)} rows with NaN or infinity; drop them")
    return x, x_hat
