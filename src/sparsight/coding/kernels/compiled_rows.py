"""Pursuits in compiled code, row by row: a row's scores stay in the cache from its first choice to its last.

Import only where numba is installed; `compiled.py` does. All compiled functions are in this file, because numba's cache
on disk notices changes of the file of the function that is called, not of others.

What decides (scores of candidates, inner products that weights come from, residuals) is computed in float64 by sums
whose order does not depend on other rows. What is rough only rules atoms out. So the code of a row is the same to the
last bit in any batch, at any number of threads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, no_type_check

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsight.coding.arguments import LONGEST_ATOM
from sparsight.coding.kernels.swept_table import GROUP, SINGLE_ROUNDING

Function = TypeVar("Function", bound=Callable[..., Any])
Array = NDArray[Any]

# Sums may be taken in any order, and products contracted: the bounds allow for that. Infinities arise, NaN never does.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"nnan", "nsz", "contract", "reassoc"}}
_entry: Callable[[Function], Function] = njit(cache=True, **_OPTIONS)
# Called from compiled code only: without what Python would need, which takes as long to compile as the function.
_compiled: Callable[[Function], Function] = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)

MATCHING, GRADIENT, ORTHOGONAL = 0, 1, 2
WANTS_SCAN, FINISHED = 1, 2
# Exact scores computed for one choice, beyond which it is better to apply more changes.
MOST_TRIED = 16
# Squared sine below which an atom counts as dependent on others, where weights cannot be negative.
DEPENDENT = 1e-11

DOUBLE_ROUNDING = 2.0**-53
# Columns of `Block.meter`.
TRAVELLED, SWEEPS, NORM_AT_SCAN, NORM_OF_ROW, NORM = 0, 1, 2, 3, 4


class Problem(NamedTuple):
    """What all rows share.

    Attributes:
        x: Rows to code; float64, as all that decides, so that one compilation serves both precisions.
        atoms: Unit rows, float64.
        swept: Inner products between atoms as multiples of `unit`; columns padded with zeros to whole groups.
        coherence: Bound on the magnitude of an atom's inner product with any other atom of each group.
        unit: Size of one step of `swept`.
        table_error: Most that an entry of `swept` is off.
        rule: How weights follow a choice: `MATCHING`, `GRADIENT` or `ORTHOGONAL`.
        inner_steps: Line searches after a choice.
        nonnegative: Whether the largest inner product is best; else the largest magnitude.
        floor: Score at which a row ends, relative to its norm.
        smallest_pivot: Squared sine at which an atom gets no weight in signed least squares.
        tolerance: Gradient that counts as none, relative to the largest target.
    """

    x: Array
    atoms: Array
    swept: Array
    coherence: Array
    unit: float
    table_error: float
    rule: int
    inner_steps: int
    nonnegative: bool
    floor: float
    smallest_pivot: float
    tolerance: float


class Block(NamedTuple):
    """Where each row stands.

    Attributes:
        scores: Kept scores of all atoms, known up to a bound; float32.
        indices: Atoms chosen.
        values: Their weights.
        applied: The weights that the kept scores belong to.
        gram: Inner products between the chosen atoms; empty for matching pursuit.
        target: Inner products of the chosen atoms with the row.
        residual: The row less its reconstruction.
        factor: Cholesky factor of the free atoms, for least squares.
        free: Their slots, in the order of the factor.
        n_free: How many they are.
        meter: Sum of changes applied and sweeps made since the last scan, norm of the residual then, of the row, and of
            the residual now.
        filled: Slots filled.
        status: `WANTS_SCAN` or `FINISHED`.
    """

    scores: Array
    indices: Array
    values: Array
    applied: Array
    gram: Array
    target: Array
    residual: Array
    factor: Array
    free: Array
    n_free: Array
    meter: Array
    filled: Array
    status: Array


@_entry
@no_type_check
def advance(rows: Array, problem: Problem, block: Block) -> None:
    """Carry on with rows whose kept scores were scanned just now, each to its end or until it wants another scan."""
    k = block.indices.shape[1]
    maxima, error = np.empty(problem.coherence.shape[1], np.float32), np.empty(problem.coherence.shape[1])
    scratch = np.empty((3, k))
    for i in rows:
        _begin(i, problem, block)
        while block.filled[i] < k:
            # No atom can score above this.
            if LONGEST_ATOM * block.meter[i, NORM] <= problem.floor * block.meter[i, NORM_OF_ROW]:
                break
            chosen, score = _best(i, problem, block, maxima, error)
            if chosen < 0:
                block.status[i] = WANTS_SCAN
                break
            if (score if problem.nonnegative else abs(score)) <= problem.floor * block.meter[i, NORM_OF_ROW]:
                break
            _add(i, chosen, problem, block)
            if problem.rule == MATCHING:
                _add_score(i, score, block)
            elif problem.rule == GRADIENT:
                for _ in range(problem.inner_steps):
                    _line_search(i, problem.nonnegative, block, scratch)
            elif problem.nonnegative:
                _nonnegative_weights(i, problem.tolerance, block, scratch)
            else:
                _signed_weights(i, problem.smallest_pivot, block, scratch)
            _take_residual(i, problem, block)


@_entry
@no_type_check
def bounds(rows: Array, problem: Problem, block: Block) -> Array:
    """How far the kept scores in each group may be off now: for tests, which hold them against true ones."""
    errors = np.empty((len(rows), problem.coherence.shape[1]))
    for i in rows:
        _bound(i, problem, block, errors[i])
    return errors


@_compiled
@no_type_check
def _begin(i: int, problem: Problem, block: Block) -> None:
    """Note that the kept scores are those of the residual as it is."""
    t = block.filled[i]
    for s in range(t):
        block.applied[i, s] = block.values[i, s]
    if t == 0:
        _take_residual(i, problem, block)
        block.meter[i, NORM_OF_ROW] = block.meter[i, NORM]
    block.meter[i, TRAVELLED], block.meter[i, SWEEPS] = 0, 0
    block.meter[i, NORM_AT_SCAN] = block.meter[i, NORM]
    for j in range(problem.atoms.shape[0], block.scores.shape[1]):
        block.scores[i, j] = _never(problem.nonnegative)
    block.status[i] = FINISHED


@_compiled
@no_type_check
def _never(nonnegative: bool) -> float:
    """A kept score that cannot win."""
    return np.float32(-np.inf) if nonnegative else np.float32(0)


@_compiled
@no_type_check
def _best(i: int, problem: Problem, block: Block, maxima: Array, error: Array) -> tuple[int, float]:
    """The atom best aligned with the residual, and its score; -1 where only a scan can tell."""
    n_latents = problem.atoms.shape[0]
    while True:
        _apply_largest(i, problem, block)
        _group_maxima(i, problem, block, maxima)
        pending, rounding = _bound(i, problem, block, error)
        if pending == 0 and block.meter[i, TRAVELLED] == 0:
            most = n_latents  # nothing can be known better
        elif pending > rounding:
            most = MOST_TRIED
        else:
            most = max(MOST_TRIED, n_latents // 16)
        chosen, score = _decide(i, most, problem, block, maxima, error)
        if chosen >= 0 or pending <= rounding:
            return chosen, score


@_compiled
@no_type_check
def _apply_largest(i: int, problem: Problem, block: Block) -> None:
    """Take the four largest pending changes of weights off the kept scores."""
    slots, changes = np.zeros(4, np.int64), np.zeros(4, np.float32)
    n = 0
    for n in range(4):
        largest, slot = 0.0, 0
        for s in range(block.filled[i]):
            change = abs(block.values[i, s] - block.applied[i, s])
            if change > largest:
                largest, slot = change, s
        changes[n] = block.values[i, slot] - block.applied[i, slot] if largest > 0 else 0.0
        if changes[n] == 0:
            break
        # What is lost to single precision stays pending.
        block.applied[i, slot] += np.float64(changes[n])
        block.meter[i, TRAVELLED] += abs(np.float64(changes[n]))
        slots[n] = block.indices[i, slot]
    if changes[0] == 0:
        return
    block.meter[i, SWEEPS] += 1
    a, b, c, d = slots[0], slots[1], slots[2], slots[3]
    unit = np.float32(problem.unit)
    p, q, r, s = changes[0] * unit, changes[1] * unit, changes[2] * unit, changes[3] * unit
    scores, swept = block.scores, problem.swept
    for j in range(scores.shape[1]):
        scores[i, j] -= (p * np.float32(swept[a, j]) + q * np.float32(swept[b, j])) + (
            r * np.float32(swept[c, j]) + s * np.float32(swept[d, j])
        )


@_compiled
@no_type_check
def _group_maxima(i: int, problem: Problem, block: Block, maxima: Array) -> None:
    """The best kept score in each group, chosen atoms left out unless they may come again."""
    scores = block.scores
    if problem.rule != MATCHING:
        for s in range(block.filled[i]):
            scores[i, block.indices[i, s]] = _never(problem.nonnegative)
    for g in range(len(maxima)):
        best = np.float32(-np.inf)
        if problem.nonnegative:
            for j in range(g * GROUP, g * GROUP + GROUP):
                best = max(best, scores[i, j])
        else:
            for j in range(g * GROUP, g * GROUP + GROUP):
                best = max(best, abs(scores[i, j]))
        maxima[g] = best


@_compiled
@no_type_check
def _bound(i: int, problem: Problem, block: Block, error: Array) -> tuple[float, float]:
    """Fill in how far kept scores in each group may be off; say what is due to pending changes, and to rounding."""
    t, d = block.filled[i], problem.atoms.shape[1]
    error[:] = 0
    total, square, size = 0.0, 0.0, 0.0
    for s in range(t):
        size += abs(block.values[i, s])
        change = block.values[i, s] - block.applied[i, s]
        if change != 0:
            total += abs(change)
            atom = block.indices[i, s]
            for g in range(len(error)):
                error[g] += abs(change) * problem.coherence[atom, g]
            if problem.rule != MATCHING:
                for u in range(t):
                    square += change * block.gram[i, s, u] * (block.values[i, u] - block.applied[i, u])
    # The square of a short sum of long terms is known only to their rounding.
    length = LONGEST_ATOM * np.sqrt(max(square, 0.0) + 4 * (d + 8) * DOUBLE_ROUNDING * total * total)
    travelled, start, now = block.meter[i, TRAVELLED], block.meter[i, NORM_AT_SCAN], block.meter[i, NORM]
    rounding = (d + 6) * SINGLE_ROUNDING * LONGEST_ATOM * start  # the scan
    rounding += problem.table_error * travelled
    rounding += 8 * SINGLE_ROUNDING * LONGEST_ATOM**2 * block.meter[i, SWEEPS] * (start + travelled)
    reach = block.meter[i, NORM_OF_ROW] + LONGEST_ATOM * (2 * size + travelled + total)
    rounding += DOUBLE_ROUNDING * ((d + 8) * now + 2 * (t + 8) * reach)  # exact scores, and residuals
    if problem.rule == MATCHING:  # chosen atoms may come again, and feel their own changes
        length = total * LONGEST_ATOM**2
        rounding += length
    for g in range(len(error)):
        error[g] = 1.001 * (min(error[g], length) + rounding)
    return length, rounding


@_compiled
@no_type_check
def _decide(i: int, most: int, problem: Problem, block: Block, maxima: Array, error: Array) -> tuple[int, float]:
    """Score exactly every atom that may be best; -1 where they are more than `most`."""
    top = np.argmax(maxima)
    best, score, rank = -1, 0.0, -np.inf
    tried = 0
    # First the group whose kept score is highest: what it holds rules most others out.
    for turn in range(-1, len(maxima)):
        g = top if turn < 0 else turn
        if turn == top:
            continue
        least = max(rank, maxima[top] - error[top]) if turn < 0 else rank
        least = np.float32(least - error[g] - 1e-6 * abs(least))
        if maxima[g] < least:
            continue
        for j in range(g * GROUP, min(g * GROUP + GROUP, problem.atoms.shape[0])):
            kept = block.scores[i, j]
            if (kept if problem.nonnegative else abs(kept)) >= least and not _is_taken(i, j, problem, block):
                exact = 0.0
                for c in range(problem.atoms.shape[1]):
                    exact += problem.atoms[j, c] * block.residual[i, c]
                tried += 1
                ranked = exact if problem.nonnegative else abs(exact)
                if ranked > rank or (ranked == rank and j < best):
                    best, score, rank = j, exact, ranked
        if tried > most:
            return -1, 0.0
    return best, score


@_compiled
@no_type_check
def _is_taken(i: int, atom: int, problem: Problem, block: Block) -> bool:
    if problem.rule != MATCHING:
        for s in range(block.filled[i]):
            if block.indices[i, s] == atom:
                return True
    return False


@_compiled
@no_type_check
def _add(i: int, chosen: int, problem: Problem, block: Block) -> None:
    """Fill the next slot."""
    t = block.filled[i]
    block.indices[i, t] = chosen
    block.filled[i] = t + 1
    if problem.rule == MATCHING:
        return
    atoms, x = problem.atoms, problem.x
    for s in range(t + 1):
        other = block.indices[i, s]
        product = 0.0
        for c in range(atoms.shape[1]):
            product += atoms[chosen, c] * atoms[other, c]
        block.gram[i, t, s], block.gram[i, s, t] = product, product
    product = 0.0
    for c in range(atoms.shape[1]):
        product += atoms[chosen, c] * x[i, c]
    block.target[i, t] = product


@_compiled
@no_type_check
def _take_residual(i: int, problem: Problem, block: Block) -> None:
    """`x - sum_s z_s d_s` afresh, four atoms at a time, and its norm."""
    residual, atoms, t = block.residual, problem.atoms, block.filled[i]
    slots, weights = np.empty(4, np.int64), np.empty(4)
    for c in range(atoms.shape[1]):
        residual[i, c] = problem.x[i, c]
    for first in range(0, t, 4):
        for u in range(4):
            # Beyond the last atom: that atom again, with no weight.
            slots[u] = block.indices[i, min(first + u, t - 1)]
            weights[u] = block.values[i, first + u] if first + u < t else 0.0
        p, q, r, s = slots[0], slots[1], slots[2], slots[3]
        a, b, e, f = weights[0], weights[1], weights[2], weights[3]
        for c in range(atoms.shape[1]):
            residual[i, c] -= (a * atoms[p, c] + b * atoms[q, c]) + (e * atoms[r, c] + f * atoms[s, c])
    square = 0.0
    for c in range(atoms.shape[1]):
        square += residual[i, c] * residual[i, c]
    block.meter[i, NORM] = np.sqrt(square)


@_compiled
@no_type_check
def _add_score(i: int, score: float, block: Block) -> None:
    """Matching pursuit's weights: an atom that comes again goes into its first slot, and the last slot stays empty."""
    for s in range(block.filled[i]):
        if block.indices[i, s] == block.indices[i, block.filled[i] - 1]:
            block.values[i, s] += score
            return


