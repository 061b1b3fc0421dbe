"""Gradient pursuit: choose as matching pursuit does, then move all chosen weights along their gradient."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.arguments import balanced, check_arrays, check_k, check_tolerance, rounding_floor
from sparsight.coding.kernels.choice import SearchMethod, blocks, resolved
from sparsight.coding.kernels.compiled import Pursued, pursue
from sparsight.coding.kernels.gram import GramTable
from sparsight.coding.kernels.search import Search
from sparsight.coding.nonnegative_least_squares import least_squares, nonnegative_least_squares
from sparsight.coding.supports import Supports, times


@torch.no_grad()
def gradient_pursuit(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "n_latents d"],
    k: int,
    *,
    nonnegative: bool = True,
    tol: float = 0.0,
    inner_steps: int = 1,
    polish: bool = False,
    search: SearchMethod = "auto",
) -> SparseCode:
    """Write each row of `x` as a combination of at most `k` atoms, by gradient pursuit.

    With `r = x - sum_i z_i d_i`, repeat: choose the atom outside the support with the largest `<d_j, r>` (magnitude,
    when signed); take an exact line search of `|r|^2` along its gradient `g` on the support, `z += a g` with
    `a = |g|^2 / |sum_i g_i d_i|^2`. Non-negative codes move along the feasible part of the gradient (a zero weight is
    not pushed below zero) and stop at the first weight that reaches zero. The loss never rises with `k`.

    Args:
        x: Activations less the decoder's bias, in any unit.
        atoms: Directions of unit norm.
        k: Most non-zeros in a row. 0 gives the empty code.
        nonnegative: Values at least 0, as sparse autoencoders write them; else of either sign.
        tol: Stop a row once no atom's inner product with its residual exceeds `tol` times the norm of the row. At 0 a
            row stops when only rounding is left.
        inner_steps: Line searches after each choice: 1 is gradient pursuit, more approach orthogonal matching pursuit.
        polish: Solve (non-negative) least squares on the final support.
        search: How the best atom is found, never which: `"dense"`, `"gram"`, a `GramTable` to use in many calls, or
            `"auto"` (see `docs/coding.md`).
    Returns:
        Codes in the units of `x`, without gradient. Rows do not depend on the others in their batch beyond rounding.
    Raises:
        ValueError: `k`, `tol` or `inner_steps` out of range; `x` not finite; atoms not of unit norm; shapes disagree.
    Source:
        Blumensath & Davies, "Gradient Pursuits", IEEE Trans. Signal Process. 56(6), 2008. For non-negative codes we
        depart from it by feasible directions and the ratio test; clipping after a full step can raise the loss.
    """
    check_arrays(x, atoms)
    check_k(k, atoms.shape[0])
    check_tolerance(tol)
    if inner_steps < 1:
        raise ValueError(f"inner_steps must be at least 1, got {inner_steps}; 1 is gradient pursuit")
    n_latents = atoms.shape[0]
    scaled, scale = balanced(x)
    method = resolved(search, scaled, atoms, k)
    if isinstance(method, GramTable) and method.swept is not None:
        pursued = pursue(
            scaled,
            method.swept,
            k,
            rule="gradient",
            nonnegative=nonnegative,
            tol=tol,
            inner_steps=inner_steps,
        )
        codes = [_compiled_code(block, nonnegative, polish, n_latents) for block in pursued]
    else:
        codes = [
            _pursue(block, finder, n_latents, k, nonnegative, tol, inner_steps, polish)
            for block, finder in blocks(scaled, atoms, k, method, nonnegative=nonnegative)
        ]
    code = SparseCode.cat(codes)
    return SparseCode(code.indices, code.values * scale, n_latents)


def _pursue(
    x: Float[Tensor, "b d"],
    finder: Search,
    n_latents: int,
    k: int,
    nonnegative: bool,
    tol: float,
    inner_steps: int,
    polish: bool,
) -> SparseCode:
    floor = max(tol, rounding_floor(x.dtype)) * torch.linalg.vector_norm(x, dim=1)
    support = Supports(x.shape[0], k, x)
    values = x.new_zeros(x.shape[0], k)
    alive = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    for t in range(k):
        chosen, score = finder.best(support.indices[:, :t], values[:, :t], support.gram[:, :t, :t], alive)
        alive = alive & ((score if nonnegative else score.abs()) > floor)
        if not bool(alive.any()):
            break
        support.add(finder, chosen, alive)
        for _ in range(inner_steps):
            moved = _line_search(support, values[:, : t + 1], nonnegative)
            values[:, : t + 1] = torch.where(alive.unsqueeze(1), moved, values[:, : t + 1])
    if polish:
        values = _polished(support.gram, support.target, support.used, values, nonnegative)
    return SparseCode(support.indices, values, n_latents)


def _compiled_code(block: Pursued, nonnegative: bool, polish: bool, n_latents: int) -> SparseCode:
    values = block.values
    if polish:
        values = _polished(block.gram, block.target, block.used, values, nonnegative)
    return SparseCode(block.indices, values, n_latents)


def _polished(
    gram: Float[Tensor, "b k k"],
    target: Float[Tensor, "b k"],
    used: Bool[Tensor, "b k"],
    values: Float[Tensor, "b k"],
    nonnegative: bool,
) -> Float[Tensor, "b k"]:
    if nonnegative:
        return nonnegative_least_squares(gram, target, used, start=values)
    return least_squares(gram, target, used)


def _line_search(support: Supports, values: Float[Tensor, "b t"], nonnegative: bool) -> Float[Tensor, "b t"]:
    """The values after one exact line search along the (feasible) gradient."""
    t = support.size
    gradient = support.gradient(values)
    if nonnegative:
        gradient = gradient.masked_fill((values == 0) & (gradient < 0), 0)
    slope = gradient.square().sum(dim=1, keepdim=True)
    curvature = (gradient * times(support.gram[:, :t, :t], gradient)).sum(dim=1, keepdim=True)
    # Nowhere to go: 0 / tiny = 0, where 0 / 0 would poison the row with NaN.
    step = slope / curvature.clamp_min(torch.finfo(values.dtype).tiny)
    if not nonnegative:
        return values + step * gradient
    room = torch.where(gradient < 0, values / -gradient, torch.inf)
    step = torch.minimum(step, room.amin(dim=1, keepdim=True))
    return torch.where(room <= step, 0, values + step * gradient).clamp_min(0)
