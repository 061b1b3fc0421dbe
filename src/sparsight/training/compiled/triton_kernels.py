"""The loops of the sparse step as Triton kernels: one program for each token or latent, a row of activations wide.

Import only where Triton is installed. Checked against the dense step by Triton's interpreter (`TRITON_INTERPRET=1`);
their speed has not been measured, for want of a GPU. Sums are taken in the order of the slots: no atomics, so a step
gives the same bits every time.
"""

from typing import Any, no_type_check

import triton
import triton.language as tl
from jaxtyping import BFloat16, Float, Int64
from torch import Tensor

from sparsight.training.compiled.terms import Terms

_kernel: Any = triton.jit


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


@_kernel
@no_type_check
def _decode_and_pull(
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


@_kernel
@no_type_check
def _slope(i, starts, order, of, weights, source, extra, more, d, dims, real, D: tl.constexpr):
    """Latent `i`'s gradient, 0 if it has none."""
    total = tl.zeros((D,), tl.float32)
    for position in range(tl.load(starts + i), tl.load(starts + i + 1)):
        s = tl.load(order + position)
        total += tl.load(weights + s) * tl.load(source + tl.load(of + s) * d + dims, mask=real, other=0.0)
    r = tl.load(extra + i).to(tl.int64)
    return total + tl.load(more + r * d + dims, mask=real & (r >= 0), other=0.0)


def slopes(found: Float[Tensor, "m d"], terms: Terms) -> None:
    """As `kernels.slopes`."""
    m, d = found.shape
    _slopes[(m,)](found, *terms, d, D=triton.next_power_of_2(d))


@_kernel
@no_type_check
def _slopes(found, starts, order, of, weights, source, extra, more, d, D: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, D)
    real = dims < d
    gradient = _slope(i, starts, order, of, weights, source, extra, more, d, dims, real, D)
    tl.store(found + i * d + dims, gradient, mask=real)


def slopes_measured(
    atoms: Float[Tensor, "m d"],
    of_atoms: Terms,
    of_encoder: Terms,
    slot_starts: Int64[Tensor, " m1"],
    slot_order: Int64[Tensor, " s"],
    slot_pull: Float[Tensor, " s"],
    along: Float[Tensor, " m"],
    squares: Float[Tensor, " m"],
    to_offset: Float[Tensor, " m"],
) -> None:
    """As `kernels.slopes_measured`; squares in float64, each summed in float32."""
    m, d = atoms.shape
    own = (of_encoder.of, of_encoder.weights, of_encoder.source, of_encoder.more)
    given = (atoms, *of_atoms, *own, slot_starts, slot_order, slot_pull, along, squares, to_offset)
    _slopes_measured[(m,)](*given, d, D=triton.next_power_of_2(d))


@_kernel
@no_type_check
def _slopes_measured(
    atoms,
    starts,
    order,
    rows,
    values,
    g,
    extra,
    more_to_atoms,
    tokens,
    pull,
    centred,
    more_to_encoder,
    slot_starts,
    slot_order,
    slot_pull,
    along,
    squares,
    to_offset,
    d,
    D: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, D)
    real = dims < d
    atom = tl.load(atoms + i * d + dims, mask=real, other=0.0)
    gradient = _slope(i, starts, order, rows, values, g, extra, more_to_atoms, d, dims, real, D)
    row = _slope(i, starts, order, tokens, pull, centred, extra, more_to_encoder, d, dims, real, D)
    total = 0.0
    for position in range(tl.load(slot_starts + i), tl.load(slot_starts + i + 1)):
        total += tl.load(slot_pull + tl.load(slot_order + position))
    inner = tl.sum(gradient * atom, axis=0)
    rest = gradient - inner * atom
    tl.store(along + i, inner)
    tl.store(squares + i, (tl.sum(rest * rest, axis=0) + tl.sum(row * row, axis=0)).to(tl.float64))
    tl.store(to_offset + i, total)


def adam(
    weights: Float[Tensor, "m d"],
    terms: Terms,
    along: Float[Tensor, " m"] | None,
    mean: Float[Tensor, "m d"],
    square: Float[Tensor, "m d"],
    scalars: Float[Tensor, " 6"],
) -> None:
    """Adam on rows, in one pass; with `along` on the sphere, as `kernels.adam_on_the_sphere`.

    Args:
        scalars: As `AdamScalars`, on the device.
    """
    m, d = weights.shape
    given = (weights, *terms, weights if along is None else along, mean, square, scalars)
    _adam[(m,)](*given, d, SPHERE=along is not None, D=triton.next_power_of_2(d))


@_kernel
@no_type_check
def _adam(
    weights,
    starts,
    order,
    of,
    factors,
    source,
    extra,
    more,
    along,
    mean,
    square,
    scalars,
    d,
    SPHERE: tl.constexpr,
    D: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    shrink, rate, eps = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 5)
    beta1, beta2, correction = tl.load(scalars + 2), tl.load(scalars + 3), tl.load(scalars + 4)
    dims = tl.arange(0, D)
    real = dims < d
    here = i * d + dims
    row = tl.load(weights + here, mask=real, other=0.0)
    slope = _slope(i, starts, order, of, factors, source, extra, more, d, dims, real, D)
    if SPHERE:
        slope -= tl.load(along + i) * row
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


@_kernel
@no_type_check
def _off_and_norms(rows, rounded, errors, norms, d, D: tl.constexpr):
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


@_kernel
@no_type_check
def _dots(x, rows, tokens, which, found, d, D: tl.constexpr):
    s = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, D)
    real = dims < d
    of_token = tl.load(x + tl.load(tokens + s) * d + dims, mask=real, other=0.0)
    of_latent = tl.load(rows + tl.load(which + s) * d + dims, mask=real, other=0.0)
    tl.store(found + s, tl.sum(of_token * of_latent, axis=0))
