"""Matching pursuit: take the best aligned atom, give it its inner product, repeat."""

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.arguments import balanced, check_arrays, check_k, check_tolerance, rounding_floor
from sparsight.coding.kernels.choice import SearchMethod, blocks, resolved
from sparsight.coding.kernels.compiled import pursue
from sparsight.coding.kernels.gram import GramTable
from sparsight.coding.kernels.search import Search


@torch.no_grad()
def matching_pursuit(
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "n_latents d"],
    k: int,
    *,
    nonnegative: bool = True,
    tol: float = 0.0,
    search: SearchMethod = "auto",
) -> SparseCode:
    """Write each row of `x` as a combination of at most `k` atoms, by matching pursuit.

    With `r = x - sum_i z_i d_i`, `k` times: choose the atom with the largest `<d_j, r>` (magnitude, when signed) and
    add that inner product to `z_j`. Each step lowers `|r|^2` by its square. An atom may be chosen again, so a row may
    end with fewer than `k` non-zeros. Cheapest of the pursuits and the least accurate.

    Args:
        x: Activations less the decoder's bias, in any unit.
        atoms: Directions of unit norm.
        k: Steps, hence most non-zeros in a row. 0 gives the empty code.
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
        Mallat & Zhang, "Matching Pursuits with Time-Frequency Dictionaries", IEEE Trans. Signal Process. 41(12), 1993.
    """
    check_arrays(x, atoms)
    check_k(k, atoms.shape[0])
    check_tolerance(tol)
    n_latents = atoms.shape[0]
    scaled, scale = balanced(x)
    method = resolved(search, scaled, atoms, k)
    if isinstance(method, GramTable) and method.swept is not None:
        pursued = pursue(scaled, method.swept, k, rule="matching", nonnegative=nonnegative, tol=tol)
        codes = [SparseCode(block.indices, block.values, n_latents) for block in pursued]
    else:
        codes = [
            _pursue(block, finder, n_latents, k, nonnegative, tol)
            for block, finder in blocks(scaled, atoms, k, method, nonnegative=nonnegative, repeats=True)
        ]
    code = SparseCode.cat(codes)
    return SparseCode(code.indices, code.values * scale, n_latents)


def _pursue(
    x: Float[Tensor, "b d"], finder: Search, n_latents: int, k: int, nonnegative: bool, tol: float
) -> SparseCode:
    floor = max(tol, rounding_floor(x.dtype)) * torch.linalg.vector_norm(x, dim=1)
    indices = torch.zeros(x.shape[0], k, dtype=torch.int64, device=x.device)
    values = x.new_zeros(x.shape[0], k)
    alive = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    rows = torch.arange(x.shape[0], device=x.device)
    for t in range(k):
        chosen, score = finder.best(indices[:, :t], values[:, :t], None, alive)
        alive = alive & ((score if nonnegative else score.abs()) > floor)
        if not bool(alive.any()):
            break
        finder.add(indices[:, :t], chosen)
        indices[:, t] = chosen * alive
        # An atom that comes again goes into its first slot, and slot t stays empty.
        slot = (indices[:, : t + 1] == indices[:, t : t + 1]).int().argmax(dim=1)
        values[rows, slot] += score * alive
    return SparseCode(indices, values, n_latents)
