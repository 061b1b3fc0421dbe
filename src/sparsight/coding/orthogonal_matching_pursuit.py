"""Orthogonal matching pursuit: after each choice, the best weights on all atoms chosen so far."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.arguments import balanced, check_arrays, check_k, check_tolerance, rounding_floor
from sparsight.coding.kernels.choice import SearchMethod, blocks, resolved
from sparsight.coding.kernels.compiled import pursue
from sparsight.coding.kernels.gram import GramTable
from sparsight.coding.kernels.search import Search
from sparsight.coding.nonnegative_least_squares import nonnegative_least_squares
from sparsight.coding.supports import Supports


@torch.no_grad()
def orthogonal_matching_pursuit(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "n_latents d"],
    k: int,
    *,
    nonnegative: bool = True,
    tol: float = 0.0,
    search: SearchMethod = "auto",
) -> SparseCode:
    """Write each row of `x` as a combination of at most `k` atoms, by orthogonal matching pursuit.

    With `r = x - sum_i z_i d_i`, `k` times: choose the atom outside the support with the largest `<d_j, r>` (magnitude,
    when signed), then solve least squares on the support, with `z >= 0` unless signed. Signed codes update one Cholesky
    factor per row; non-negative ones go on from the last solution by the active-set method, and an atom whose weight
    falls to zero stays in the support, from where it may come back.

    The residual is orthogonal to the active atoms, so an atom close to their span is chosen late even where it is truly
    there: of near-duplicates, this coder tends to take one (`diagnostics.span_overlap` measures it).

    Args:
        x: Activations less the decoder's bias, in any unit.
        atoms: Directions of unit norm.
        k: Atoms chosen, hence most non-zeros in a row. 0 gives the empty code.
        nonnegative: Values at least 0; else of either sign.
        tol: Stop a row once no inner product exceeds `tol` times the norm of the row. At 0 a row stops when only
            rounding is left.
        search: How the best atom is found, never which: `"dense"`, `"gram"`, a `GramTable` to use in many calls, or
            `"auto"` (see `docs/coding.md`).
    Returns:
        Codes in the units of `x`, without gradient. Rows do not depend on the others in their batch beyond rounding.
    Raises:
        ValueError: `k` or `tol` out of range; `x` not finite; atoms not of unit norm; shapes disagree.
    Source:
        Pati, Rezaiifar & Krishnaprasad, Asilomar 1993 (signed); Bruckstein, Elad & Zibulevsky, IEEE Trans. Inf. Theory
        54(11), 2008 (non-negative).
    """
    check_arrays(x, atoms)
    check_k(k, atoms.shape[0])
    check_tolerance(tol)
    n_latents = atoms.shape[0]
    scaled, scale = balanced(x)
    method = resolved(search, scaled, atoms, k)
    if isinstance(method, GramTable) and method.swept is not None:
        pursued = pursue(scaled, method.swept, k, rule="orthogonal", nonnegative=nonnegative, tol=tol)
        codes = [SparseCode(block.indices, block.values, n_latents) for block in pursued]
    else:
        codes = [
            _pursue(block, finder, n_latents, k, nonnegative, tol)
            for block, finder in blocks(scaled, atoms, k, method, nonnegative=nonnegative)
        ]
    code = SparseCode.cat(codes)
    return SparseCode(code.indices, code.values * scale, n_latents)


def _pursue(
    x: Float[Tensor, "b d"], finder: Search, n_latents: int, k: int, nonnegative: bool, tol: float
) -> SparseCode:
    floor = max(tol, rounding_floor(x.dtype)) * torch.linalg.vector_norm(x, dim=1)
    support = Supports(x.shape[0], k, x)
    values = x.new_zeros(x.shape[0], k)
    factors = None if nonnegative else CholeskyFactors(x.shape[0], k, x)
    alive = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    for t in range(k):
        chosen, score = finder.best(support.indices[:, :t], values[:, :t], support.gram[:, :t, :t], alive)
        alive = alive & ((score if nonnegative else score.abs()) > floor)
        if not bool(alive.any()):
            break
        support.add(finder, chosen, alive)
        if factors is not None:
            values[:, : t + 1] = factors.extend_and_solve(support, alive)
        else:
            values[alive, : t + 1] = _nonnegative_weights(support, values[:, : t + 1], alive)
    return SparseCode(support.indices, values, n_latents)


def _nonnegative_weights(
    support: Supports, values: Float[Tensor, "b t"], alive: Bool[Tensor, " b"]
) -> Float[Tensor, "a t"]:
    t = support.size
    start = values[alive].clone()
    # The new atom has a positive gradient: a small feasible weight puts it into the first free set.
    start[:, -1] = torch.finfo(values.dtype).tiny
    return nonnegative_least_squares(
        support.gram[alive, :t, :t], support.target[alive, :t], support.used[alive, :t], start=start
    )


class CholeskyFactors:
    """Lower factors `L L' = gram` of supports that grow by one atom a step, and `L^-1 target`.

    An atom that depends on those before it has no pivot; it gets a unit pivot and no weight.
    """

    def __init__(self, n_rows: int, k: int, like: Float[Tensor, "..."]) -> None:
        self.lower = torch.eye(k, dtype=like.dtype, device=like.device).repeat(n_rows, 1, 1)
        self.half = like.new_zeros(n_rows, k, 1)
        # The pivot is the squared sine between the atom and the span of the others.
        self.smallest_pivot = 64 * torch.finfo(like.dtype).eps

    def extend_and_solve(self, support: Supports, alive: Bool[Tensor, " b"]) -> Float[Tensor, "b t"]:
        """Add the newest atom of each row that is alive, and solve for the weights of all."""
        t = support.size - 1
        row = support.gram[:, t, :t].unsqueeze(2)
        solved = torch.linalg.solve_triangular(self.lower[:, :t, :t], row, upper=False)
        pivot = support.gram[:, t, t] - solved.square().sum(dim=(1, 2))
        sound = alive & (pivot > self.smallest_pivot)
        root = torch.where(sound, pivot, 1).sqrt()
        explained = (solved * self.half[:, :t]).sum(dim=(1, 2))
        self.lower[:, t, :t] = torch.where(sound.unsqueeze(1), solved.squeeze(2), 0)
        self.lower[:, t, t] = root
        self.half[:, t, 0] = torch.where(sound, (support.target[:, t] - explained) / root, 0)
        grown = self.lower[:, : t + 1, : t + 1]
        weights: Tensor = torch.linalg.solve_triangular(grown.transpose(1, 2), self.half[:, : t + 1], upper=True)
        return weights.squeeze(2)