@_compiled
@no_type_check
def _line_search(i: int, nonnegative: bool, block: Block, scratch: Array) -> None:
    """Gradient pursuit's weights: one exact line search along the (feasible) gradient."""
    t, gram, gradient = block.filled[i], block.gram, scratch[0]
    slope, curvature = 0.0, 0.0
    for s in range(t):
        g = block.target[i, s]
        for u in range(t):
            g -= gram[i, s, u] * block.values[i, u]
        gradient[s] = 0.0 if nonnegative and block.values[i, s] == 0 and g < 0 else g
        slope += gradient[s] * gradient[s]
    for s in range(t):
        product = 0.0
        for u in range(t):
            product += gram[i, s, u] * gradient[u]
        curvature += gradient[s] * product
    # Nowhere to go: 0 / tiny = 0, where 0 / 0 would be NaN.
    step = slope / max(curvature, 1e-300)
    if nonnegative:
        for s in range(t):
            if gradient[s] < 0:
                step = min(step, block.values[i, s] / -gradient[s])
    for s in range(t):
        if nonnegative and gradient[s] < 0 and block.values[i, s] / -gradient[s] <= step:
            block.values[i, s] = 0
        else:
            block.values[i, s] += step * gradient[s]


@_compiled
@no_type_check
def _signed_weights(i: int, smallest_pivot: float, block: Block, scratch: Array) -> None:
    """Orthogonal matching pursuit's weights of either sign; an atom that depends on others gets none."""
    _enter(i, block.filled[i] - 1, smallest_pivot, block)
    _solve(i, block, scratch[0])
    for p in range(block.n_free[i]):
        block.values[i, block.free[i, p]] = scratch[0, p]


