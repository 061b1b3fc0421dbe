"""The TopK reconstruction with a backward pass that touches only active latents."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from sparsight.dictionaries.selection import top_k_latents


class _SparseTopK(torch.autograd.Function):
    """Of `b` tokens, `d` dimensions, `m` latents: one dense product `[b, d] x [d, m]`, all else costs `b k d`.

    With `g` the gradient of the reconstruction, `I` the chosen latents and `v` their values:
    `dv = <g, atoms[I]>` (0 where the rectifier cut), `d atoms[i] = sum v g`, `d W_enc[:, i] = sum dv (x - b_dec)` and
    `d b_enc[i] = sum dv`, sums over the slots that hold latent `i`; `d b_dec = sum g - W_enc d b_enc`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, atoms: Tensor, b_dec: Tensor, k: int, rectify: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred = x - b_dec
        values, indices = top_k_latents(centred, W_enc, b_enc, k)
        if rectify:
            values = values.relu()
        ctx.save_for_backward(centred, W_enc, atoms, values, indices)
        ctx.mark_non_differentiable(values, indices)
        ctx.rectify = rectify
        return embedding_bag(indices, atoms, per_sample_weights=values, mode="sum") + b_dec, values, indices

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, atoms, values, indices = ctx.saved_tensors
        g = gradients[0].contiguous()
        to_values = _dots(g, atoms, indices)
        if ctx.rectify:
            to_values = to_values * (values > 0)
        by_latent = _Transposed(indices, atoms.shape[0])
        to_atoms = by_latent.sum_rows(g, values)
        to_W_enc = by_latent.sum_rows(centred, to_values).T.contiguous()
        to_b_enc = g.new_zeros(atoms.shape[0]).index_add_(0, indices.flatten(), to_values.flatten())
        to_b_dec = g.sum(dim=0) - W_enc @ to_b_enc
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = embedding_bag(indices, W_enc.T.contiguous(), per_sample_weights=to_values, mode="sum")
        return to_x, to_W_enc, to_b_enc, to_atoms, to_b_dec, None, None


def sparse_top_k(
    x: Float[Tensor, "b d"],
    W_enc: Float[Tensor, "d m"],
    b_enc: Float[Tensor, " m"],
    atoms: Float[Tensor, "m d"],
    b_dec: Float[Tensor, " d"],
    *,
    k: int,
    rectify: bool = True,
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """Reconstruct `x` from its `k` largest pre-activations; gradients equal those of the dense computation.

    Args:
        x, W_enc, b_enc, atoms, b_dec: As in `TopKDictionary`; all differentiable.
        k: Latents in a token, between 1 and `m`.
        rectify: Set negative values among the `k` to 0.
    Returns:
        Reconstruction (differentiable), values and latents of the code (not differentiable).
    """
    return _SparseTopK.apply(x, W_enc, b_enc, atoms, b_dec, k, rectify)  # type: ignore[no-any-return,no-untyped-call]


def _dots(g: Tensor, atoms: Tensor, indices: Tensor) -> Tensor:
    """`<g[t], atoms[indices[t, j]]>` for every slot: the derivative of an embedding bag by its weights."""
    with torch.enable_grad():
        weights = torch.zeros(indices.shape, dtype=g.dtype, device=g.device, requires_grad=True)
        decoded = embedding_bag(indices, atoms.detach(), per_sample_weights=weights, mode="sum")
        return torch.autograd.grad(decoded, weights, g)[0]


class _Transposed:
    """The slots of a code `[b, k]` sorted by latent, to sum over the tokens of each latent."""

    def __init__(self, indices: Tensor, n_latents: int) -> None:
        latents, self.slots = indices.flatten().sort(stable=True)
        counts = torch.bincount(latents, minlength=n_latents)
        self.starts = counts.cumsum(dim=0) - counts
        self.tokens = self.slots // indices.shape[1]

    def sum_rows(self, rows: Tensor, weights: Tensor) -> Tensor:
        """`[m, d]`: for each latent the sum of the rows of its tokens, times their weights `[b, k]`."""
        return embedding_bag(
            self.tokens, rows, self.starts, per_sample_weights=weights.flatten()[self.slots], mode="sum"
        )
