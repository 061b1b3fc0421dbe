"""Sparse reconstructions with a backward pass that touches only active latents."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from sparsight.dictionaries.selection import Slots, batch_top_k_latents, top_k, top_k_latents

# Whether gradients go through dense codes.
_DENSE: ContextVar[bool] = ContextVar("dense_codes", default=False)


@contextmanager
def dense_codes(dense: bool = True) -> Iterator[None]:
    """Within it, the functions below leave everything to autograd, over codes with a column for every latent.

    What they return is the same; it is the plain computation that the sparse one is held against.
    """
    token = _DENSE.set(dense)
    try:
        yield
    finally:
        _DENSE.reset(token)


class _SparseDecode(torch.autograd.Function):
    """Of `s` slots in `b` tokens, `d` dimensions: everything costs `s d` (and one product with a vector).

    A slot holds a latent `i` and its value `v = pre_i` in one token; bags collect slots, each adding `v atoms[i]`. With
    `g` the gradient of its bag: `dv = <g, atoms[i]>`, `d atoms[i] = sum v g`, `d W_enc[:, i] = sum dv (x - b_dec)` and
    `d b_enc[i] = sum dv`, sums over the slots that hold latent `i`; the offset moves the inputs of the encoder by
    `d b_dec = -W_enc d b_enc`. Rectified slots of value 0 have `dv = 0`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        atoms: Tensor,
        b_dec: Tensor,
        slots: Slots,
        bags: Tensor,
        n_bags: int,
        rectified: bool,
    ) -> Tensor:
        values = slots.values.to(atoms.dtype)
        starts = _starts(bags, n_bags)
        ctx.save_for_backward(x, W_enc, atoms, b_dec, slots.tokens, slots.latents, values, bags, starts)
        ctx.rectified = rectified
        return embedding_bag(slots.latents, atoms, starts, per_sample_weights=values, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, atoms, b_dec, tokens, latents, values, bags, starts = ctx.saved_tensors
        g = gradients[0].contiguous()
        to_values = _dots(g, atoms, latents, starts)
        if ctx.rectified:
            to_values = to_values * (values > 0)
        order = latents.argsort(stable=True)
        by_latent = _starts(latents, atoms.shape[0])

        def sum_rows(rows: Tensor, of_slot: Tensor, weights: Tensor) -> Tensor:
            """`[m, d]`: for each latent the sum over its slots of the slot's row times its weight."""
            return embedding_bag(of_slot[order], rows, by_latent, per_sample_weights=weights[order], mode="sum")

        to_atoms = sum_rows(g, bags, values)
        to_W_enc = sum_rows(x - b_dec, tokens, to_values).T.contiguous()
        to_b_enc = g.new_zeros(atoms.shape[0]).index_add_(0, latents, to_values)
        to_x = None
        if ctx.needs_input_grad[0]:
            of_token = _starts(tokens, len(x))
            by_token = tokens.argsort(stable=True)
            to_x = embedding_bag(
                latents[by_token],
                W_enc.T.contiguous(),
                of_token,
                per_sample_weights=to_values[by_token],
                mode="sum",
            )
        return to_x, to_W_enc, to_b_enc, to_atoms, -(W_enc @ to_b_enc), None, None, None, None


def sparse_top_k(
    x: Float[Tensor, "b d"],
    W_enc: Float[Tensor, "d m"],
    b_enc: Float[Tensor, " m"],
    atoms: Float[Tensor, "m d"],
    b_dec: Float[Tensor, " d"],
    *,
    k: int,
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """Reconstruct `x` from its `k` largest pre-activations, rectified; gradients equal those of the dense computation.

    Args:
        x, W_enc, b_enc, atoms, b_dec: As in `TopKDictionary`; all differentiable.
        k: Latents in a token, between 1 and `m`.
    Returns:
        Reconstruction (differentiable), values and latents of the code (not differentiable).
    """
    if _DENSE.get():
        values, latents = top_k(torch.addmm(b_enc, x - b_dec, W_enc), k)
        values = values.relu()
        code = values.new_zeros(len(x), W_enc.shape[1]).scatter(1, latents, values)
        return code @ atoms + b_dec, values.detach(), latents
    with torch.no_grad():
        values, latents = top_k_latents(x - b_dec, W_enc, b_enc, k)
        values = values.relu()
        tokens = torch.arange(len(x), device=x.device).repeat_interleave(k)
        slots = Slots(tokens, latents.flatten(), values.flatten(), len(x))
    return decode_slots(x, W_enc, b_enc, atoms, b_dec, slots, tokens, len(x), True) + b_dec, values, latents


def sparse_batch_top_k(
    x: Float[Tensor, "b d"],
    W_enc: Float[Tensor, "d m"],
    b_enc: Float[Tensor, " m"],
    atoms: Float[Tensor, "m d"],
    b_dec: Float[Tensor, " d"],
    *,
    n_kept: int,
) -> tuple[Float[Tensor, "b d"], Slots]:
    """Reconstruct `x` from the `n_kept` largest positive pre-activations of the whole batch.

    Gradients equal those of the dense computation.

    Args:
        x, W_enc, b_enc, atoms, b_dec: As in `BatchTopKDictionary`; all differentiable.
        n_kept: Active latents in the batch, fewer where fewer pre-activations are positive.
    Returns:
        Reconstruction (differentiable) and the active latents (not differentiable).
    """
    slots = batch_top_k_latents(x - b_dec, W_enc, b_enc, n_kept)
    if _DENSE.get():
        return _dense_code(x, W_enc, b_enc, b_dec, slots) @ atoms + b_dec, slots
    return decode_slots(x, W_enc, b_enc, atoms, b_dec, slots, slots.tokens, len(x), False) + b_dec, slots


def sparse_prefixes(
    x: Float[Tensor, "b d"],
    W_enc: Float[Tensor, "d m"],
    b_enc: Float[Tensor, " m"],
    atoms: Float[Tensor, "m d"],
    b_dec: Float[Tensor, " d"],
    *,
    n_kept: int,
    widths: Int64[Tensor, " p"],
) -> tuple[Float[Tensor, "p b d"], Slots]:
    """Reconstruct `x` once from each prefix of the latents, with the code of `sparse_batch_top_k`.

    Slots are grouped by the first prefix that has them and decoded once; each prefix adds its group to the one before.

    Args:
        x, W_enc, b_enc, atoms, b_dec, n_kept: As in `sparse_batch_top_k`.
        widths: Latents in each prefix, ascending, the last one `m`.
    Returns:
        Reconstructions (differentiable), one per width, and the active latents (not differentiable).
    """
    slots = batch_top_k_latents(x - b_dec, W_enc, b_enc, n_kept)
    if _DENSE.get():
        code = _dense_code(x, W_enc, b_enc, b_dec, slots)
        return torch.stack([code[:, :width] @ atoms[:width] + b_dec for width in widths]), slots
    group = torch.searchsorted(widths, slots.latents, right=True)
    order = group.argsort(stable=True)
    grouped = Slots(slots.tokens[order], slots.latents[order], slots.values[order], len(x))
    bags = group[order] * len(x) + grouped.tokens
    parts = decode_slots(x, W_enc, b_enc, atoms, b_dec, grouped, bags, len(widths) * len(x), False)
    return parts.view(len(widths), len(x), -1).cumsum(dim=0) + b_dec, slots


def _dense_code(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, slots: Slots) -> Tensor:
    """`[b, m]`: pre-activations where there is a slot, else 0."""
    chosen = x.new_zeros(len(x), W_enc.shape[1])
    chosen[slots.tokens, slots.latents] = 1
    return torch.addmm(b_enc, x - b_dec, W_enc) * chosen


def decode_slots(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    atoms: Tensor,
    b_dec: Tensor,
    slots: Slots,
    bags: Tensor,
    n_bags: int,
    rectified: bool,
) -> Tensor:
    """`[n_bags, d]`: what the slots of each bag add up to, without offset. Bags ascend."""
    apply: Any = _SparseDecode.apply
    decoded: Tensor = apply(x, W_enc, b_enc, atoms, b_dec, slots, bags, n_bags, rectified)
    return decoded


def _starts(bags: Tensor, n: int) -> Tensor:
    """Where each of `n` bags begins once its members are sorted by bag."""
    counts = torch.bincount(bags, minlength=n)
    return counts.cumsum(dim=0) - counts


def _dots(g: Tensor, atoms: Tensor, latents: Tensor, starts: Tensor) -> Tensor:
    """`<g[bag], atoms[latent]>` for every slot: the derivative of an embedding bag by its weights."""
    with torch.enable_grad():
        weights = torch.zeros(latents.shape, dtype=g.dtype, device=g.device, requires_grad=True)
        decoded = embedding_bag(latents, atoms.detach(), starts, per_sample_weights=weights, mode="sum")
        return torch.autograd.grad(decoded, weights, g)[0]
