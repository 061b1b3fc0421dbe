"""What a faultless sampler reads at a finite temperature, by quadrature or in closed form.

The estimate `n_beta (E[L] - L(w*))` is not the learning coefficient: it approaches it as `n_beta` grows, in singular
models as slowly as `1 / log n_beta`. A sampler is right when it reads the values computed here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Excess = Callable[..., Any]  # `K` of one or two arrays of coordinates, element by element

_NODES = 16  # of each Gauss rule, over one unit of log |w|
_DEEPEST = -30.0  # log |w| below which nothing is counted: a share of about 1e-13


def local_coefficient(
    excess: Excess, n_beta: float, *, dimension: int, gamma: float = 0.0, half_width: float | None = None
) -> float:
    """`n_beta E[K]` under the density proportional to `exp(-n_beta K(w) - gamma |w|^2 / 2)`, in one or two dimensions.

    With `gamma = 1` and no box this is also the slope `-d log Z / d log n` of the evidence under a standard normal
    prior, at `n = n_beta`.

    Args:
        excess: `K >= 0` with its minimum 0 at the origin: takes `dimension` arrays, returns one of their shape.
        n_beta: Samples times inverse temperature.
        dimension: 1 or 2.
        gamma: Precision of the Gaussian that keeps `w` near the origin.
        half_width: Keep to `|w_i| <= half_width` as well; needed where `gamma` is 0.
    Raises:
        ValueError: an argument is out of range, or nothing bounds `w`.
    """
    _, mean = _posterior(excess, n_beta, dimension, gamma, half_width)
    return n_beta * mean


def log_evidence(
    excess: Excess, n: float, *, dimension: int, gamma: float = 1.0, half_width: float | None = None
) -> float:
    """`log Z(n)`, `Z` the mean of `exp(-n K)` under the prior that `local_coefficient` names, normalised.

    Raises:
        ValueError: as `local_coefficient`.
    """
    total, _ = _posterior(excess, n, dimension, gamma, half_width)
    prior, _ = _posterior(excess, 0.0, dimension, gamma, half_width)
    return total - prior


def evidence_slope(
    excess: Excess, n: float, *, dimension: int, gamma: float = 1.0, half_width: float | None = None
) -> float:
    """`-d log Z / d log n` by a central difference of `log_evidence`: what one more e-fold of data costs, in nats.

    Raises:
        ValueError: as `local_coefficient`.
    """
    step = 1e-3
    ends = [
        log_evidence(excess, n * math.exp(sign * step), dimension=dimension, gamma=gamma, half_width=half_width)
        for sign in (-1, 1)
    ]
    return (ends[0] - ends[1]) / (2 * step)


def quadratic_sgld(
    eigenvalues: Sequence[float], n_beta: float, *, gamma: float, step: float, noise_variance: float = 0.0
) -> float:
    """What SGLD with a finite step reads on `L = sum_i h_i w_i^2 / 2`, in the long run.

    Each coordinate is an autoregression of order one; with `a_i = n_beta h_i + gamma` its variance is
    `(step + (step n_beta / 2)^2 v) / (step a_i - (step a_i)^2 / 4)`. As `step -> 0` the answer becomes
    `sum_i n_beta h_i / (2 a_i)`: half the number of directions with `n_beta h_i` well above `gamma`.

    Args:
        eigenvalues: The `h_i`.
        n_beta: Samples times inverse temperature.
        gamma: Precision of the localisation.
        step: `epsilon` of the update.
        noise_variance: `v`, variance of the minibatch gradient of `L` in each coordinate.
    Raises:
        ValueError: the step is so large that a coordinate diverges, or an argument is out of range.
    """
    if n_beta <= 0 or step <= 0 or gamma < 0 or noise_variance < 0:
        raise ValueError(
            f"n_beta and step must be above 0, gamma and noise_variance not below, got {n_beta}, {step}, {gamma}, "
            f"{noise_variance}"
        )
    total = 0.0
    for h in eigenvalues:
        stiffness = step * (n_beta * h + gamma)
        if not 0 < stiffness < 4:
            raise ValueError(
                f"step * (n_beta h + gamma) must lie between 0 and 4, got {stiffness:.3g} at h = {h:.3g}; "
                f"{'lower step' if stiffness >= 4 else 'raise gamma'}"
            )
        variance = (step + (step * n_beta / 2) ** 2 * noise_variance) / (stiffness - stiffness**2 / 4)
        total += n_beta * h * variance / 2
    return total


def zero_rank_regression(inputs: int, outputs: int, hidden: int, n_beta: float, *, gamma: float) -> float:
    """`n_beta E[K]` of `K = |B A|^2 / 2` (reduced-rank regression on white inputs, truth 0) near `A = B = 0`.

    Given `A` the rows of `B` are Gaussian, so that only the eigenvalues of `gamma A A^T` are left, those of a Wishart
    matrix: with `s = n_beta / gamma^2` they have the density `prod l^((M-H-1)/2) e^(-l/2) (1 + s l)^(-N/2)` times, for
    two units, `|l_1 - l_2|`, and the answer is `N/2` times the mean of `sum s l / (1 + s l)`.

    Args:
        inputs, outputs, hidden: Widths; the hidden one 1 or 2 and no larger than the others.
        n_beta: Samples times inverse temperature.
        gamma: Precision of the localisation, above 0.
    Raises:
        ValueError: a width or another argument is out of range.
    """
    if hidden not in (1, 2) or min(inputs, outputs) < hidden:
        raise ValueError(
            f"hidden must be 1 or 2 and no larger than inputs and outputs, got {hidden}, {inputs}, {outputs}"
        )
    if n_beta <= 0 or gamma <= 0:
        raise ValueError(f"n_beta and gamma must be above 0, got {n_beta} and {gamma}")
    scale = n_beta / gamma**2
    log_l, weights = _rule(math.log(400.0 + 4 * inputs))
    density = (inputs - hidden + 1) / 2 * log_l - np.exp(log_l) / 2 - outputs / 2 * np.log1p(scale * np.exp(log_l))
    density = density + np.log(weights)
    share = scale * np.exp(log_l) / (1 + scale * np.exp(log_l))
    if hidden == 1:
        return outputs / 2 * _mean(density, share)
    first, second = np.exp(log_l)[:, None], np.exp(log_l)[None, :]
    with np.errstate(divide="ignore"):  # equal eigenvalues have density 0
        joint = density[:, None] + density[None, :] + np.log(np.abs(first - second))
    return outputs / 2 * _mean(joint, share[:, None] + share[None, :])


def _posterior(
    excess: Excess, n_beta: float, dimension: int, gamma: float, half_width: float | None
) -> tuple[float, float]:
    """Log of the integral of the density, and the mean of `K` under it.

    Gauss rules in `log |w_i|`, one for each unit: what is as sharp as a power of `1 / n_beta` in `w` is smooth there.
    """
    if dimension not in (1, 2):
        raise ValueError(f"dimension must be 1 or 2, got {dimension}")
    if n_beta < 0 or gamma < 0 or (half_width is not None and half_width <= 0):
        raise ValueError(f"n_beta and gamma must not be below 0, half_width above, got {n_beta}, {gamma}, {half_width}")
    if gamma == 0 and half_width is None:
        raise ValueError("nothing bounds w: give gamma above 0 or half_width")
    ends = [half_width] if half_width is not None else []
    ends += [12 / math.sqrt(gamma)] if gamma > 0 else []  # beyond twelve standard deviations: e^-72
    log_w, weights = _rule(math.log(min(ends)))
    measure = np.log(weights) + log_w  # dw = |w| d log |w|
    sides = np.concatenate([-np.exp(log_w), np.exp(log_w)])
    measure = np.concatenate([measure, measure])
    axes = [sides] if dimension == 1 else [sides[:, None], sides[None, :]]
    values = np.asarray(excess(*axes), dtype=np.float64)
    logs = measure if dimension == 1 else measure[:, None] + measure[None, :]
    for axis in axes:
        logs = logs - gamma / 2 * axis**2
    logs = logs - n_beta * values
    largest = float(logs.max())
    total = largest + math.log(float(np.exp(logs - largest).sum()))
    return total, _mean(logs, values)


def _rule(end: float) -> tuple[Array, Array]:
    """Nodes and weights over `[_DEEPEST, end]`, a Gauss rule for each unit."""
    from scipy.special import roots_legendre

    nodes, weights = roots_legendre(_NODES)
    panels = math.ceil(end - _DEEPEST)
    width = (end - _DEEPEST) / panels
    starts = _DEEPEST + width * np.arange(panels)
    placed = starts[:, None] + width * (nodes + 1)[None, :] / 2
    return placed.ravel(), np.tile(weights * width / 2, panels)


def _mean(logs: Array, values: Array) -> float:
    share = np.exp(logs - logs.max())
    return float((share * values).sum() / share.sum())
