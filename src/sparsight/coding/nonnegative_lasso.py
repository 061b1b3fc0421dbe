"""The non-negative lasso, solved exactly on a few atoms of each row, more of them until no other belongs there."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.arguments import balanced, check_arrays, check_code
from sparsight.coding.fista import lasso_gap
from sparsight.coding.kernels.search import block_rows
from sparsight.coding.nonnegative_least_squares import gradient_tolerance, nonnegative_least_squares

# Atoms that may join a row's working set in one round, and rounds before a row is returned as it is.
JOIN = 16
MOST_ROUNDS = 100


@torch.no_grad()
def nonnegative_lasso(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "n_latents d"],
    penalty: float | int | Float[Tensor, " n"],
    *,
    start: SparseCode | None = None,
    gap: float = 1e-6,
) -> SparseCode:
    """Minimise `|x - sum_j z_j d_j|^2 / 2 + penalty * sum_j z_j` over `z >= 0`, for each row of `x`.

    The minimum of `fista`, found in another way that costs one product with all atoms in each of a few rounds. On a
    working set `W` the problem is non-negative least squares with the target `<d_j, x> - penalty`, and is solved by
    that. Then the atoms outside `W` with `<d_j, r> > penalty` join it, the largest first, those whose value is 0 leave,
    and the next round begins. The objective falls in every round, so no working set comes twice. A row ends when its
    duality gap over all atoms falls below `gap * |x|^2 / 2`, as in `fista`, or when no atom is left that exceeds the
    penalty by more than rounding; `diagnostics.duality_gap` says how far it got.

    Args:
        x: Activations less the decoder's bias, in any unit.
        atoms: Directions of unit norm.
        penalty: Price of one unit of latent value, in the units of `x`; one for all rows or one for each.
        start: A code of these rows whose support is the first working set: that of a higher penalty saves rounds.
        gap: Relative duality gap at which a row is solved.
    Returns:
        Codes in the units of `x`, without gradient, with as many slots as the fullest row needs.
    Raises:
        ValueError: a penalty is not positive; `gap` out of range; `x` not finite; atoms not of unit norm; shapes
            disagree.
    Source:
        The step from the lasso to non-negative least squares is elementary; working sets as in Lee, Battle, Raina & Ng,
        "Efficient sparse coding algorithms", NeurIPS 2006, batched and certified by the gap.
    """
    check_arrays(x, atoms)
    if start is not None:
        check_code(x, start, atoms)
    if not 0 < gap < 1:
        raise ValueError(f"gap must be in (0, 1), got gap={gap}")
    prices = torch.as_tensor(penalty, dtype=x.dtype, device=x.device).expand(x.shape[0])
    if not bool(((prices > 0) & prices.isfinite()).all()):
        raise ValueError("penalty must be positive and finite; least squares without a penalty is what refit does")
    scaled, scale = balanced(x)
    prices = prices.unsqueeze(1) / scale
    support = torch.full((len(x), 0), -1, device=x.device) if start is None else _packed(start.support())
    rows = block_rows(atoms.shape[0], atoms.shape[1], 4 * JOIN, x.element_size(), x.device)
    codes = [
        _solve(scaled[block], atoms, prices[block], support[block], gap)
        for block in (slice(first, first + rows) for first in range(0, max(1, len(x)), rows))
    ]
    code = SparseCode.cat(codes)
    return SparseCode(code.indices, code.values * scale, atoms.shape[0])


def _solve(
    x: Float[Tensor, "b d"],
    atoms: Float[Tensor, "n_latents d"],
    prices: Float[Tensor, "b 1"],
    support: Int64[Tensor, "b k"],
    gap: float,
) -> SparseCode:
    """One block of rows; `support` holds -1 in empty slots."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    rows = torch.arange(len(x), device=x.device)
    limit = gap * x.square().sum(dim=1) / 2
    # What least squares on the working set would not notice is no reason to join.
    floor = prices + 2 * gradient_tolerance(x.dtype) * torch.linalg.vector_norm(x, dim=1, keepdim=True)
    for turn in range(MOST_ROUNDS):
        values = _on_working_set(x, atoms, prices, support)
        residual = x - SparseCode(support.clamp_min(0), values, len(atoms)).decode(atoms)
        correlation = residual @ atoms.T
        excess = lasso_gap(x, residual, correlation, values.sum(dim=1), prices, True)
        support = torch.where(values > 0, support, -1)
        joining = _joining(correlation, floor, support)
        ended = (excess <= limit) | (joining < 0).all(dim=1) | (turn == MOST_ROUNDS - 1)
        found.append((rows[ended], support[ended], values[ended]))
        going = ~ended
        if not bool(going.any()):
            break
        rows, x, prices, limit, floor = rows[going], x[going], prices[going], limit[going], floor[going]
        support = _packed(torch.cat([support[going], joining[going]], dim=1))
    parts = [SparseCode(kept.clamp_min(0), values, len(atoms)) for _, kept, values in found]
    order = torch.cat([ids for ids, _, _ in found]).argsort()
    return SparseCode.cat(parts)[order]


def _on_working_set(
    x: Float[Tensor, "b d"],
    atoms: Float[Tensor, "n_latents d"],
    prices: Float[Tensor, "b 1"],
    support: Int64[Tensor, "b k"],
) -> Float[Tensor, "b k"]:
    """The lasso's values where only the atoms of the support may be used."""
    used: Bool[Tensor, "b k"] = support >= 0
    chosen = atoms.index_select(0, support.clamp_min(0).reshape(-1)).view(*support.shape, atoms.shape[1])
    gram = torch.bmm(chosen, chosen.transpose(1, 2))
    target = torch.bmm(x.unsqueeze(1), chosen.transpose(1, 2)).squeeze(1) - prices
    return nonnegative_least_squares(gram, target, used)


def _joining(
    correlation: Float[Tensor, "b n_latents"], floor: Float[Tensor, "b 1"], support: Int64[Tensor, "b k"]
) -> Int64[Tensor, "b m"]:
    """The atoms outside the support whose correlation exceeds the floor most, -1 where there are fewer."""
    outside = correlation.clone()
    rows, slots = (support >= 0).nonzero(as_tuple=True)
    outside[rows, support[rows, slots]] = -torch.inf
    best = outside.topk(min(JOIN, outside.shape[1]), dim=1)
    return torch.where(best.values > floor, best.indices, -1)


def _packed(support: Int64[Tensor, "b k"]) -> Int64[Tensor, "b k_used"]:
    """The same latents, in as few slots as the fullest row needs."""
    order = (support >= 0).int().argsort(dim=1, descending=True, stable=True)
    most = int((support >= 0).sum(dim=1).max()) if len(support) else 0
    return support.gather(1, order)[:, :most]
