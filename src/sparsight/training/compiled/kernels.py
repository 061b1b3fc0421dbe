"""The loops of the sparse step in compiled code.

Import only where numba is installed. All compiled functions are in this one file, because numba's cache on disk notices
changes of the file of the function that is called, not of others. Each works on a range of rows or latents and writes
only what belongs to them, in an order that does not depend on the range: threads change no bit of the result.
"""

from typing import Any, no_type_check

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsight.training.compiled.screen import BF16_ROUNDING

Array = NDArray[Any]

# Sums may be taken in any order and contracted, so that they use the vector units. NaN and infinity keep their meaning.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"nsz", "contract", "reassoc"}}
_entry: Any = njit(cache=True, **_OPTIONS)
# Called from compiled code only: without what Python would need, which takes as long to compile as the function.
_compiled: Any = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)

# Entries of a row whose maximum is kept. Short enough that few entries are looked at twice.
GROUP = 32
# No number in bfloat16 has these bits, nor larger ones.
ABOVE_ALL = 2**15


@_entry
@no_type_check
def top_k_of_screened(
    first: int,
    last: int,
    bits: Array,
    x: Array,
    encoder: Array,
    offset: Array,
    slack: Array,
    largest_offset: float,
    k: int,
    values: Array,
    latents: Array,
) -> int:
    """The `k` largest of `x encoder^T + offset` in each row, largest first, of equal ones the first; rectified.

    `bits` holds the same numbers in bfloat16, as integers, each off by at most `slack` of its row plus rounding. Let
    `T` be the k-th largest maximum of a group of entries: at least k entries are no smaller. Those are computed again
    in full precision; the k-th largest of them bounds what is sought from below. Of the entries under `T` only those
    can reach this bound that lack no more of it than the error, and they are computed again too.

    Returns:
        How many were computed again.
    """
    m = encoder.shape[0]
    n_groups = (m + GROUP - 1) // GROUP
    maxima = np.empty(n_groups, np.int16)
    heap = np.empty(k, np.int16)
    kept = np.empty(m, np.int32)
    exact = np.empty(m, np.float32)
    as_bits = np.empty(1, np.int32)
    as_float = as_bits.view(np.float32)
    # Numbers of one type: a function is compiled again for a literal, an int16, a variable that has no value yet.
    none, above_all = np.int64(0), np.int64(ABOVE_ALL)
    n_exact, n_kept = none, none
    for t in range(first, last):
        row = bits[t]
        _group_maxima(row, maxima)
        lowest = _kth_largest(maxima, k, heap)
        as_bits[0] = np.int32(lowest) << 16
        top = as_float[0]
        error = slack[t] + 2 * BF16_ROUNDING * (top + largest_offset)
        n_kept = none
        if top - error > 0:
            n_kept = _entries_from(row, maxima, lowest, above_all, kept, none)
            _exactly(x[t], encoder, offset, kept, none, n_kept, exact)
            _largest_first(exact, kept, none, n_kept, k, values[t], latents[t])
            as_float[0] = values[t, k - 1] - error
            floor = np.int64(as_bits[0] >> 16)  # rounded down where it is positive
            n_sure = n_kept
            if as_float[0] > 0:
                n_kept = _entries_from(row, maxima, floor, lowest, kept, n_sure)
                _exactly(x[t], encoder, offset, kept, n_sure, n_kept, exact)
                _largest_first(exact, kept, n_sure, n_kept, k, values[t], latents[t])
                n_exact += n_kept
                continue
        # Fewer than k are surely positive. Others count only where they are positive in truth.
        lower = -2 * error - BF16_ROUNDING * largest_offset
        n_kept = none
        for j in range(m):
            as_bits[0] = np.int32(row[j]) << 16
            if as_float[0] >= lower:
                kept[n_kept] = j
                n_kept += 1
        n_exact += n_kept
        _exactly(x[t], encoder, offset, kept, none, n_kept, exact)
        _largest_first(exact, kept, none, n_kept, k, values[t], latents[t])
    return n_exact


