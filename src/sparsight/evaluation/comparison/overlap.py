"""Which latents two supports have in common."""

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode


def members(support: Int64[Tensor, "n k"], other: Int64[Tensor, "n m"]) -> Bool[Tensor, "n k"]:
    """Whether each latent of a support is in the other one of the same row; never for an empty (negative) slot."""
    rows = max(1, 2**24 // max(1, support.shape[1] * other.shape[1]))
    parts = [
        ((a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]).any(dim=2)
        for a, b in zip(torch.split(support, rows), torch.split(other, rows), strict=True)
    ]
    return torch.cat(parts)


def jaccard(first: SparseCode, second: SparseCode) -> Float64[Tensor, " n"]:
    """Latents in both supports over latents in either, for each row; 1 where both are silent."""
    both = members(first.support(), second.support()).sum(dim=1)
    either = first.l0() + second.l0() - both
    return torch.where(either > 0, both.double() / either.clamp_min(1), 1.0)
