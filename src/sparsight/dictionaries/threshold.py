"""One threshold for all latents: coding with it, and fitting it to a mean number of active latents."""

import math
from collections.abc import Iterable
from statistics import NormalDist

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.dictionaries.base import Number
from sparsight.dictionaries.blocks import code_where
from sparsight.dictionaries.selection import block_rows

# Bits of a float32 that a bin of the histogram ignores: a bin is narrower than its threshold by a factor of 2^13.
DROPPED_BITS = 10
N_BINS = 2 ** (31 - DROPPED_BITS)


def code_above(
    centred: Float[Tensor, "n d"],
    W_enc: Float[Tensor, "d m"],
    b_enc: Float[Tensor, " m"],
    threshold: Float[Tensor, " m"],
) -> SparseCode:
    """`centred W_enc + b_enc` where it exceeds its latent's threshold, in blocks of rows. Differentiable in the values.

    Args:
        threshold: One per latent, not negative.
    """
    blocks = []
    for rows in torch.split(centred, block_rows(W_enc.shape[1], centred.device)):
        pre = torch.addmm(b_enc, rows, W_enc)
        blocks.append(code_where(pre, pre > threshold))
    return SparseCode.cat(blocks)


def first_log_threshold(k: Number, n_latents: int, d_in: int) -> float:
    """Where `k` latents are active before training: random atoms have pre-activations of variance `1 / d_in`."""
    # More than a third active would put the threshold near or below 0, where a logarithm cannot start.
    return math.log(NormalDist().inv_cdf(1 - min(k / n_latents, 1 / 3)) / math.sqrt(d_in))


@torch.no_grad()
def fit_log_threshold(
    batches: Iterable[Float[Tensor, "_ d"]],
    W_enc: Float[Tensor, "d m"],
    b_enc: Float[Tensor, " m"],
    b_dec: Float[Tensor, " d"],
    k: int,
) -> float:
    """Logarithm of the threshold that `k` pre-activations of a token exceed, on average over all batches.

    The threshold is a quantile of the positive pre-activations. They are counted in bins of their float32
    representation, whose order is theirs: `2^21` bins, each narrower than a part in 8,000 of the values in it, and
    straight lines between. Neither the order of the tokens nor their split into batches matters.

    Where fewer than `k` are positive on average, the threshold is the smallest positive number: all of them are active.

    Raises:
        ValueError: no token came.
    """
    counts = torch.zeros(N_BINS, dtype=torch.int64, device=W_enc.device)
    n, waiting, n_waiting = 0, list[Tensor](), 0
    for batch in batches:
        n += len(batch)
        for rows in torch.split(batch - b_dec, block_rows(W_enc.shape[1], W_enc.device)):
            pre = torch.addmm(b_enc, rows, W_enc).flatten().float()
            waiting.append(pre[pre > 0].view(torch.int32) >> DROPPED_BITS)
            # A count writes every bin: small batches wait for each other.
            n_waiting += len(waiting[-1])
            if n_waiting > N_BINS:
                counts += torch.bincount(torch.cat(waiting), minlength=N_BINS)
                waiting, n_waiting = [], 0
    if n == 0:
        raise ValueError("calibration needs at least one activation, got none")
    if waiting:
        counts += torch.bincount(torch.cat(waiting), minlength=N_BINS)
    return _log_quantile(counts, k * n)


def _log_quantile(counts: Int64[Tensor, " bins"], n_above: int) -> float:
    """Logarithm of the value that `n_above` of the counted ones exceed."""
    tiny = torch.finfo(torch.float32).tiny
    above = counts.flip(0).cumsum(dim=0)  # of the last bin, the last two, ...
    if int(above[-1]) <= n_above:
        return math.log(tiny)
    i = int(torch.searchsorted(above, n_above))  # the bin from the top in which it lies
    higher, inside = (int(above[i - 1]) if i else 0), int(counts.flip(0)[i])
    edges = torch.tensor([N_BINS - 1 - i, N_BINS - i], dtype=torch.int32).bitwise_left_shift(DROPPED_BITS)
    low, high = edges.view(torch.float32).double().tolist()
    return math.log(max(high - (high - low) * (n_above - higher) / inside, tiny))
