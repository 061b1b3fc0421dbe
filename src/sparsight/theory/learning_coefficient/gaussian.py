"""What Gaussian approximations make of a minimum: half the rank of the Hessian, half the dimension, errors."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.record import Record
from sparsight.theory.learning_coefficient.finite import Array, Excess, log_evidence
from sparsight.theory.learning_coefficient.losses import AbstractLoss
from sparsight.theory.learning_coefficient.posterior import LocalPosterior, posterior_near

MOST_PARAMETERS = 4096  # whose whole Hessian is formed
MOST_FLAT = 0.05  # share of directions without curvature, above which a Gaussian is not to be believed

_HERMITE = 32  # exact for polynomials of degree 63


class GaussianCoefficients(Record):
    """Coefficients that Gaussian approximations imply, for comparison with `LearningCoefficient.value`.

    A learning coefficient lies between `half_rank` and `half_dimension`; where the two are equal the model is regular.

    Attributes:
        half_rank: `rank(H) / 2`: Laplace's approximation with a prior, as `n` grows; flat directions count nothing.
        laplace: `sum_i n_beta h_i / (2 (n_beta h_i + gamma))`: the same at this temperature.
        half_dimension: `d / 2`: BIC; flat directions count as if they were curved.
        n_beta, gamma: As given.
        n_parameters: `d`.
        flat: Share of directions with `|h| < gamma / n_beta`.
        largest, least: Eigenvalues of the Hessian of the loss.
    """

    half_rank: float
    laplace: float
    half_dimension: float
    n_beta: float
    gamma: float
    n_parameters: int
    flat: float
    largest: float
    least: float

    @property
    def verdict(self) -> str:
        """Whether a Gaussian is to be believed here."""
        if self.flat > MOST_FLAT:
            return (
                f"not to be believed: {self.flat:.0%} of {self.n_parameters} directions have no curvature at n_beta "
                f"{self.n_beta:.3g}; what they cost lies between {self.half_rank:g} and {self.half_dimension:g}"
            )
        return "all directions have curvature"


class GaussianFit(Record):
    """A Gaussian put in the place of the posterior of one or two parameters.

    Attributes:
        sd: Standard deviation of each parameter.
        coefficient: `n_beta E[K]` under the Gaussian.
        divergence: `KL(Gaussian || posterior)` in nats; for variational inference the gap of its bound.
    """

    sd: list[float]
    coefficient: float
    divergence: float


def gaussian_coefficients(
    loss: AbstractLoss,
    w_star: Float[Tensor, " d"],
    *,
    n_beta: float | None = None,
    gamma: float = 1.0,
    mask: Bool[Tensor, " d"] | None = None,
    tolerance: float = 1e-6,
) -> GaussianCoefficients:
    """Half the rank of the Hessian at `w_star`, what Laplace's approximation reads there, and half the dimension.

    Args:
        tolerance: Eigenvalues below this share of the largest count as 0 in the rank.
        loss, w_star, n_beta, gamma, mask: As for `learning_coefficient`.
    Raises:
        ValueError: an argument is out of range, or more than 4096 parameters vary.
        UndefinedMetric: an eigenvalue is below `-gamma / n_beta`: no Gaussian has that curvature.
    """
    posterior = posterior_near(loss, w_star, n_beta, gamma, mask)
    if posterior.dimension > MOST_PARAMETERS:
        raise ValueError(
            f"at most {MOST_PARAMETERS} parameters may vary, for their whole Hessian is formed; got "
            f"{posterior.dimension}; restrict them with mask"
        )
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, got {tolerance}")
    h = torch.linalg.eigvalsh(hessian(posterior))
    precision = posterior.n_beta * h + gamma
    least, largest = float(h.min()), float(h.max())
    if least < 0 and float(precision.min()) <= 0:
        raise UndefinedMetric(
            f"the Hessian has the eigenvalue {least:.3g}, below -gamma / n_beta = {-gamma / posterior.n_beta:.3g}: w* "
            "is no minimum, and no Gaussian has this curvature; optimise further or raise gamma"
        )
    counted = h > tolerance * max(largest, 0.0)
    read = posterior.n_beta * h[counted] / (2 * precision[counted])
    flat = h.abs() < gamma / posterior.n_beta if gamma > 0 else ~counted
    return GaussianCoefficients(
        half_rank=int(counted.sum()) / 2,
        laplace=float(read.sum()),
        half_dimension=posterior.dimension / 2,
        n_beta=posterior.n_beta,
        gamma=gamma,
        n_parameters=posterior.dimension,
        flat=float(flat.double().mean()),
        largest=largest,
        least=least,
    )


def hessian(posterior: LocalPosterior) -> Float64[Tensor, "m m"]:
    """The Hessian of `L` at `w*` in the coordinates that vary, column by column, made symmetric."""
    moving = posterior.moves.nonzero()[:, 0]
    columns = []
    for start in range(0, len(moving), 64):
        some = moving[start : start + 64]
        units = torch.zeros(len(some), len(posterior.w_star)).to(posterior.w_star)
        units[torch.arange(len(some)), some] = 1
        columns.append(posterior.hessian_times(posterior.w_star.expand(len(some), -1), units)[:, moving])
    full = torch.cat(columns).double()
    return (full + full.T) / 2


def laplace_fit(excess: Excess, n_beta: float, *, dimension: int, gamma: float) -> GaussianFit:
    """The Gaussian with the curvature that the posterior `exp(-n_beta K - gamma |w|^2 / 2)` has at the origin.

    Args:
        excess, n_beta, dimension, gamma: As for `local_coefficient`, gamma above 0.
    Raises:
        ValueError: as `local_coefficient`, or gamma is 0.
    """
    _check_gamma(gamma)
    precision = n_beta * _curvature_at_origin(excess, dimension) + gamma * np.eye(dimension)
    return _fit(excess, n_beta, gamma, np.asarray(np.linalg.inv(precision), dtype=np.float64))


def mean_field_fit(excess: Excess, n_beta: float, *, dimension: int, gamma: float) -> GaussianFit:
    """The Gaussian with independent coordinates, centred at the origin, of the least divergence from the posterior.

    Args:
        excess, n_beta, dimension, gamma: As for `local_coefficient`, gamma above 0.
    Raises:
        ValueError: as `local_coefficient`, or gamma is 0.
    """
    from scipy.optimize import minimize

    _check_gamma(gamma)

    def bound(log_sd: Array) -> float:
        covariance = np.diag(np.exp(2 * log_sd))
        return n_beta * _mean_excess(excess, covariance) + gamma / 2 * float(np.trace(covariance)) - float(log_sd.sum())

    widest = -math.log(gamma) / 2
    starts = [np.full(dimension, widest - depth) for depth in (0.0, math.log1p(n_beta / gamma) / 4)]
    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
    found = [minimize(bound, start, method="Nelder-Mead", options=options) for start in starts]
    best = min(found, key=lambda result: float(result.fun))
    return _fit(excess, n_beta, gamma, np.diag(np.exp(2 * best.x)))


def _check_gamma(gamma: float) -> None:
    if gamma <= 0:
        raise ValueError(f"gamma must be above 0 for a posterior on the whole line, got {gamma}")


def _fit(excess: Excess, n_beta: float, gamma: float, covariance: Array) -> GaussianFit:
    dimension = len(covariance)
    mean = _mean_excess(excess, covariance)
    energy = n_beta * mean + gamma / 2 * float(np.trace(covariance))
    entropy = (dimension * math.log(2 * math.pi * math.e) + float(np.linalg.slogdet(covariance)[1])) / 2
    evidence = log_evidence(excess, n_beta, dimension=dimension, gamma=gamma)
    log_total = evidence + dimension / 2 * math.log(2 * math.pi / gamma)
    return GaussianFit(
        sd=np.sqrt(np.diag(covariance)).tolist(),
        coefficient=n_beta * mean,
        divergence=energy - entropy + log_total,
    )


def _mean_excess(excess: Excess, covariance: Array) -> float:
    """`E[K]` under a centred Gaussian, by a Gauss rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_HERMITE)
    root = np.linalg.cholesky(covariance)
    if len(covariance) == 1:
        return float((weights * excess(root[0, 0] * nodes)).sum() / weights.sum())
    first, second = np.meshgrid(nodes, nodes, indexing="ij")
    joint = weights[:, None] * weights[None, :]
    values = excess(root[0, 0] * first, root[1, 0] * first + root[1, 1] * second)
    return float((joint * values).sum() / joint.sum())


def _curvature_at_origin(excess: Excess, dimension: int) -> Array:
    """Hessian of `K` at its minimum 0, by central differences: `K` is 0 there, so that nothing cancels."""
    if dimension not in (1, 2):
        raise ValueError(f"dimension must be 1 or 2, got {dimension}")
    step = 1e-6

    def at(*signs: int) -> float:
        return float(np.asarray(excess(*(np.asarray(step * s) for s in signs)))) / step**2

    if dimension == 1:
        return np.array([[at(1) + at(-1)]])
    cross = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    return np.array([[at(1, 0) + at(-1, 0), cross], [cross, at(0, 1) + at(0, -1)]])
