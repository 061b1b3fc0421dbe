"""Choosing the k largest entries of each row, the same ones on every device."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# Pre-activations of one block of rows. On a CPU a block stays in the caches and its memory is used again by the next
# (touching fresh pages costs more than the matrix product); a GPU needs large products to be busy.
CPU_BLOCK = 2**22
GPU_BLOCK = 2**28


def block_rows(n_latents: int, device: torch.device) -> int:
    """Rows whose pre-activations are computed at once."""
    return max(1, (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK) // n_latents)


def top_k(pre: Float[Tensor, "n m"], k: int) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """The `k` largest entries of each row, largest first, and their columns; of equal positive ones the first.

    `torch.topk` leaves open which of several equal entries it takes. That matters only where the k-th and the next
    largest are equal (and positive: others are silent after the rectifier), so only those rows are sorted in full.

    Args:
        pre: Pre-activations, `n` rows of `m`.
        k: How many to keep, between 1 and `m`.
    """
    m = pre.shape[1]
    values, columns = pre.topk(min(k + 1, m), dim=1)
    if k == m:
        return values, columns
    tied = ((values[:, k] == values[:, k - 1]) & (values[:, k] > 0)).nonzero()[:, 0]
    values, columns = values[:, :k], columns[:, :k]
    if len(tied) == 0:
        return values, columns
    order = pre[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.index_copy(0, tied, order)
    return pre.gather(1, columns), columns


def top_k_latents(
    centred: Float[Tensor, "n d"], W_enc: Float[Tensor, "d m"], b_enc: Float[Tensor, " m"], k: int
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """`top_k` of `centred W_enc + b_enc`, never holding more than one block of it. Differentiable in the values."""
    blocks = [
        top_k(torch.addmm(b_enc, rows, W_enc), k)
        for rows in torch.split(centred, block_rows(W_enc.shape[1], centred.device))
    ]
    return torch.cat([values for values, _ in blocks]), torch.cat([columns for _, columns in blocks])
