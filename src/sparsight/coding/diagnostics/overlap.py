"""Whether a coder avoids atoms that lie near those it has chosen already."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.kernels.search import BLOCK_BYTES
from sparsight.errors import UndefinedMetric


@torch.no_grad()
def span_overlap(
    code: SparseCode, atoms: Float[Tensor, "n_latents d"], *, probes: Int64[Tensor, "n k"] | None = None
) -> Float[Tensor, "n k"]:
    """Length of each chosen atom's projection onto the span of those chosen before it in the same row.

    `o_t = |P_{S_{t-1}} d_{j_t}|` with slots in their order, which pursuits leave in the order of choice. A coder whose
    residual is orthogonal to the atoms it has chosen sees an atom shortened to `sqrt(1 - o^2)`: it under-selects atoms
    near the span, and atoms inside it score zero.

    Args:
        code: Slots in the order of choice.
        atoms: Directions of unit norm.
        probes: Latents to project in place of the chosen ones, onto the same spans.
    Returns:
        Overlaps in `[0, 1]`; 0 in the first slot, and in empty slots unless probed.
    Raises:
        ValueError: the code is over another number of latents.
    """
    if code.n_latents != atoms.shape[0]:
        raise ValueError(f"the code is over n_latents={code.n_latents} but {atoms.shape[0]} atoms came")
    overlaps = atoms.new_zeros(len(code), code.k)
    rows = max(1, BLOCK_BYTES // (max(code.k, 1) * atoms.shape[1] * 8))
    for start in range(0, len(code), rows):
        block = slice(start, start + rows)
        chosen = atoms[code.indices[block]].double() * (code.values[block] != 0).unsqueeze(2)
        probed = chosen if probes is None else atoms[probes[block]].double()
        found, known = _by_factor(chosen, probed)
        if not bool(known.all()):
            found[~known] = _by_steps(chosen[~known], probed[~known])
        overlaps[block] = found.clamp_max(1).to(atoms.dtype)
    return overlaps


def _by_factor(
    chosen: Float[Tensor, "b k d"], probed: Float[Tensor, "b k d"]
) -> tuple[Float[Tensor, "b k"], Bool[Tensor, " b"]]:
    """Overlaps from one Cholesky factor `L` of the atoms' Gram matrix, and the rows where it can be trusted.

    `L^-1 D p` holds the coordinates of a probe `p` in the basis that orthogonalises the atoms in their order; the first
    `t` of them span what the first `t` atoms do. Rows with nearly dependent atoms are left to others.
    """
    gram = torch.bmm(chosen, chosen.mT)
    empty = torch.diagonal(gram, dim1=1, dim2=2) == 0
    # An empty slot becomes a direction of its own, orthogonal to everything.
    factor, info = torch.linalg.cholesky_ex(gram + torch.diag_embed(empty.to(gram.dtype)))
    known = (info == 0) & (torch.diagonal(factor, dim1=1, dim2=2) > 1e-3).all(dim=1)
    factor = torch.where(known[:, None, None], factor, torch.eye(factor.shape[1], dtype=gram.dtype, device=gram.device))
    coordinates = torch.linalg.solve_triangular(factor, torch.bmm(chosen, probed.mT), upper=False)
    return coordinates.triu(1).norm(dim=1), known


def _by_steps(chosen: Float[Tensor, "b k d"], probed: Float[Tensor, "b k d"]) -> Float[Tensor, "b k"]:
    """Overlaps by orthogonalising one atom after the other; atoms may be dependent."""
    overlaps = chosen.new_zeros(chosen.shape[:2])
    basis = torch.zeros_like(chosen)
    for t in range(chosen.shape[1]):
        overlaps[:, t] = _projection(basis[:, :t], probed[:, t]).norm(dim=1)
        outside = chosen[:, t] - _projection(basis[:, :t], chosen[:, t])
        length = torch.linalg.vector_norm(outside, dim=1, keepdim=True)
        # An atom inside the span adds no direction to it.
        basis[:, t] = torch.where(length > 1e-7, outside / length.clamp_min(1e-300), 0)
    return overlaps


def _projection(basis: Float[Tensor, "b t d"], vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    inside = torch.zeros_like(vectors)
    for _ in range(2):  # the second pass picks up what rounding lost in the first
        along = torch.einsum("btd,bd->bt", basis, vectors - inside)
        inside = inside + torch.einsum("btd,bt->bd", basis, along)
    return inside


@dataclass(frozen=True)
class OverlapComparison:
    """Mean span overlap of a code's atoms beside that of other atoms.

    Means are over used slots from the second on, first within rows and then over rows, the independent units.

    Attributes:
        chosen: The code's own atoms, each against those before it.
        random: Atoms drawn at random, against the same spans.
        given: Another coder's picks, each against its own earlier ones; `None` if no picks were given.
        standard_error: Of `chosen - random`, over rows; `None` from a single row.
        n_rows: Rows with two latents or more.
    """

    chosen: float
    random: float
    given: float | None
    standard_error: float | None
    n_rows: int


def compare_span_overlap(
    code: SparseCode,
    atoms: Float[Tensor, "n_latents d"],
    *,
    generator: torch.Generator,
    given: SparseCode | None = None,
) -> OverlapComparison:
    """Span overlap of a code's atoms, of random atoms in their places, and of another coder's picks.

    Args:
        code: Slots in the order of choice, as pursuits return them.
        atoms: Directions of unit norm.
        generator: Draws the random atoms; on the CPU.
        given: Say, the encoder's `k` largest latents, the largest first.
    Raises:
        ValueError: a code is over another number of latents.
        UndefinedMetric: no row uses two slots.
    """
    probes = torch.randint(code.n_latents, tuple(code.indices.shape), generator=generator)
    own = _row_means(code, span_overlap(code, atoms))
    drawn = _row_means(code, span_overlap(code, atoms, probes=probes.to(code.indices.device)))
    difference = own - drawn
    error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else None
    beside = None if given is None else float(_row_means(given, span_overlap(given, atoms)).mean())
    return OverlapComparison(float(own.mean()), float(drawn.mean()), beside, error, len(difference))


def mean_overlap(code: SparseCode, overlaps: Float[Tensor, "n k"]) -> tuple[Float64[Tensor, " n"], Bool[Tensor, " n"]]:
    """Mean overlap of each row over its used slots but the first, and which rows have any; 0 in those that have not."""
    used = code.values != 0
    counted = used & (used.cumsum(dim=1) > 1)
    n_counted = counted.sum(dim=1)
    sums = torch.where(counted, overlaps.double(), 0).sum(dim=1)
    return sums / n_counted.clamp_min(1), n_counted > 0


def _row_means(code: SparseCode, overlaps: Float[Tensor, "n k"]) -> Float64[Tensor, " m"]:
    """Mean overlaps of the rows that have one."""
    means, counted = mean_overlap(code, overlaps)
    if not bool(counted.any()):
        raise UndefinedMetric("span overlap needs a row with two latents in use, got none; raise k")
    return means[counted]
