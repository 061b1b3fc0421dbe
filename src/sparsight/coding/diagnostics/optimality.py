"""How far a code is from the best one of its kind."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.arguments import balanced, check_code
from sparsight.coding.fista import lasso_gap
from sparsight.coding.kernels.search import BLOCK_BYTES, block_rows


@torch.no_grad()
def kkt_residual(
    x: Float[Tensor, "n d"],
    code: SparseCode,
    atoms: Float[Tensor, "n_latents d"],
    *,
    support: Int64[Tensor, "n s"] | None = None,
    nonnegative: bool = True,
) -> Float[Tensor, " n"]:
    """How far each row of a code is from the best weights on its support, in the units of `x`.

    With `r` the residual, the optimum has `<d_i, r> = 0` wherever `z_i` is not zero, and on the rest of the support
    `<d_i, r> <= 0` (non-negative codes) or `= 0` (signed ones). Returned is the largest violation in each row.

    Args:
        x: Activations less the decoder's bias.
        code: A code of them over these atoms.
        atoms: Directions of unit norm.
        support: Latents that were allowed to be used, a negative entry being none; else those in use.
        nonnegative: Which of the two conditions holds on the unused part of the support.
    Returns:
        0 at the optimum, at most `|x - x_hat|`.
    Raises:
        ValueError: `x` not finite; atoms not of unit norm; the code is not of these activations over these atoms.
    """
    check_code(x, code, atoms)
    members = code.support() if support is None else torch.cat([code.support(), support], dim=1)
    result = x.new_zeros(x.shape[0])
    if members.shape[1] == 0:
        return result
    rows = max(1, BLOCK_BYTES // (members.shape[1] * x.shape[1] * x.element_size()))
    for start in range(0, x.shape[0], rows):
        block = slice(start, start + rows)
        latents = members[block].clamp_min(0)
        residual = x[block] - code[block].decode(atoms)
        gradient = torch.einsum("bkd,bd->bk", atoms[latents], residual)
        used = (latents.unsqueeze(2) == code.support()[block].unsqueeze(1)).any(dim=2)
        broken = torch.where(used, gradient.abs(), gradient.clamp_min(0) if nonnegative else gradient.abs())
        result[block] = broken.masked_fill(members[block] < 0, 0).amax(dim=1)
    return result


@torch.no_grad()
def duality_gap(
    x: Float[Tensor, "n d"],
    code: SparseCode,
    atoms: Float[Tensor, "n_latents d"],
    penalty: float | int | Float[Tensor, " n"],
    *,
    nonnegative: bool = True,
) -> Float[Tensor, " n"]:
    """Upper bound on how far each row's lasso objective is above the minimum, in squared units of `x`.

    The objective is `|x - x_hat|^2 / 2 + penalty * sum |z|`. The bound is what it exceeds the dual objective by, at the
    residual scaled into the dual feasible set; no dual value exceeds a primal one. 0 proves the code optimal; rounding
    can bring the bound slightly below 0.

    Raises:
        ValueError: `x` not finite; atoms not of unit norm; the code is not of these activations over these atoms.
    """
    check_code(x, code, atoms)
    prices = torch.as_tensor(penalty, dtype=x.dtype, device=x.device).expand(x.shape[0]).unsqueeze(1)
    result = x.new_zeros(x.shape[0])
    scaled, scale = balanced(x)
    rows = block_rows(atoms.shape[0], atoms.shape[1], 1, x.element_size())
    for start in range(0, x.shape[0], rows):
        block = slice(start, start + rows)
        unit = scale[block]
        values = code.values[block] / unit
        residual = scaled[block] - SparseCode(code.indices[block], values, code.n_latents).decode(atoms)
        l1 = values.abs().sum(dim=1)
        gap = lasso_gap(scaled[block], residual, residual @ atoms.T, l1, prices[block] / unit, nonnegative)
        result[block] = gap * unit.squeeze(1).square()
    return result
