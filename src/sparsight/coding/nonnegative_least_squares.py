"""Many small least-squares problems at once, given by their Gram matrices."""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sparsight.coding.block_pivoting import guess_and_prove


def least_squares(
    gram: Float[Tensor, "b k k"], target: Float[Tensor, "b k"], used: Bool[Tensor, "b k"]
) -> Float[Tensor, "b k"]:
    """Minimise `w' gram w / 2 - target' w` over the used coordinates of each row; the others are 0.

    Cholesky factors where the used block is well conditioned, else the solution of least norm by an eigendecomposition:
    two copies of one atom share the weight.

    Args:
        gram: Positive semi-definite blocks, unit diagonal up to rounding.
        target: `D_S x`, one entry per coordinate.
        used: Coordinates that take part.
    Returns:
        The minimiser, computed in float64 and returned in the dtype of `gram`.
    """
    if target.numel() == 0:
        return torch.zeros_like(target)
    floor = _pivot_floor(gram.dtype)
    singular, solution = _factorised(gram, target, used, floor)
    if bool(singular.any()):
        block = _masked(gram[singular], used[singular])
        inverse = torch.linalg.pinv(block, rtol=floor, hermitian=True)
        wanted = (target[singular] * used[singular]).double()
        solution[singular] = (inverse @ wanted.unsqueeze(-1)).squeeze(-1)
    return torch.where(used, solution, 0).to(gram.dtype)


def nonnegative_least_squares(
    gram: Float[Tensor, "b k k"],
    target: Float[Tensor, "b k"],
    used: Bool[Tensor, "b k"],
    start: Float[Tensor, "b k"] | None = None,
) -> Float[Tensor, "b k"]:
    """Minimise `w' gram w / 2 - target' w` over `w >= 0`, zero outside the used coordinates.

    A guess, a proof, and a method that cannot fail for the rows without proof. The guess exchanges whole sets of
    coordinates between free and fixed (block principal pivoting) with float32 factors. A row is done when its weights,
    refined in float64, satisfy the optimality conditions: none negative, no gradient on the free ones, none positive
    on the others. Every other row goes on from there with the active-set method of Lawson and Hanson: walk towards the
    solution on the free coordinates until the first would turn negative and fix that one at 0, free the coordinate
    with the most positive gradient when the solution is feasible, end when no gradient is positive. The objective
    never rises, so every row ends; atoms that depend on the free ones have no gradient and are never freed.

    Args:
        gram: Positive semi-definite blocks, unit diagonal up to rounding.
        target: `D_S x`, one entry per coordinate.
        used: Coordinates that take part.
        start: A feasible point to start from; its support is the first free set. From a good one few steps are left.
    Returns:
        The minimiser to a gradient of 1e-12 (float64) or 1e-6 (float32) of the largest target.
    Source:
        Lawson & Hanson, "Solving Least Squares Problems", chapter 23, 1974; Kim & Park, "Fast Nonnegative Matrix
        Factorization: An Active-Set-Like Method and Comparisons", SIAM J. Sci. Comput. 33(6), 2011 (the exchanges).
        We batch both and work on Gram matrices.
    """
    n_rows, k = target.shape
    if n_rows == 0 or k == 0:
        return torch.zeros_like(target)
    weights = torch.zeros_like(target)
    free = used if start is None else used & (start > 0)
    rows = _block_rows(k, target.device)
    for first in range(0, n_rows, rows):
        part = slice(first, first + rows)
        weights[part] = _solve_block(gram[part], target[part], used[part], free[part])
    return weights


def _solve_block(
    gram: Float[Tensor, "b k k"], target: Float[Tensor, "b k"], used: Bool[Tensor, "b k"], free: Bool[Tensor, "b k"]
) -> Float[Tensor, "b k"]:
    tolerance = gradient_tolerance(gram.dtype) * target.abs().amax(dim=1, keepdim=True).double()
    weights, proven = guess_and_prove(gram, target, used, free, tolerance)
    rest = (~proven).nonzero().squeeze(1)
    if len(rest) > 0:
        floor = _pivot_floor(gram.dtype)
        start = weights[rest].clamp_min(0)
        weights[rest] = active_set(
            gram[rest].double(), target[rest].double(), used[rest], start, tolerance[rest].squeeze(1), floor
        )
    return weights.to(gram.dtype)