@_compiled
@no_type_check
def _nonnegative_weights(i: int, tolerance: float, block: Block, scratch: Array) -> None:
    """Orthogonal matching pursuit's weights, at least 0, by the active-set method from the last solution."""
    t, weights, solution, barred = block.filled[i], scratch[0], scratch[1], scratch[2]
    largest = 0.0
    for s in range(t):
        weights[s], barred[s] = block.values[i, s], 0.0
        largest = max(largest, abs(block.target[i, s]))
    entering = t - 1
    # Each pass frees or fixes atoms; a finite method needs a few t of them.
    for _ in range(20 * t + 20):
        if entering >= 0 and not _enter(i, entering, DEPENDENT, block):
            barred[entering] = 1.0
        _solve(i, block, solution)
        if _walk(i, block, weights, solution):
            entering = _steepest(i, t, tolerance * largest, block, weights, barred)
            if entering < 0:
                break
        else:
            entering = -1
            barred[:t] = 0.0
    for s in range(t):
        block.values[i, s] = weights[s]


@_compiled
@no_type_check
def _enter(i: int, slot: int, smallest_pivot: float, block: Block) -> bool:
    """Extend the factor by an atom, unless it depends on the free ones."""
    n, factor, gram = block.n_free[i], block.factor, block.gram
    pivot = gram[i, slot, slot]
    for p in range(n):
        product = gram[i, slot, block.free[i, p]]
        for q in range(p):
            product -= factor[i, n, q] * factor[i, p, q]
        factor[i, n, p] = product / factor[i, p, p]
        pivot -= factor[i, n, p] * factor[i, n, p]
    if pivot <= smallest_pivot:
        return False
    factor[i, n, n] = np.sqrt(pivot)
    block.free[i, n] = slot
    block.n_free[i] = n + 1
    return True


