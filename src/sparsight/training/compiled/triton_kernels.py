"""The loops of the sparse step as Triton kernels: one program for each token or latent, a row of activations wide.

Import only where Triton is installed. Checked against the dense step by Triton's interpreter (`TRITON_INTERPRET=1`);
their speed has not been measured, for want of a GPU. Sums are taken in the order of the slots: no atomics, so a step
gives the same bits every time.
"""

import triton
import triton.language as tl
from jaxtyping import BFloat16, Float, Int32, Int64
from torch import Tensor

from sparsight.training.compiled.scalars import AdamScalars


def decode_and_pull(
    bounds: Int64[Tensor, " p1"],
    latents: Int64[Tensor, " s"],
    values: Float[Tensor, " s"],
    x: Float[Tensor, "b d"],
    atoms: Float[Tensor, "m d"],
    b_dec: Float[Tensor, " d"],
    scales: Float[Tensor, " p"],
    g: Float[Tensor, "bp d"],
    pull: Float[Tensor, " s"],
    squares: Float[Tensor, "b p"],
) -> None:
    """As `kernels.decode_and_pull`; the slots of group `p` of token `t` are those from `bounds[t P + p]` on."""
    b, d = x.shape
    if b > 0:
        given = (bounds, latents, values, x, atoms, b_dec, scales, g, pull, squares)
        _decode_and_pull[(b,)](*given, d, PREFIXES=len(scales), D=triton.next_power_of_2(d))


@triton.jit  # type: ignore[untyped-decorator]
def _decode_and_pull(  # type: ignore[no-untyped-def]
    bounds,
    latents,
    values,
    x,
    atoms,
    b_dec,
    scales,
    g,
    pull,
    squares,
    d,
    PREFIXES: tl.constexpr,
    D: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, D)
    real = dims < d
    running = tl.load(b_dec + dims, mask=real, other=0.0) - tl.load(x + t * d + dims, mask=real, other=0.0)
    for p in range(PREFIXES):
        for s in range(tl.load(bounds + t * PREFIXES + p), tl.load(bounds + t * PREFIXES + p + 1)):
            atom = tl.load(atoms + tl.load(latents + s) * d + dims, mask=real, other=0.0)
            running += tl.load(values + s) * atom
        tl.store(squares + t * PREFIXES + p, tl.sum(running * running, axis=0))
        tl.store(g + (t * PREFIXES + p) * d + dims, tl.load(scales + p) * running, mask=real)
    after = tl.zeros((D,), tl.float32)
    for q in range(PREFIXES):
        p = PREFIXES - 1 - q
        # Each thread reads what it wrote itself.
        row = g + (t * PREFIXES + p) * d + dims
        after += tl.load(row, mask=real, other=0.0)
        tl.store(row, after, mask=real)
        for s in range(tl.load(bounds + t * PREFIXES + p), tl.load(bounds + t * PREFIXES + p + 1)):
            atom = tl.load(atoms + tl.load(latents + s) * d + dims, mask=real, other=0.0)
            tl.store(pull + s, tl.sum(after * atom, axis=0))


def gradients_by_latent(
    which: Int64[Tensor, " r"],
    starts: Int64[Tensor, " m1"],
    order: Int64[Tensor, " s"],
    tokens: Int64[Tensor, " s"],
    rows: Int64[Tensor, " s"],
    values: Float[Tensor, " s"],
    pull: Float[Tensor, " s"],
    g: Float[Tensor, "bp d"],
    centred: Float[Tensor, "b d"],
    to_atoms: Float[Tensor, "r d"],
    to_encoder: Float[Tensor, "r d"],
    to_offset: Float[Tensor, " m"],
) -> None:
    """As `kernels.gradients_by_latent`."""
    d = g.shape[1]
    if len(which) > 0:
        given = (which, starts, order, tokens, rows, values, pull, g, centred, to_atoms, to_encoder, to_offset)
        _gradients_by_latent[(len(which),)](*given, d, D=triton.next_power_of_2(d))


@triton.jit  # type: ignore[untyped-decorator]
def _gradients_by_latent(  # type: ignore[no-untyped-def]
    which,
    starts,
    order,
    tokens,
    rows,
    values,
    pull,
    g,
    centred,
    to_atoms,
    to_encoder,
    to_offset,
    d,
    D: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)
    i = tl.load(which + r)
    dims = tl.arange(0, D)
    real = dims < d
    of_atom = tl.zeros((D,), tl.float32)
    of_encoder = tl.zeros((D,), tl.float32)
    total = 0.0
    for position in range(tl.load(starts + i), tl.load(starts + i + 1)):
        s = tl.load(order + position)
        weight = tl.load(pull + s)
        up = tl.load(g + tl.load(rows + s) * d + dims, mask=real, other=0.0)
        x = tl.load(centred + tl.load(tokens + s) * d + dims, mask=real, other=0.0)
        of_atom += tl.load(values + s) * up
        of_encoder += weight * x
        total += weight
    tl.store(to_atoms + r * d + dims, of_atom, mask=real)
    tl.store(to_encoder + r * d + dims, of_encoder, mask=real)
    tl.store(to_offset + i, total)