def active_set(
    gram: Float64[Tensor, "b k k"],
    target: Float64[Tensor, "b k"],
    used: Bool[Tensor, "b k"],
    start: Float64[Tensor, "b k"],
    tolerance: Float64[Tensor, " b"],
    floor: float,
) -> Float64[Tensor, "b k"]:
    """Lawson and Hanson's method from a feasible start, to a gradient of `tolerance`; pivots below `floor` are zero."""
    n_rows, k = target.shape
    weights = torch.where(used, start, 0)
    free = weights > 0
    rows = torch.arange(n_rows, device=target.device)
    # Each pass frees or fixes one coordinate per row; a finite method needs a few k of them.
    for _ in range(20 * k + 20):
        problem, wanted = gram[rows], target[rows]
        weights[rows], free[rows], feasible = _walk(problem, wanted, weights[rows], free[rows], floor)
        gradient = wanted - (problem @ weights[rows].unsqueeze(-1)).squeeze(-1)
        gradient = gradient.masked_fill(free[rows] | ~used[rows], -torch.inf)
        steepest, coordinate = gradient.max(dim=1)
        grow = feasible & (steepest > tolerance[rows])
        free[rows[grow], coordinate[grow]] = True
        rows = rows[grow | ~feasible]
        if len(rows) == 0:
            break
    return weights


def _walk(
    gram: Float[Tensor, "b k k"],
    target: Float[Tensor, "b k"],
    weights: Float[Tensor, "b k"],
    free: Bool[Tensor, "b k"],
    floor: float,
) -> tuple[Float[Tensor, "b k"], Bool[Tensor, "b k"], Bool[Tensor, " b"]]:
    """Go towards the solution on the free coordinates, as far as it stays feasible; say which rows arrived."""
    solution = _factorised(gram, target, free, floor)[1]
    solution = torch.where(free, solution, 0)
    blocked = free & (solution <= 0)
    feasible = ~blocked.any(dim=1)
    # Along the way, coordinate i reaches 0 at this fraction of the walk.
    fraction = torch.where(
        blocked, weights / (weights - solution).clamp_min(torch.finfo(weights.dtype).tiny), torch.inf
    )
    reach = fraction.amin(dim=1, keepdim=True).clamp_max(1)
    moved = (weights + reach * (solution - weights)).clamp_min(0)
    fixed = blocked & (fraction <= reach)
    moved = torch.where(fixed, 0, moved)
    return torch.where(feasible.unsqueeze(1), solution, moved), free & ~fixed, feasible


def _factorised(
    gram: Float[Tensor, "b k k"], target: Float[Tensor, "b k"], used: Bool[Tensor, "b k"], floor: float
) -> tuple[Bool[Tensor, " b"], Float[Tensor, "b k"]]:
    """Which used blocks are singular to working precision, and the solutions by Cholesky factors, in float64.

    A pivot below `floor` counts as zero. The diagonal of a singular block is raised by that much, so that its solution
    is finite and nearly the best.
    """
    block = _masked(gram, used)
    factor, failed = torch.linalg.cholesky_ex(block)
    # A squared pivot is the squared sine between an atom and the span of those before it.
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    singular = (failed > 0) | ~(pivots > floor).all(dim=1)
    if bool(singular.any()):
        raised = block[singular]
        raised.diagonal(dim1=-2, dim2=-1).add_(floor)
        factor[singular] = torch.linalg.cholesky(raised)
    wanted = (target * used).double().unsqueeze(-1)
    return singular, torch.cholesky_solve(wanted, factor).squeeze(-1)


def _masked(gram: Float[Tensor, "b k k"], used: Bool[Tensor, "b k"]) -> Float[Tensor, "b k k"]:
    both = used.unsqueeze(-1) & used.unsqueeze(-2)
    block = torch.where(both, gram.double(), 0)
    block.diagonal(dim1=-2, dim2=-1).add_((~used).double())
    return block


def gradient_tolerance(dtype: torch.dtype) -> float:
    """Largest gradient that counts as none, relative to the largest target."""
    return 1e-12 if dtype == torch.float64 else 1e-6


def _pivot_floor(dtype: torch.dtype) -> float:
    """Below this a squared pivot of inner products in this precision is only rounding."""
    return 1e-11 if dtype == torch.float64 else 1e-5


def _block_rows(k: int, device: torch.device) -> int:
    """Rows whose Gram blocks stay in the cache of a CPU."""
    return max(16, 2**20 // (k * k)) if device.type == "cpu" else max(16, 2**26 // (k * k))
