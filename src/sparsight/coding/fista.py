"""The lasso by accelerated proximal gradient, to a proven duality gap."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.arguments import balanced, check_arrays
from sparsight.coding.kernels.search import block_rows


@torch.no_grad()
def fista(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "n_latents d"],
    penalty: float | int | Float[Tensor, " n"],
    *,
    nonnegative: bool = True,
    max_steps: int = 2000,
    gap: float = 1e-6,
) -> SparseCode:
    """Minimise `|x - sum_j z_j d_j|^2 / 2 + penalty * sum_j |z_j|` for each row of `x`.

    FISTA with step `1 / |atoms|^2` and restarts of the momentum whenever it points uphill. A row ends when its duality
    gap, an upper bound on how far its objective is above the minimum, falls below `gap * |x|^2 / 2`; so the minimum is
    known to that precision. Rows still open after `max_steps` are returned as they are: `diagnostics.duality_gap` says
    how far they got. The penalty shrinks every value; `refit(x, atoms, code.support())` removes that.

    Args:
        x: Activations less the decoder's bias, in any unit.
        atoms: Directions of unit norm.
        penalty: Price of one unit of latent value, in the units of `x`; one for all rows or one for each. A row is all
            zero exactly when its penalty is at least its largest `<d_j, x>` (magnitude, when signed).
        nonnegative: Values at least 0; else of either sign.
        max_steps: Most proximal steps; each costs two products with all atoms.
        gap: Relative duality gap at which a row is solved.
    Returns:
        Codes in the units of `x`, without gradient, with as many slots as the fullest row needs.
    Raises:
        ValueError: a penalty is not positive; `max_steps` or `gap` out of range; `x` not finite; atoms not of unit
            norm; shapes disagree.
    Source:
        Beck & Teboulle, SIAM J. Imaging Sci. 2(1), 2009; restarts from O'Donoghue & Candès, Found. Comput. Math. 15,
        2015.
    """
    check_arrays(x, atoms)
    if max_steps < 1 or not 0 < gap < 1:
        raise ValueError(f"max_steps must be at least 1 and gap in (0, 1), got max_steps={max_steps} and gap={gap}")
    prices = torch.as_tensor(penalty, dtype=x.dtype, device=x.device).expand(x.shape[0])
    if not bool(((prices > 0) & prices.isfinite()).all()):
        raise ValueError("penalty must be positive and finite; least squares without a penalty is what refit does")
    scaled, scale = balanced(x)
    prices = prices.unsqueeze(1) / scale
    bound = largest_eigenvalue(atoms)
    codes = []
    rows = max(1, block_rows(atoms.shape[0], atoms.shape[1], 1, x.element_size(), x.device) // 4)
    for start in range(0, x.shape[0], rows):
        block = slice(start, start + rows)
        dense = _solve(scaled[block], atoms, prices[block], bound, nonnegative, max_steps, gap)
        codes.append(SparseCode.from_dense(dense))
    if not codes:
        codes = [SparseCode.from_dense(x.new_zeros(0, atoms.shape[0]))]
    code = SparseCode.cat(codes)
    return SparseCode(code.indices, code.values * scale, atoms.shape[0])


def _solve(
    x: Float[Tensor, "b d"],
    atoms: Float[Tensor, "n_latents d"],
    prices: Float[Tensor, "b 1"],
    bound: float,
    nonnegative: bool,
    max_steps: int,
    gap: float,
) -> Float[Tensor, "b n_latents"]:
    result = x.new_zeros(x.shape[0], atoms.shape[0])
    code, point = result.clone(), result.clone()
    momentum = x.new_ones(x.shape[0], 1)
    rows = torch.arange(x.shape[0], device=x.device)
    for step in range(max_steps):
        moved = point + ((x - point @ atoms) @ atoms.T) / bound
        new = _shrink(moved, prices / bound, nonnegative)
        # Momentum that points against the step just taken has overshot: start it anew.
        restart = ((point - new) * (new - code)).sum(dim=1, keepdim=True) > 0
        grown = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        push = torch.where(restart, 0, (momentum - 1) / grown)
        momentum = torch.where(restart, 1, grown)
        point, code = new + push * (new - code), new
        if step % 10 != 9 and step != max_steps - 1:
            continue
        open_rows = ~_solved(x, atoms, prices, code, nonnegative, gap)
        result[rows] = code
        rows, x, prices, code = rows[open_rows], x[open_rows], prices[open_rows], code[open_rows]
        point, momentum = point[open_rows], momentum[open_rows]
        if len(rows) == 0:
            break
    return result


def _shrink(
    moved: Float[Tensor, "b n_latents"], threshold: Float[Tensor, "b 1"], nonnegative: bool
) -> Float[Tensor, "b n_latents"]:
    if nonnegative:
        return (moved - threshold).clamp_min(0)
    return moved.sign() * (moved.abs() - threshold).clamp_min(0)


def _solved(
    x: Float[Tensor, "b d"],
    atoms: Float[Tensor, "n_latents d"],
    prices: Float[Tensor, "b 1"],
    code: Float[Tensor, "b n_latents"],
    nonnegative: bool,
    gap: float,
) -> Bool[Tensor, " b"]:
    residual = x - code @ atoms
    energy = x.square().sum(dim=1) / 2
    return lasso_gap(x, residual, residual @ atoms.T, code.abs().sum(dim=1), prices, nonnegative) <= gap * energy


def lasso_gap(
    x: Float[Tensor, "b d"],
    residual: Float[Tensor, "b d"],
    correlation: Float[Tensor, "b n_latents"],
    l1: Float[Tensor, " b"],
    prices: Float[Tensor, "b 1"],
    nonnegative: bool,
) -> Float[Tensor, " b"]:
    """Primal objective less that of the dual point `residual`, scaled into the feasible set.

    The dual is: maximise `<nu, x> - |nu|^2 / 2` over `nu` with `<d_j, nu> <= penalty` (magnitude, when signed) for
    all `j`; no dual value exceeds a primal one.
    """
    largest = (correlation if nonnegative else correlation.abs()).amax(dim=1, keepdim=True)
    shrunk = residual * torch.where(largest > prices, prices / largest, 1)
    primal = residual.square().sum(dim=1) / 2 + prices.squeeze(1) * l1
    # <nu, x> - |nu|^2 / 2, written so that equal primal and dual cancel with little rounding
    dual = (shrunk * (x - shrunk / 2)).sum(dim=1)
    return primal - dual


def largest_eigenvalue(atoms: Float[Tensor, "n_latents d"]) -> float:
    """Largest eigenvalue of `atoms' atoms`, rounded up by a little: the Lipschitz constant of the gradient."""
    gram = atoms.T @ atoms if atoms.shape[1] <= atoms.shape[0] else atoms @ atoms.T
    return float(torch.linalg.eigvalsh(gram.double())[-1]) * (1 + 1e-6)
