"""Two features in one dimension: the loss of any weights, two ways of dealing with it, and where they change places."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Nodes of the quadrature in each variable. The integrand has kinks: of the loss 128 leave 5e-5, 32 a thousandth.
NODES = 128
SEARCH_NODES = 32


@dataclass(frozen=True)
class TwoInOne:
    """Weights of two features in one dimension.

    Attributes:
        w: Of each feature.
        b: Bias of each.
        loss: Expected.
    """

    w: tuple[float, float]
    b: tuple[float, float]
    loss: float


def ignoring_loss(density: float, importance: float) -> float:
    """`r (p/3 - p^2/4)`: the first feature has the dimension, the second is guessed to be at its mean `p/2`.

    Args:
        density: `p`, the probability that a feature is present.
        importance: `r`, the second feature's; the first has 1.
    """
    _check(density, importance)
    return importance * (density / 3 - density**2 / 4)


def antipodal_loss(density: float, importance: float) -> float:
    """`(1 + r) p^2 / 6` of `W = (1, -1), b = 0`: when both are present each is off by the smaller of them.

    `x_1` comes out as `relu(x_1 - x_2)` and is off by the smaller one; so is `x_2`. `E min(x_1, x_2)^2 = 1/6`.
    """
    _check(density, importance)
    return (1 + importance) * density**2 / 6


def superposition_below(importance: float) -> float:
    """`4 r / (2 + 5 r)`: the density below which the pair of opposites loses less than ignoring the second feature."""
    _check(1.0, importance)
    return 4 * importance / (2 + 5 * importance)


def expected_loss(w: tuple[float, float], b: tuple[float, float], density: float, importance: float) -> float:
    """The loss of `x' = relu(w_i (w_1 x_1 + w_2 x_2) + b_i)`, by Gauss-Legendre quadrature."""
    _check(density, importance)
    return _loss(np.array([*w, *b]), density, importance, *_nodes(NODES))


def best_two_in_one(density: float, importance: float, *, starts: int = 8, seed: int = 0) -> TwoInOne:
    """The least loss that local searches reach: from both ways of dealing with it, and from random weights.

    Args:
        density, importance: As in `ignoring_loss`.
        starts: Random ones.
    Raises:
        ValueError: a density outside `(0, 1]`, an importance outside `(0, 1]`.
    """
    from scipy.optimize import minimize

    _check(density, importance)
    random = np.random.default_rng(seed).normal(size=(starts, 4)) * [1, 1, 0.3, 0.3]
    begin = [[1.0, 0.0, 0.0, density / 2], [0.0, 1.0, density / 2, 0.0], [1.0, -1.0, 0.0, 0.0], *random]
    nodes = _nodes(SEARCH_NODES)
    ends = [
        minimize(_loss, start, (density, importance, *nodes), "Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9})
        for start in begin
    ]
    best = min(ends, key=lambda end: float(end.fun))
    w1, w2, b1, b2 = (float(x) for x in best.x)
    return TwoInOne((w1, w2), (b1, b2), expected_loss((w1, w2), (b1, b2), density, importance))


def _nodes(n: int) -> tuple[Array, Array]:
    """Of `[0, 1]`, and their weights."""
    x, weights = np.polynomial.legendre.leggauss(n)
    return (x + 1) / 2, weights / 2


def _loss(parameters: Array, p: float, r: float, x: Array, weights: Array) -> float:
    zero = np.zeros(1)
    neither = _error(parameters, r, zero, zero)[0]
    one = weights @ (_error(parameters, r, x, zero) + _error(parameters, r, zero, x))
    both = weights @ _error(parameters, r, x[:, None], x[None]) @ weights
    return float((1 - p) ** 2 * neither + p * (1 - p) * one + p**2 * both)


def _error(parameters: Array, r: float, x1: Array, x2: Array) -> Array:
    """Of one input, or of many."""
    w1, w2, b1, b2 = parameters
    h = w1 * x1 + w2 * x2
    first, second = np.maximum(w1 * h + b1, 0) - x1, np.maximum(w2 * h + b2, 0) - x2
    squares: Array = first**2 + r * second**2
    return squares


def _check(density: float, importance: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], got {density}")
    if not 0 < importance <= 1:
        raise ValueError(f"importance must lie in (0, 1], that of the first feature being 1, got {importance}")
