"""The local learning coefficient of any differentiable loss, and its curve over temperatures."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.theory.learning_coefficient.losses import AbstractLoss
from sparsight.theory.learning_coefficient.mixing import effective_sample_size, growth, split_r_hat
from sparsight.theory.learning_coefficient.posterior import LocalPosterior, posterior_near
from sparsight.theory.learning_coefficient.record import LearningCoefficient
from sparsight.theory.learning_coefficient.sampling import Chains, Draws, draw

_DESCENT = 50  # steps of gradient descent from w*


def learning_coefficient(
    loss: AbstractLoss,
    w_star: Float[Tensor, " d"],
    chains: Chains | None = None,
    *,
    n_beta: float | None = None,
    gamma: float = 1.0,
    mask: Bool[Tensor, " d"] | None = None,
    generator: torch.Generator | None = None,
) -> LearningCoefficient:
    """Estimate `n_beta (E[L(w)] - L(w*))` under the density proportional to `exp(-n_beta L - gamma |w - w*|^2 / 2)`.

    A regular minimum of `d` parameters gives `d / 2` once `n_beta h` is well above `gamma` in every direction; a
    singular one gives less. The value belongs to its `n_beta`: see `curve`.

    Args:
        loss: A mean loss over data.
        w_star: A local minimum of it; its precision is that of the sampling.
        chains: How to sample; the defaults of `Chains` when None.
        n_beta: Samples times inverse temperature; `n / log n` of the loss's data when None.
        gamma: Precision of the Gaussian that keeps the chains near `w*`.
        mask: True for the parameters that vary; all when None. The result is then the coefficient of the model
            restricted to them.
        generator: Of all random numbers; seeded with 0 when None.
    Returns:
        The estimate with its diagnostics; ask its `verdict` before using its `value`.
    Raises:
        ValueError: an argument is out of range, of the wrong shape, or the loss at `w*` is not finite.
        UndefinedMetric: the chains diverged.
    Source:
        Lau et al., "The local learning coefficient: a singularity-aware complexity measure", arXiv 2308.12108.
        We measure the loss on all data at each draw, so that only gradients are noisy.
    """
    chains, generator = chains or Chains(), generator or torch.Generator().manual_seed(0)
    posterior = posterior_near(loss, w_star, n_beta, gamma, mask)
    loss_star = _loss_star(loss, w_star)
    _, gradient = posterior.gradient(w_star[None])
    found = draw(posterior, chains, loss_star, generator)
    r_hat, ess = split_r_hat(found.excess), effective_sample_size(found.excess)
    grown, grown_z = growth(found.squared_distance)
    pooled = posterior.n_beta * float(found.excess.std())
    return LearningCoefficient(
        value=posterior.n_beta * float(found.excess.mean()),
        standard_error=pooled / math.sqrt(ess),
        by_chain=(posterior.n_beta * found.excess.mean(dim=1)).tolist(),
        n_beta=posterior.n_beta,
        gamma=gamma,
        n_parameters=posterior.dimension,
        sampler=chains.sampler,
        step=found.step,
        n_chains=chains.n_chains,
        n_draws=chains.n_draws,
        n_burn_in=chains.n_burn_in,
        steps_per_draw=chains.steps_per_draw,
        seed=generator.initial_seed(),
        loss_star=loss_star,
        gradient_norm=float(gradient.norm()),
        headroom=_headroom(posterior, loss_star, generator),
        ess=ess,
        r_hat=r_hat if math.isfinite(r_hat) else None,
        below=float((found.excess < -_rounding(w_star, loss_star)).double().mean()),
        noise_ratio=_noise_ratio(posterior, found, chains, generator),
        discretisation_ratio=_discretisation_ratio(posterior, found, generator),
        acceptance=found.acceptance,
        distance=math.sqrt(float(found.squared_distance.mean())),
        growth=grown,
        growth_z=grown_z,
        trace=found.excess.tolist(),
    )


def curve(
    loss: AbstractLoss,
    w_star: Float[Tensor, " d"],
    n_betas: Sequence[float],
    chains: Chains | None = None,
    *,
    gamma: float = 1.0,
    mask: Bool[Tensor, " d"] | None = None,
    generator: torch.Generator | None = None,
) -> list[LearningCoefficient]:
    """The estimate at each `n_beta`: what a nearly singular model needs, whose one number depends on the temperature.

    Where the curve is flat over three decades or more its level is the learning coefficient; where it rises the model
    is singular at the small `n_beta` and less so, or regular, at the large ones.

    Args:
        n_betas: Increasing; see `decades`. The other arguments are those of `learning_coefficient`.
    Raises:
        ValueError: as `learning_coefficient`, or the temperatures are fewer than two or do not increase.
        UndefinedMetric: the chains diverged.
    """
    if len(n_betas) < 2 or any(b <= a for a, b in pairwise(n_betas)):
        raise ValueError(f"n_betas must be two or more increasing numbers, got {list(n_betas)}")
    generator = generator or torch.Generator().manual_seed(0)
    return [
        learning_coefficient(loss, w_star, chains, n_beta=n_beta, gamma=gamma, mask=mask, generator=generator)
        for n_beta in n_betas
    ]


def decades(low: float, high: float, per_decade: int = 2) -> list[float]:
    """Numbers from `low` to `high`, evenly spaced in their logarithm, both ends included.

    Raises:
        ValueError: the ends are not positive and increasing, or `per_decade` is below 1.
    """
    if not 0 < low < high or per_decade < 1:
        raise ValueError(f"expected 0 < low < high and per_decade of 1 or more, got {low}, {high}, {per_decade}")
    steps = max(1, round(math.log10(high / low) * per_decade))
    return [low * (high / low) ** (i / steps) for i in range(steps)] + [high]


def _loss_star(loss: AbstractLoss, w_star: Tensor) -> float:
    with torch.no_grad():
        found = loss.at(w_star[None])
    if found.shape != (1,):
        raise ValueError(f"the loss must be one number for each w, got shape {tuple(found.shape)} for one w")
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"the loss at w_star must be finite, got {float(found[0])}; check the data and w_star")
    return float(found[0])


def _headroom(posterior: LocalPosterior, loss_star: float, generator: torch.Generator) -> float:
    """`n_beta` times the largest drop of the loss along gradient descent on the energy from `w*`."""
    w, least = posterior.w_star[None], loss_star
    step = 1 / max(float(posterior.curvature(w, generator)[0]), posterior.gamma, 1e-30)
    for _ in range(_DESCENT):
        losses, gradient = posterior.gradient(w)
        if not math.isfinite(float(losses[0])):
            break
        least = min(least, float(losses[0]))
        w = w - step * posterior.drift(w, gradient)
    return posterior.n_beta * max(0.0, loss_star - least - _rounding(w, loss_star))


def _noise_ratio(posterior: LocalPosterior, found: Draws, chains: Chains, generator: torch.Generator) -> float:
    if chains.sampler == "mala":
        return 0.0
    return found.step * posterior.n_beta**2 * posterior.gradient_noise(generator) / 4


def _discretisation_ratio(posterior: LocalPosterior, found: Draws, generator: torch.Generator) -> float:
    at_star = float(posterior.curvature(posterior.w_star[None], generator, shape=found.shape)[0])
    at_end = float(
        posterior.curvature(found.last[: 8 if posterior.loss.full_batch else 2], generator, shape=found.shape).mean()
    )
    ratio = found.step * max(at_star, at_end) / 4
    if not math.isfinite(ratio):
        raise UndefinedMetric("the curvature where the chains ended is not finite; lower step")
    return ratio


def _rounding(w: Tensor, loss_star: float) -> float:
    """How far apart two equal losses may come out."""
    return 8 * torch.finfo(w.dtype).eps * abs(loss_star)
