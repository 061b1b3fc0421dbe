"""Slow twins of the coders: one row at a time, numpy float64, residuals formed afresh, no Gram matrices.

`atoms` are rows here too. Every function returns the dense code of one row and, where useful, the order of choice.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Planted:
    """Signals whose codes are known: `x = code @ atoms + noise`."""

    x: Array
    atoms: Array
    code: Array


def random_atoms(rng: np.random.Generator, n_latents: int, d: int, *, mean: float = 0.0) -> Array:
    """Unit atoms; with `mean` they share a direction and are coherent."""
    atoms = rng.standard_normal((n_latents, d))
    atoms += mean * np.sqrt(d) * np.eye(d)[0]
    return np.asarray(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))


def planted(rng: np.random.Generator, atoms: Array, n: int, k: int, *, noise: float = 0.0) -> Planted:
    """`n` signals of `k` atoms each with weights in [0.5, 1.5], and noise of the given standard deviation per entry."""
    n_latents, d = atoms.shape
    code = np.zeros((n, n_latents))
    for row in code:
        row[rng.choice(n_latents, k, replace=False)] = rng.uniform(0.5, 1.5, k)
    return Planted(code @ atoms + noise * rng.standard_normal((n, d)), atoms, code)


def _best(scores: Array, allowed: NDArray[np.bool_], nonnegative: bool) -> int:
    ranked = scores if nonnegative else np.abs(scores)
    return int(np.argmax(np.where(allowed, ranked, -np.inf)))


def matching_pursuit(y: Array, atoms: Array, k: int, *, nonnegative: bool = True, floor: float = 1e-14) -> Array:
    code = np.zeros(len(atoms))
    everywhere = np.ones(len(atoms), dtype=bool)
    for _ in range(k):
        scores = atoms @ (y - code @ atoms)
        j = _best(scores, everywhere, nonnegative)
        if (scores[j] if nonnegative else abs(scores[j])) <= floor * np.linalg.norm(y):
            break
        code[j] += scores[j]
    return code


def orthogonal_matching_pursuit(
    y: Array, atoms: Array, k: int, *, nonnegative: bool = True, floor: float = 1e-14
) -> Array:
    code = np.zeros(len(atoms))
    tried = np.zeros(len(atoms), dtype=bool)
    for _ in range(k):
        scores = atoms @ (y - code @ atoms)
        j = _best(scores, ~tried, nonnegative)
        if (scores[j] if nonnegative else abs(scores[j])) <= floor * np.linalg.norm(y):
            break
        tried[j] = True
        support = np.flatnonzero(tried)
        code[support] = solve(y, atoms[support], nonnegative)
    return code


def solve(y: Array, chosen: Array, nonnegative: bool) -> Array:
    """Least squares on the chosen atoms."""
    if nonnegative:
        return np.asarray(nnls(chosen.T, y)[0])
    return np.asarray(np.linalg.lstsq(chosen.T, y, rcond=None)[0])


def gradient_pursuit(
    y: Array, atoms: Array, k: int, *, nonnegative: bool = True, inner_steps: int = 1, floor: float = 1e-14
) -> Array:
    code = np.zeros(len(atoms))
    chosen = np.zeros(len(atoms), dtype=bool)
    for _ in range(k):
        scores = atoms @ (y - code @ atoms)
        j = _best(scores, ~chosen, nonnegative)
        if (scores[j] if nonnegative else abs(scores[j])) <= floor * np.linalg.norm(y):
            break
        chosen[j] = True
        for _ in range(inner_steps):
            residual = y - code @ atoms
            gradient = np.where(chosen, atoms @ residual, 0)
            if nonnegative:
                gradient[(code == 0) & (gradient < 0)] = 0
            direction = gradient @ atoms
            if not gradient.any():
                break
            step = residual @ direction / (direction @ direction)
            if nonnegative and (gradient < 0).any():
                down = np.flatnonzero(gradient < 0)
                room = code[down] / -gradient[down]
                if room.min() <= step:
                    step = room.min()
                    code = code + step * gradient
                    code[down[room <= step]] = 0
                    continue
            code = code + step * gradient
    return code


def fista(y: Array, atoms: Array, penalty: float, n_steps: int, *, nonnegative: bool = True) -> Array:
    """Plain ISTA with FISTA's momentum, for as many steps as asked."""
    bound = np.linalg.norm(atoms, 2) ** 2
    code = point = np.zeros(len(atoms))
    t = 1.0
    for _ in range(n_steps):
        moved = point - (atoms @ (point @ atoms - y)) / bound
        if nonnegative:
            new = np.maximum(0, moved - penalty / bound)
        else:
            new = np.sign(moved) * np.maximum(0, np.abs(moved) - penalty / bound)
        t_new = (1 + np.sqrt(1 + 4 * t * t)) / 2
        point = new + (t - 1) / t_new * (new - code)
        code, t = new, t_new
    return code