@_compiled
@no_type_check
def _group_maxima(row: Array, maxima: Array) -> None:
    """The largest entry of each group of `GROUP`, never below 0."""
    m = len(row)
    for g in range(len(maxima)):
        part = row[g * GROUP : min(m, (g + 1) * GROUP)]  # indices that count from 0 are made vectors of
        largest = np.int16(0)
        for j in range(len(part)):
            largest = max(largest, part[j])
        maxima[g] = largest


@_compiled
@no_type_check
def _entries_from(row: Array, maxima: Array, floor: int, ceiling: int, kept: Array, n: int) -> int:
    """Append to `n` positions in `kept` those of all entries from `floor` to below `ceiling`; how many there are."""
    for g in range(len(maxima)):
        if maxima[g] >= floor:
            for j in range(g * GROUP, min(len(row), (g + 1) * GROUP)):
                if floor <= row[j] < ceiling:
                    kept[n] = j
                    n += 1
    return n


@_compiled
@no_type_check
def _kth_largest(entries: Array, k: int, heap: Array) -> int:
    """The k-th largest entry, 0 where there are fewer than k. `heap` is room for k."""
    if len(entries) < k:
        return 0
    for c in range(k):
        heap[c] = entries[c]
    for c in range(k // 2 - 1, -1, -1):
        _sift(heap, c, k)
    for c in range(k, len(entries)):
        if entries[c] > heap[0]:
            heap[0] = entries[c]
            _sift(heap, 0, k)
    return int(heap[0])


@_compiled
@no_type_check
def _sift(heap: Array, at: int, size: int) -> None:
    """Let an entry sink to where its children are larger."""
    entry = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = entry


@_compiled
@no_type_check
def _dot(a: Array, b: Array) -> float:
    total = np.float32(0)
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


@_compiled
@no_type_check
def _exactly(x: Array, rows: Array, offset: Array, which: Array, start: int, n: int, found: Array) -> None:
    """`<x, rows[j]> + offset[j]` for `j` in `which[start:n]`.

    Four rows at a time: the memory brings several in the time of one.
    """
    last = n - 1  # comes again where four do not fit: all sums are taken alike
    for first in range(start, n, 4):
        i1, i2, i3 = min(first + 1, last), min(first + 2, last), min(first + 3, last)
        r0, r1, r2, r3 = rows[which[first]], rows[which[i1]], rows[which[i2]], rows[which[i3]]
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for c in range(len(x)):
            s0 += x[c] * r0[c]
            s1 += x[c] * r1[c]
            s2 += x[c] * r2[c]
            s3 += x[c] * r3[c]
        found[first], found[i1], found[i2], found[i3] = s0, s1, s2, s3
    for position in range(start, n):
        found[position] += offset[which[position]]


@_compiled
@no_type_check
def _largest_first(exact: Array, kept: Array, start: int, n_kept: int, k: int, values: Array, latents: Array) -> None:
    """Insert `start` and further entries into the k largest of those before it, in descending order.

    Of equal ones the first latent leads.
    """
    filled = min(start, k)
    for c in range(start, n_kept):
        value, latent = exact[c], kept[c]
        at = filled
        if filled == k:
            if value < values[k - 1] or (value == values[k - 1] and latent > latents[k - 1]):
                continue
            at = k - 1
        while at > 0 and (values[at - 1] < value or (values[at - 1] == value and latents[at - 1] > latent)):
            values[at] = values[at - 1]
            latents[at] = latents[at - 1]
            at -= 1
        values[at] = value
        latents[at] = latent
        filled = min(k, filled + 1)
    for c in range(filled, k):
        # Never enough positive ones: any latent that is silent will do.
        values[c] = 0
        latents[c] = latents[0] if filled else 0
    for c in range(k):
        values[c] = max(values[c], np.float32(0))


@_entry
@no_type_check
def above_floor(
    first: int,
    last: int,
    bits: Array,
    floors: Array,
    x: Array,
    encoder: Array,
    offset: Array,
    lower: Array,
    counts: Array,
    values: Array,
    latents: Array,
) -> bool:
    """Entries of `x encoder^T + offset` that exceed `lower` of their latent, in the order of the latents.

    `bits` holds screened numbers in bfloat16, as integers; `floors`, positive, says for each row below which of them no
    entry can exceed its limit. Those that may are computed again in full precision.

    Returns:
        Whether there was room: a row takes as many as `values` has columns. `counts` says how many were needed.
    """
    m = encoder.shape[0]
    n_groups = (m + GROUP - 1) // GROUP
    maxima = np.empty(n_groups, np.int16)
    as_bits = np.empty(1, np.int32)
    as_float = as_bits.view(np.float32)
    room = values.shape[1]
    kept = np.empty(m, np.int32)
    exact = np.empty(m, np.float32)
    enough = True
    none, above_all = np.int64(0), np.int64(ABOVE_ALL)
    for t in range(first, last):
        row = bits[t]
        as_float[0] = floors[t]
        floor = np.int64(as_bits[0] >> 16)  # rounded down
        _group_maxima(row, maxima)
        n, n_kept = 0, _entries_from(row, maxima, floor, above_all, kept, none)
        _exactly(x[t], encoder, offset, kept, none, n_kept, exact)
        for c in range(n_kept):
            j, value = kept[c], exact[c]
            if value > lower[j]:
                if n < room:
                    values[t, n] = value
                    latents[t, n] = j
                n += 1
        counts[t] = n
        enough = enough and n <= room
    return enough


@_entry
@no_type_check
def decode_and_pull(
    first: int,
    last: int,
    bounds: Array,
    latents: Array,
    values: Array,
    x: Array,
    atoms: Array,
    b_dec: Array,
    scales: Array,
    g: Array,
    pull: Array,
    squares: Array,
) -> None:
    """The error of each token's reconstruction, and what it says about the token's values.

    There is one reconstruction for each of `P` nested prefixes of the latents. The slots of token `t` that count from
    prefix `p` on are those from `bounds[t P + p]` on. With `r_p` the errors, `squares[t, p] = |r_p|^2`, and row
    `t P + p` of `g` becomes the gradient of `sum_q scales_q / 2 |r_q|^2` by what those slots add up to:
    `sum_{q >= p} scales_q r_q`. `pull = <g, atom>` for every slot, in its row. An atom is read twice while it is in the
    cache.
    """
    d, n_prefixes = atoms.shape[1], len(scales)
    running = np.empty(d, np.float32)
    for t in range(first, last):
        for c in range(d):
            running[c] = b_dec[c] - x[t, c]
        for p in range(n_prefixes):
            bag = t * n_prefixes + p
            for s in range(bounds[bag], bounds[bag + 1]):
                value = values[s]
                if value != 0:
                    atom = atoms[latents[s]]
                    for c in range(d):
                        running[c] += value * atom[c]
            square, scale, row = np.float32(0), np.float32(scales[p]), g[bag]
            for c in range(d):
                square += running[c] * running[c]
                row[c] = scale * running[c]
            squares[t, p] = square
        for p in range(n_prefixes - 1, -1, -1):
            bag = t * n_prefixes + p
            row = g[bag]
            if p < n_prefixes - 1:
                after = g[bag + 1]
                for c in range(d):
                    row[c] += after[c]
            for s in range(bounds[bag], bounds[bag + 1]):
                pull[s] = _dot(row, atoms[latents[s]])


@_entry
@no_type_check
def sort_by_latent(latents: Array, starts: Array, order: Array) -> None:
    """Where each latent's slots are: `order[starts[i] : starts[i + 1]]`, in their own order."""
    starts[:] = 0
    for s in range(len(latents)):
        starts[latents[s] + 1] += 1
    for i in range(len(starts) - 1):
        starts[i + 1] += starts[i]
    cursor = starts[:-1].copy()
    for s in range(len(latents)):
        i = latents[s]
        order[cursor[i]] = s
        cursor[i] += 1


@_compiled
@no_type_check
def _slope(
    i: int, starts: Array, order: Array, of: Array, weights: Array, source: Array, extra: Array, more: Array, out: Array
) -> bool:
    """Latent `i`'s gradient: `sum weights[s] source[of[s]]` over its slots, and its row of `more` if it has one.

    Returns:
        Whether it has any; `out` is left as it was if not.
    """
    first, last, r = starts[i], starts[i + 1], extra[i]
    if first == last and r < 0:
        return False
    d = len(out)
    for c in range(d):
        out[c] = 0
    for position in range(first, last, 4):  # the memory brings several rows in the time of one
        s0, s1 = order[position], order[min(position + 1, last - 1)]
        s2, s3 = order[min(position + 2, last - 1)], order[min(position + 3, last - 1)]
        zero = np.float32(0)
        w0, w1 = weights[s0], weights[s1] if position + 1 < last else zero
        w2, w3 = weights[s2] if position + 2 < last else zero, weights[s3] if position + 3 < last else zero
        r0, r1, r2, r3 = source[of[s0]], source[of[s1]], source[of[s2]], source[of[s3]]
        for c in range(d):
            out[c] += w0 * r0[c] + w1 * r1[c] + w2 * r2[c] + w3 * r3[c]
    if r >= 0:
        row = more[r]
        for c in range(d):
            out[c] += row[c]
    return True


@_entry
@no_type_check
def slopes(
    first: int,
    last: int,
    found: Array,
    starts: Array,
    order: Array,
    of: Array,
    weights: Array,
    source: Array,
    extra: Array,
    more: Array,
) -> None:
    """The gradients that the next functions add up and do not keep, one in a row."""
    for i in range(first, last):
        if not _slope(i, starts, order, of, weights, source, extra, more, found[i]):
            found[i] = 0


@_entry
@no_type_check
def slopes_measured(
    first: int,
    last: int,
    atoms: Array,
    starts: Array,
    order: Array,
    rows: Array,
    values: Array,
    g: Array,
    extra: Array,
    more_to_atoms: Array,
    tokens: Array,
    pull: Array,
    centred: Array,
    more_to_encoder: Array,
    slot_starts: Array,
    slot_order: Array,
    slot_pull: Array,
    along: Array,
    squares: Array,
    to_offset: Array,
) -> None:
    """Of each latent's gradients what has to be known before the first of them moves anything.

    That is the component of its atom's along the atom, the square of what remains plus the encoder's, and `sum pull`
    over its slots. The gradients themselves are added up again when they are needed: as long as slots are few that
    costs as much as to write and to read them, and nothing has to be kept.
    """
    d = atoms.shape[1]
    gradient = np.empty(d, np.float32)
    for i in range(first, last):
        inner, square, other, total = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        if _slope(i, starts, order, rows, values, g, extra, more_to_atoms, gradient):
            atom = atoms[i]
            for c in range(d):
                inner += gradient[c] * atom[c]
            for c in range(d):
                rest = gradient[c] - inner * atom[c]
                square += rest * rest
            _slope(i, starts, order, tokens, pull, centred, extra, more_to_encoder, gradient)
            for c in range(d):
                other += gradient[c] * gradient[c]
        for position in range(slot_starts[i], slot_starts[i + 1]):
            total += slot_pull[slot_order[position]]
        along[i] = inner
        squares[i] = np.float64(square) + np.float64(other)
        to_offset[i] = total


@_entry
@no_type_check
def adam_on_the_sphere(
    first: int,
    last: int,
    atoms: Array,
    starts: Array,
    order: Array,
    rows: Array,
    values: Array,
    g: Array,
    extra: Array,
    more: Array,
    along: Array,
    mean: Array,
    square: Array,
    shrink: float,
    rate: float,
    beta1: float,
    beta2: float,
    correction: float,
    eps: float,
) -> None:
    """Adam along each atom's tangent, then back to norm 1, in one pass.

    Args:
        along: The component of each atom's gradient along the atom.
        shrink: Factor of the gradient that its clipping asks for.
        rate: Learning rate over `1 - beta1^step`.
        correction: `1 / sqrt(1 - beta2^step)`.
    """
    d = atoms.shape[1]
    gradient = np.empty(d, np.float32)
    rest1, rest2 = np.float32(1 - beta1), np.float32(1 - beta2)
    beta1, beta2 = np.float32(beta1), np.float32(beta2)
    shrink, rate, correction, eps = np.float32(shrink), np.float32(rate), np.float32(correction), np.float32(eps)
    for i in range(first, last):
        atom, first_average, second_average = atoms[i], mean[i], square[i]
        norm = np.float32(0)
        if _slope(i, starts, order, rows, values, g, extra, more, gradient):
            inner = along[i]
            for c in range(d):
                slope = (gradient[c] - inner * atom[c]) * shrink
                first_average[c] = beta1 * first_average[c] + rest1 * slope
                second_average[c] = beta2 * second_average[c] + rest2 * slope * slope
                moved = atom[c] - rate * first_average[c] / (np.sqrt(second_average[c]) * correction + eps)
                atom[c] = moved
                norm += moved * moved
        else:
            for c in range(d):
                first_average[c] = beta1 * first_average[c]
                second_average[c] = beta2 * second_average[c]
                moved = atom[c] - rate * first_average[c] / (np.sqrt(second_average[c]) * correction + eps)
                atom[c] = moved
                norm += moved * moved
        scale = np.float32(1) / np.sqrt(max(norm, np.float32(1e-38)))
        for c in range(d):
            atom[c] *= scale


@_entry
@no_type_check
def adam_and_round(
    first: int,
    last: int,
    weights: Array,
    starts: Array,
    order: Array,
    tokens: Array,
    pull: Array,
    centred: Array,
    extra: Array,
    more: Array,
    mean: Array,
    square: Array,
    shrink: float,
    rate: float,
    beta1: float,
    beta2: float,
    correction: float,
    eps: float,
    rounded: Array,
    errors: Array,
    norms: Array,
) -> None:
    """Adam on the encoder's rows, and at once their bfloat16 copy, its error and its norm, squared."""
    d = weights.shape[1]
    gradient = np.empty(d, np.float32)
    rest1, rest2 = np.float32(1 - beta1), np.float32(1 - beta2)
    beta1, beta2 = np.float32(beta1), np.float32(beta2)
    shrink, rate, correction, eps = np.float32(shrink), np.float32(rate), np.float32(correction), np.float32(eps)
    for i in range(first, last):
        row, first_average, second_average = weights[i], mean[i], square[i]
        if _slope(i, starts, order, tokens, pull, centred, extra, more, gradient):
            for c in range(d):
                slope = gradient[c] * shrink
                first_average[c] = beta1 * first_average[c] + rest1 * slope
                second_average[c] = beta2 * second_average[c] + rest2 * slope * slope
                row[c] -= rate * first_average[c] / (np.sqrt(second_average[c]) * correction + eps)
        else:
            for c in range(d):
                first_average[c] = beta1 * first_average[c]
                second_average[c] = beta2 * second_average[c]
                row[c] -= rate * first_average[c] / (np.sqrt(second_average[c]) * correction + eps)
        round_rows(i, i + 1, weights, rounded, errors, norms)


@_entry
@no_type_check
def round_rows(first: int, last: int, weights: Array, rounded: Array, errors: Array, norms: Array) -> None:
    """Each row in bfloat16 (as integers, ties to even), the square of what it is off and of its norm."""
    d = weights.shape[1]
    bits = weights.view(np.uint32)
    half = np.empty(d, np.uint32)
    back = half.view(np.float32)
    for i in range(first, last):
        off, norm = np.float32(0), np.float32(0)
        for c in range(d):
            half[c] = (bits[i, c] + np.uint32(0x7FFF) + ((bits[i, c] >> np.uint32(16)) & np.uint32(1))) & np.uint32(
                0xFFFF0000
            )
        for c in range(d):
            rounded[i, c] = np.int16(half[c] >> np.uint32(16))
            gap = weights[i, c] - back[c]
            off += gap * gap
            norm += back[c] * back[c]
        errors[i] = off
        norms[i] = norm