def tangent_and_norms(
    which: Int64[Tensor, " r"],
    atoms: Float[Tensor, "m d"],
    to_atoms: Float[Tensor, "r d"],
    to_encoder: Float[Tensor, "r d"],
    along: Float[Tensor, " r"],
    squares: Float[Tensor, " r"],
) -> None:
    """As `kernels.tangent_and_norms`; squares in float64, each summed in float32."""
    d = atoms.shape[1]
    if len(which) > 0:
        given = (which, atoms, to_atoms, to_encoder, along, squares)
        _tangent_and_norms[(len(which),)](*given, d, D=triton.next_power_of_2(d))


@triton.jit  # type: ignore[untyped-decorator]
def _tangent_and_norms(  # type: ignore[no-untyped-def]
    which, atoms, to_atoms, to_encoder, along, squares, d, D: tl.constexpr
):
    r = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, D)
    real = dims < d
    atom = tl.load(atoms + tl.load(which + r) * d + dims, mask=real, other=0.0)
    gradient = tl.load(to_atoms + r * d + dims, mask=real, other=0.0)
    row = tl.load(to_encoder + r * d + dims, mask=real, other=0.0)
    inner = tl.sum(gradient * atom, axis=0)
    rest = gradient - inner * atom
    tl.store(along + r, inner)
    tl.store(squares + r, (tl.sum(rest * rest, axis=0) + tl.sum(row * row, axis=0)).to(tl.float64))


def adam(
    weights: Float[Tensor, "m d"],
    position: Int32[Tensor, " m"],
    gradient: Float[Tensor, "r d"],
    along: Float[Tensor, " r"] | None,
    mean: Float[Tensor, "m d"],
    square: Float[Tensor, "m d"],
    scalars: AdamScalars,
) -> None:
    """Adam on rows, in one pass; with `along` on the sphere, as `kernels.adam_on_the_sphere`."""
    m, d = weights.shape
    given = (weights, position, gradient, gradient if along is None else along, mean, square, *scalars)
    _adam[(m,)](*given, d, SPHERE=along is not None, D=triton.next_power_of_2(d))


@triton.jit  # type: ignore[untyped-decorator]
def _adam(  # type: ignore[no-untyped-def]
    weights,
    position,
    gradient,
    along,
    mean,
    square,
    shrink,
    rate,
    beta1,
    beta2,
    correction,
    eps,
    d,
    SPHERE: tl.constexpr,
    D: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, D)
    real = dims < d
    here = i * d + dims
    r = tl.load(position + i).to(tl.int64)
    has = r >= 0
    row = tl.load(weights + here, mask=real, other=0.0)
    slope = tl.load(gradient + r * d + dims, mask=real & has, other=0.0)
    if SPHERE:
        slope -= tl.load(along + r, mask=has, other=0.0) * row
    slope = slope * shrink
    average = beta1 * tl.load(mean + here, mask=real, other=0.0) + (1 - beta1) * slope
    second = beta2 * tl.load(square + here, mask=real, other=0.0) + (1 - beta2) * slope * slope
    moved = row - rate * average / (tl.sqrt(second) * correction + eps)
    if SPHERE:
        moved = moved / tl.sqrt(tl.maximum(tl.sum(tl.where(real, moved * moved, 0.0), axis=0), 1e-38))
    tl.store(mean + here, average, mask=real)
    tl.store(square + here, second, mask=real)
    tl.store(weights + here, moved, mask=real)


def round_rows(
    rows: Float[Tensor, "m d"],
    rounded: BFloat16[Tensor, "m d"],
    errors: Float[Tensor, " m"],
    norms: Float[Tensor, " m"],
) -> None:
    """As `kernels.round_rows`, into bfloat16 itself; torch rounds, as Triton's interpreter cuts off."""
    m, d = rows.shape
    rounded.copy_(rows)
    if m > 0:
        _off_and_norms[(m,)](rows, rounded, errors, norms, d, D=triton.next_power_of_2(d))


@triton.jit  # type: ignore[untyped-decorator]
def _off_and_norms(rows, rounded, errors, norms, d, D: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, D)
    real = dims < d
    row = tl.load(rows + i * d + dims, mask=real, other=0.0)
    rough = tl.load(rounded + i * d + dims, mask=real, other=0.0).to(tl.float32)
    tl.store(errors + i, tl.sum((row - rough) * (row - rough), axis=0))
    tl.store(norms + i, tl.sum(rough * rough, axis=0))


def dots(
    x: Float[Tensor, "b d"],
    rows: Float[Tensor, "m d"],
    tokens: Int64[Tensor, " s"],
    which: Int64[Tensor, " s"],
    found: Float[Tensor, " s"],
) -> None:
    """`found[s] = <x[tokens[s]], rows[which[s]]>`."""
    d = x.shape[1]
    if len(tokens) > 0:
        _dots[(len(tokens),)](x, rows, tokens, which, found, d, D=triton.next_power_of_2(d))


@triton.jit  # type: ignore[untyped-decorator]
def _dots(x, rows, tokens, which, found, d, D: tl.constexpr):  # type: ignore[no-untyped-def]
    s = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, D)
    real = dims < d
    of_token = tl.load(x + tl.load(tokens + s) * d + dims, mask=real, other=0.0)
    of_latent = tl.load(rows + tl.load(which + s) * d + dims, mask=real, other=0.0)
    tl.store(found + s, tl.sum(of_token * of_latent, axis=0))