@_compiled
@no_type_check
def _solve(i: int, block: Block, solution: Array) -> None:
    """Least squares on the free atoms, in the order of the factor."""
    n, factor = block.n_free[i], block.factor
    for p in range(n):
        product = block.target[i, block.free[i, p]]
        for q in range(p):
            product -= factor[i, p, q] * solution[q]
        solution[p] = product / factor[i, p, p]
    for p in range(n - 1, -1, -1):
        solution[p] /= factor[i, p, p]
        for q in range(p):
            solution[q] -= factor[i, p, q] * solution[p]


@_compiled
@no_type_check
def _walk(i: int, block: Block, weights: Array, solution: Array) -> bool:
    """Go to the solution on the free atoms, or to where the first weight reaches 0; whether it was the solution."""
    n = block.n_free[i]
    reach = 2.0
    for p in range(n):
        weight = weights[block.free[i, p]]
        if solution[p] <= 0:
            reach = min(reach, weight / max(weight - solution[p], 1e-300))
    if reach == 2.0:
        for p in range(n):
            weights[block.free[i, p]] = solution[p]
        return True
    block.n_free[i] = 0
    for p in range(n):
        slot = block.free[i, p]
        weight = weights[slot]
        if solution[p] <= 0 and weight / max(weight - solution[p], 1e-300) <= reach:
            weights[slot] = 0.0
        else:
            weights[slot] = max(weight + reach * (solution[p] - weight), 0.0)
            # Slots are read before they are overwritten: at most p atoms have entered.
            _enter(i, slot, 0.0, block)
    return False


@_compiled
@no_type_check
def _steepest(i: int, t: int, least: float, block: Block, weights: Array, barred: Array) -> int:
    """The slot at 0 whose weight would grow most readily; -1 where none would."""
    best = -1
    for s in range(t):
        if weights[s] == 0 and barred[s] == 0:
            gradient = block.target[i, s]
            for u in range(t):
                gradient -= block.gram[i, s, u] * weights[u]
            if gradient > least:
                best, least = s, gradient
    return best
