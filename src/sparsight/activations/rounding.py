"""How rows are stored: float types as they are, int8 with one scale per row; and what each loses."""

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}


def limit(dtype: torch.dtype) -> float:
    """The largest magnitude that can be stored; int8 has a scale, so it is that of float32."""
    return torch.finfo(dtype if dtype.is_floating_point else torch.float32).max


def bytes_per_row(width: int, dtype: str) -> int:
    """Bytes that the activations of one row take."""
    return width * DTYPES[dtype].itemsize + (4 if dtype == "int8" else 0)


def to_int8(x: Float[Tensor, "n d"]) -> tuple[Int8[Tensor, "n d"], Float32[Tensor, " n"]]:
    """Round each row to 255 levels between minus and plus its largest magnitude.

    With `s = max_j |x_j| / 127`, `q_j = round(x_j / s)`; what is read back is `s q_j`, off by at most `s / 2`. A row of
    zeros has scale 0.
    """
    scales = x.float().abs().amax(dim=1) / 127
    safe = torch.where(scales > 0, scales, 1.0)
    return (x.float() / safe[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales


def from_int8(q: Int8[Tensor, "n d"], scales: Float32[Tensor, " n"]) -> Float32[Tensor, "n d"]:
    """`s q`, what `to_int8` rounded to."""
    return q.float().mul_(scales[:, None])
