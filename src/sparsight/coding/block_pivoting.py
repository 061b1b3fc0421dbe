"""Non-negative least squares by guessing which weights are positive, and proving the guess."""

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

# Added to the diagonal so that float32 factors exist; refinement takes its effect away.
RAISED = 1e-5
# Exchanges before a row is left to a method that cannot cycle, and refinements before its guess counts as unproven.
MOST_EXCHANGES = 12
MOST_REFINEMENTS = 8
# Exchanges of all wrong coordinates at once that may fail to lower their number.
PATIENCE = 3


def guess_and_prove(
    gram: Float[Tensor, "b k k"],
    target: Float[Tensor, "b k"],
    used: Bool[Tensor, "b k"],
    free: Bool[Tensor, "b k"],
    tolerance: Float64[Tensor, "b 1"],
) -> tuple[Float64[Tensor, "b k"], Bool[Tensor, " b"]]:
    """Weights that minimise `w' gram w / 2 - target' w` over `w >= 0`, and in which rows that is proven.

    Repeat: solve on the free coordinates, with float32 factors; free the others whose gradient is positive and fix
    those whose weight is negative, all at once while that lowers their number, then the last one alone. When none is
    wrong, refine the weights against float64 residuals and look at the optimality conditions themselves.

    Args:
        gram: Positive semi-definite blocks, unit diagonal up to rounding.
        target: `D_S x`, one entry per coordinate.
        used: Coordinates that take part.
        free: Those of them that are thought to be positive.
        tolerance: Largest gradient that counts as none.
    Returns:
        Weights, zero outside the free coordinates; where not proven, a start for another method (it may be negative).
    """
    weights = torch.zeros_like(target, dtype=torch.float64)
    proven = torch.zeros(len(target), dtype=torch.bool, device=target.device)
    # Rows of one size: a weight that is only rounding then has one meaning.
    size = target.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
    single, wanted, active = gram.float(), (target / size).float(), used
    rows = torch.arange(len(target), device=target.device)
    fewest = torch.full((len(target),), gram.shape[1] + 1, device=target.device)
    patience = torch.full_like(fewest, PATIENCE)
    for _ in range(MOST_EXCHANGES):
        factor, sound = _factors(single, free)
        solution = _solve(factor, wanted * free)
        gradient = wanted - torch.bmm(solution.unsqueeze(1), single).squeeze(1)
        # Weights and gradients within float32 rounding of 0 are left where they are: the proof will see to them.
        wrong = torch.where(free, solution < -1e-6, active & (gradient > 1e-6))
        count = wrong.sum(dim=1)
        settled = (count == 0) & sound
        ready = rows[settled]
        if len(ready) > 0:
            weights[ready], proven[ready] = _refined(
                factor[settled], gram[ready], target[ready], used[ready], free[settled], tolerance[ready]
            )
        going = (count > 0) & sound
        if not bool(going.any()):
            break
        single, wanted, active, rows = single[going], wanted[going], active[going], rows[going]
        free, count, wrong = free[going], count[going], wrong[going]
        fewest, patience = fewest[going], patience[going]
        better = count < fewest
        patience = torch.where(better, PATIENCE, patience - 1)
        fewest = torch.minimum(fewest, count)
        free = free ^ torch.where((patience >= 0).unsqueeze(1), wrong, _last_only(wrong))
    return weights, proven


def _factors(
    gram: Float32[Tensor, "b k k"], free: Bool[Tensor, "b k"]
) -> tuple[Float32[Tensor, "b k k"], Bool[Tensor, " b"]]:
    """Cholesky factors of the free blocks, the identity elsewhere; and which exist."""
    mask = free.float()
    block = gram * mask.unsqueeze(2)
    block.mul_(mask.unsqueeze(1))
    block.diagonal(dim1=1, dim2=2).add_(1 - mask + RAISED)
    factor, failed = torch.linalg.cholesky_ex(block)
    return factor, failed == 0


def _solve(factor: Float32[Tensor, "b k k"], target: Float32[Tensor, "b k"]) -> Float32[Tensor, "b k"]:
    solution: Tensor = torch.cholesky_solve(target.unsqueeze(2), factor)
    return solution.squeeze(2)


def _last_only(wrong: Bool[Tensor, "b k"]) -> Bool[Tensor, "b k"]:
    """The last true entry of each row alone: exchanging one at a time by a fixed order cannot cycle."""
    last = wrong.shape[1] - 1 - wrong.flip(1).int().argmax(dim=1, keepdim=True)
    return torch.zeros_like(wrong).scatter_(1, last, True) & wrong


def _refined(
    factor: Float32[Tensor, "b k k"],
    gram: Float[Tensor, "b k k"],
    target: Float[Tensor, "b k"],
    used: Bool[Tensor, "b k"],
    free: Bool[Tensor, "b k"],
    tolerance: Float64[Tensor, "b 1"],
) -> tuple[Float64[Tensor, "b k"], Bool[Tensor, " b"]]:
    """Weights on the free coordinates by iterative refinement, and which satisfy the optimality conditions."""
    problem, wanted = gram.double(), target.double()
    weights = torch.zeros_like(wanted)
    gradient = wanted
    for _ in range(MOST_REFINEMENTS):
        size = gradient.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        step = _solve(factor, (gradient / size).float() * free)
        weights = weights + step.double() * size
        gradient = wanted - torch.bmm(weights.unsqueeze(1), problem).squeeze(1)
        flat = ~((gradient.abs() > tolerance) & free).any(dim=1)
        if bool(flat.all()):
            break
    uphill = (gradient > tolerance) & used & ~free
    return weights, flat & ~uphill.any(dim=1) & (weights >= 0).all(dim=1)
