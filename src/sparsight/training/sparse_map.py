"""From activations to a sparse code and on to another width, with a backward pass that touches only active latents."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from sparsight.dictionaries.selection import top_k_latents


class _SparseMap(torch.autograd.Function):
    """`y = sum over the k chosen latents of (x W_enc + b_enc) atoms`; `x` and `y` may differ in width.

    With `g` the gradient of `y`, `I` the chosen latents and `v` their rectified values: `dv = <g, atoms[I]>` (where
    `exact`, 0 for those that the rectifier cut), `d atoms[i] = sum v g`, `d W_enc[:, i] = sum dv x`, `d b_enc[i] = sum
    dv` over the slots that hold latent `i`, and `dx = sum dv W_enc[:, I]` over the slots of a token.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, atoms: Tensor, k: int, exact: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, indices = top_k_latents(x, W_enc, b_enc, k)
        values = values.relu()
        ctx.save_for_backward(x, W_enc, atoms, values, indices)
        ctx.mark_non_differentiable(values, indices)
        ctx.exact = exact
        return embedding_bag(indices, atoms, per_sample_weights=values, mode="sum"), values, indices

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, atoms, values, indices = ctx.saved_tensors
        g = gradients[0].contiguous()
        to_values = _weight_gradient(g, atoms, indices)
        if ctx.exact:
            to_values = to_values * (values > 0)
        latents, slots = indices.flatten().sort(stable=True)
        counts = torch.bincount(latents, minlength=atoms.shape[0])
        starts, tokens = counts.cumsum(dim=0) - counts, slots // indices.shape[1]

        def by_latent(rows: Tensor, weights: Tensor) -> Tensor:
            return embedding_bag(tokens, rows, starts, per_sample_weights=weights.flatten()[slots], mode="sum")

        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = embedding_bag(indices, W_enc.T.contiguous(), per_sample_weights=to_values, mode="sum")
        to_b_enc = g.new_zeros(atoms.shape[0]).index_add_(0, indices.flatten(), to_values.flatten())
        return to_x, by_latent(x, to_values).T.contiguous(), to_b_enc, by_latent(g, values), None, None


def sparse_map(
    x: Float[Tensor, "b d_in"],
    W_enc: Float[Tensor, "d_in m"],
    b_enc: Float[Tensor, " m"],
    atoms: Float[Tensor, "m d_out"],
    *,
    k: int,
    exact: bool = True,
) -> tuple[Float[Tensor, "b d_out"], Float[Tensor, "b k"], Int64[Tensor, "b k"]]:
    """Decode the `k` largest pre-activations of `x`, rectified; gradients equal those of the dense computation.

    Args:
        x: Activations less their offset; differentiable, as are the next three.
        W_enc: Encoder.
        b_enc: Its offset.
        atoms: What latents write.
        k: Latents in a token, between 1 and `m`.
        exact: Otherwise the gradient passes through the rectifier as if it were not there, to negative ones as well.
    Returns:
        What the code decodes to (differentiable), values and latents of the code (not differentiable).
    """
    return _SparseMap.apply(x, W_enc, b_enc, atoms, k, exact)  # type: ignore[no-any-return,no-untyped-call]


def _weight_gradient(g: Tensor, atoms: Tensor, indices: Tensor) -> Tensor:
    """`<g[t], atoms[indices[t, j]]>` for every slot: the derivative of an embedding bag by its weights."""
    with torch.enable_grad():
        weights = torch.zeros(indices.shape, dtype=g.dtype, device=g.device, requires_grad=True)
        decoded = embedding_bag(indices, atoms.detach(), per_sample_weights=weights, mode="sum")
        return torch.autograd.grad(decoded, weights, g)[0]
