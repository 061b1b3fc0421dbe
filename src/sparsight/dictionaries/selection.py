"""Choosing which latents are active: the k largest of each row or of a whole batch.

Of equal entries the first is taken, so that every device chooses the same ones.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# Pre-activations of one block of rows. On a CPU a block stays in the caches and its memory is used again by the next
# (touching fresh pages costs more than the matrix product); a GPU needs large products to be busy.
CPU_BLOCK = 2**22
GPU_BLOCK = 2**28

# The guess at a batch's threshold: read off this many rows, and low by this factor in count, so that it rarely fails.
SAMPLE_ROWS = 64
SLACK = 1.25
# Candidates held at once, in units of how many are to be kept, before they are thinned out.
CROWD = 4


@dataclass(frozen=True)
class Slots:
    """The active latents of `n_tokens` activations, any number in each: one slot per active latent.

    Attributes:
        tokens: Token of each slot, ascending.
        latents: Latent of each slot; slots of one token name different latents.
        values: Value of each slot.
        n_tokens: Activations, those without a slot counted.
    """

    tokens: Int64[Tensor, " s"]
    latents: Int64[Tensor, " s"]
    values: Float[Tensor, " s"]
    n_tokens: int


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


def weighted_top_k_latents(
    centred: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d m"],
    b_enc: Float[Tensor, " m"],
    selection: Float[Tensor, " m"],
    k: int,
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """The `k` latents of largest `pre * selection` in each row, and their `pre`, rectified. `selection` is positive."""
    weighted, columns = top_k_latents(centred, W_enc * selection, b_enc * selection, k)
    return (weighted / selection[columns]).relu(), columns


@torch.no_grad()
def batch_top_k_latents(
    centred: Float[Tensor, "n d"], W_enc: Float[Tensor, "d m"], b_enc: Float[Tensor, " m"], n_kept: int
) -> Slots:
    """The `n_kept` largest entries of the whole of `centred W_enc + b_enc`, or all positive ones if those are fewer.

    Sorting `n m` entries costs about what computing them costs. Instead a threshold is guessed from a few rows so that
    somewhat too many entries exceed it; the selection is exact among those. Should too few exceed it, a lower guess
    follows, in the end 0. No guess changes the result.

    Args:
        n_kept: How many to keep over all rows together, at least 1. Of equal ones those of earlier rows are kept, in a
            row those of earlier columns.
    """
    for slack in (SLACK, 4 * SLACK, None):
        flat, values, exact = _candidates(centred, W_enc, b_enc, n_kept, slack)
        if exact or len(values) >= n_kept:
            break
    flat, values = _largest(flat, values, n_kept)
    m = W_enc.shape[1]
    return Slots(flat // m, flat % m, values, len(centred))


def _candidates(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, n_kept: int, slack: float | None
) -> tuple[Tensor, Tensor, bool]:
    """Flat positions and values above a guessed threshold, and whether that threshold is 0 (without `slack`, it is)."""
    n, m = len(centred), W_enc.shape[1]
    threshold = centred.new_zeros(())
    guessed = slack is not None
    flat = torch.zeros(0, dtype=torch.int64, device=centred.device)
    values = centred.new_zeros(0)
    first = 0
    for rows in torch.split(centred, block_rows(m, centred.device)):
        pre = torch.addmm(b_enc, rows, W_enc).flatten()
        if first == 0 and slack is not None:
            threshold = _guess(pre.view(len(rows), m), slack * n_kept / n)
            guessed = bool(threshold > 0)
        found = (pre > threshold).nonzero()[:, 0]
        flat, values = torch.cat([flat, found + first * m]), torch.cat([values, pre[found].to(values.dtype)])
        first += len(rows)
        if len(values) > CROWD * n_kept:
            # Later entries that only equal the smallest one kept lose to it, so that it is a threshold from here on.
            flat, values = _largest(flat, values, n_kept)
            threshold = values.amin()
    return flat, values, not guessed


def _guess(pre: Tensor, per_row: float) -> Tensor:
    """A threshold that about `per_row` entries of a row exceed, never below 0."""
    sample = pre[:: max(1, len(pre) // SAMPLE_ROWS)].flatten()
    rank = min(int(per_row * len(sample) / pre.shape[1]) + 1, len(sample))
    return sample.topk(rank, sorted=False).values.amin().clamp_min(0)


def _largest(flat: Tensor, values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The `n` largest values and their positions, order kept; of equal ones the first."""
    if len(values) <= n:
        return flat, values
    smallest = values.topk(n, sorted=False).values.amin()
    above, equal = values > smallest, values == smallest
    kept = above | (equal & (equal.cumsum(dim=0) <= n - above.sum()))
    return flat[kept], values[kept]
