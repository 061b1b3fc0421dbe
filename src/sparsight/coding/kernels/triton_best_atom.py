"""The best atom of each row without its scores ever reaching memory: a Triton kernel.

Import only where Triton is installed. Checked against `plain_best_atom` by Triton's interpreter
(`TRITON_INTERPRET=1`); its speed has not been measured, for want of a GPU.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

# Rows, atoms and dimensions of one tile.
TILE_ROWS, TILE_ATOMS, TILE_DIMS = 64, 128, 32
# Programs wanted at least, so that few rows still fill a GPU: the atoms are split among them.
PROGRAMS = 512


def fused_best_atom(
    residual: Float[Tensor, "b d"],
    atoms: Float[Tensor, "n_latents d"],
    taken: Int64[Tensor, "b t"],
    *,
    nonnegative: bool,
) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
    """`argmax_j <d_j, r>` (magnitude, when signed) over the atoms not taken, and that inner product with its sign.

    A program owns some rows and a share of the atoms. It multiplies tile by tile and keeps each row's best so far; a
    tile whose winner is taken gives it up and looks again. The shares are compared at the end.

    Args:
        residual: Rows, float32.
        atoms: Unit rows, float32, at least one more than `t`. Products are those of float32, not of fewer bits.
        taken: Atoms that may not be chosen.
        nonnegative: Best means the largest inner product; else the largest magnitude.
    Returns:
        Index and score; the lowest index among equals.
    """
    n_rows, d = residual.shape
    n_latents, t = atoms.shape[0], taken.shape[1]
    if n_rows == 0:
        return taken.new_zeros(0), residual.new_zeros(0)
    residual, atoms, taken = residual.contiguous(), atoms.contiguous(), taken.contiguous()
    row_programs = triton.cdiv(n_rows, TILE_ROWS)
    tiles = triton.cdiv(n_latents, TILE_ATOMS)
    per_share = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, row_programs)))
    shares = triton.cdiv(tiles, per_share)
    index = torch.empty(n_rows, shares, dtype=torch.int64, device=residual.device)
    score = torch.empty(n_rows, shares, dtype=torch.float32, device=residual.device)
    _best_of_share[(row_programs, shares)](
        residual,
        atoms,
        taken,
        index,
        score,
        n_rows,
        n_latents,
        d,
        t,
        shares,
        per_share,
        SLOTS=triton.next_power_of_2(max(t, 1)),
        SIGNED=not nonnegative,
        ROWS=TILE_ROWS,
        ATOMS=TILE_ATOMS,
        DIMS=TILE_DIMS,
    )
    ranked = score if nonnegative else score.abs().where(score > -torch.inf, score)
    share = ranked.argmax(dim=1, keepdim=True)
    # A share whose atoms are all taken reports -inf; some share has a free atom.
    return index.gather(1, share).squeeze(1), score.gather(1, share).squeeze(1)


@triton.jit  # type: ignore[untyped-decorator]
def _best_of_share(  # type: ignore[no-untyped-def]
    residual,
    atoms,
    taken,
    index,
    score,
    n_rows,
    n_latents,
    d,
    t,
    shares,
    per_share,
    SLOTS: tl.constexpr,
    SIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    ATOMS: tl.constexpr,
    DIMS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    share = tl.program_id(1)
    real = rows < n_rows
    wide = rows.to(tl.int64)
    slots = tl.arange(0, SLOTS)
    inside = real[:, None] & (slots < t)[None, :]
    members = tl.load(taken + wide[:, None] * t + slots[None, :], mask=inside, other=-1)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    best_score = tl.full((ROWS,), float("-inf"), tl.float32)
    best_atom = tl.zeros((ROWS,), tl.int32)
    for tile in range(share * per_share, tl.minimum((share + 1) * per_share, tl.cdiv(n_latents, ATOMS))):
        columns = tile * ATOMS + tl.arange(0, ATOMS)
        exists = columns < n_latents
        total = tl.zeros((ROWS, ATOMS), tl.float32)
        for start in range(0, d, DIMS):
            dims = start + tl.arange(0, DIMS)
            within = dims < d
            x = tl.load(residual + wide[:, None] * d + dims[None, :], mask=real[:, None] & within[None, :], other=0.0)
            atom_rows = columns.to(tl.int64)[None, :] * d
            y = tl.load(atoms + atom_rows + dims[:, None], mask=within[:, None] & exists[None, :], other=0.0)
            total = tl.dot(x, y, total, input_precision="ieee")
        ranked = tl.abs(total) if SIGNED else total
        ranked = tl.where(exists[None, :], ranked, float("-inf"))
        searching = 1
        while searching > 0:
            place = tl.argmax(ranked, axis=1, tie_break_left=True)
            largest = tl.max(ranked, axis=1)
            winner = tile * ATOMS + place
            # Only a winner that could change the answer, and is taken, is worth another look.
            refused = tl.max((members == winner[:, None]).to(tl.int32), axis=1) > 0
            refused = refused & (largest > best)
            here = tl.arange(0, ATOMS)[None, :] == place[:, None]
            ranked = tl.where(here & refused[:, None], float("-inf"), ranked)
            searching = tl.max(refused.to(tl.int32), axis=0)
        better = largest > best
        chosen = tl.sum(tl.where(here, total, 0.0), axis=1)
        best = tl.where(better, largest, best)
        best_score = tl.where(better, chosen, best_score)
        best_atom = tl.where(better, winner, best_atom)
    out = wide * shares + share
    tl.store(index + out, best_atom.to(tl.int64), mask=real)
    tl.store(score + out, best_score, mask=real)
