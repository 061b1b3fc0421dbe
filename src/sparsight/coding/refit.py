"""Weights on a support that something else has chosen."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.arguments import balanced, check_arrays
from sparsight.coding.kernels.search import block_bytes
from sparsight.coding.nonnegative_least_squares import least_squares, nonnegative_least_squares


@torch.no_grad()
def refit(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "n_latents d"],
    support: Int64[Tensor, "n k"],
    *,
    nonnegative: bool = True,
) -> SparseCode:
    """Write each row of `x` with the atoms of its support and the best weights there are.

    Minimises `|x - sum_i z_i d_i|^2` over the `k` atoms of each row, with `z >= 0` unless signed. The optimum on a
    fixed support; so its gradient with respect to the atoms is that of the loss at fixed codes (envelope theorem).

    Args:
        x: Activations less the decoder's bias, in any unit.
        atoms: Directions of unit norm.
        support: Latents of each row. A negative entry is an empty slot; a latent that comes twice counts once.
            `SparseCode.support()` writes a code's support like this.
        nonnegative: Values at least 0; else of either sign, with least norm where the atoms are dependent.
    Returns:
        Codes in the units of `x` with slots in the order of `support`; empty, repeated and inactive slots hold 0.
    Raises:
        ValueError: a support names a latent that does not exist; `x` not finite; atoms not of unit norm; shapes
            disagree.
    """
    check_arrays(x, atoms)
    n_latents, d = atoms.shape
    if support.dim() != 2 or support.shape[0] != x.shape[0]:
        raise ValueError(f"support must be [n, k] with n={x.shape[0]} rows as x has, got {list(support.shape)}")
    if support.numel() > 0 and int(support.max()) >= n_latents:
        raise ValueError(f"support must name latents below n_latents={n_latents}, got {int(support.max())}")
    k = support.shape[1]
    used = (support >= 0) & ~_repeated(support)
    indices = support.clamp_min(0)
    scaled, scale = balanced(x)
    values = torch.zeros(support.shape, dtype=x.dtype, device=x.device)
    rows = max(1, block_bytes(x.device) // (max(k, 1) * max(k, d) * 8))
    for start in range(0, x.shape[0], rows):
        block = slice(start, start + rows)
        part = indices[block]
        chosen = atoms.index_select(0, part.reshape(-1)).view(*part.shape, d)
        gram = torch.bmm(chosen, chosen.transpose(1, 2))
        target = torch.bmm(scaled[block].unsqueeze(1), chosen.transpose(1, 2)).squeeze(1)
        if nonnegative:
            values[block] = nonnegative_least_squares(gram, target, used[block])
        else:
            values[block] = least_squares(gram, target, used[block])
    return SparseCode(indices, values * scale, n_latents)


def _repeated(support: Int64[Tensor, "n k"]) -> Bool[Tensor, "n k"]:
    """Slots whose latent an earlier slot of the row names already."""
    ordered, order = support.sort(dim=1, stable=True)
    again = torch.zeros_like(support, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter_(1, order, again)
