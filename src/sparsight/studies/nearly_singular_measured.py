"""What the study of nearly singular models measures: sampled coefficients, exact ones, and Gaussians beside both."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsight.theory.learning_coefficient import (
    Chains,
    FunctionLoss,
    LearningCoefficient,
    gaussian_coefficients,
    laplace_fit,
    learning_coefficient,
    local_coefficient,
    mean_field_fit,
    zero_rank_regression,
)
from sparsight.theory.learning_coefficient.finite import Excess

SLOPES = (0.1, 0.01, 0.001)  # the `a` of `a w^2 + w^4`
SHARES = (0.01, 0.1, 1.0, 10.0, 100.0)  # of `1 / a^2`: the temperatures of its curve
WEAK = 0.01  # localisation of the line: too weak to matter
CROSSING_BETAS = (1e1, 1e2, 1e3, 1e4)
REGRESSIONS = ((4, 6, 1, 0), (3, 3, 2, 0), (5, 4, 2, 0), (4, 6, 1, 1), (4, 4, 2, 2))  # inputs, outputs, hidden, rank
REGRESSION_BETAS = (1e1, 1e2, 1e3, 1e4)
WIDTHS = (4, 6, 1)
SHORT = (0.01, 0.03, 0.1)  # share of the full effort of runs that are too short on purpose
STRENGTHS = (0.0, 0.1, 1.0)  # singular value of the truth of a network of rank one
STRENGTH_BETAS = (1e0, 1e1, 1e2, 1e3, 1e4)
TANH_BETAS = (1e4, 1e5, 1e6)
TANH_GAMMA = 100.0
# a1, b1, a2, b2 of a1 tanh(b1 x) + a2 tanh(b2 x), with the coefficient that expanding K at the point gives.
POINTS: dict[str, tuple[tuple[float, float, float, float], float]] = {
    "generic": ((1.0, 0.3, 2.0, 2.0), 2.0),
    "generic, units swapped": ((2.0, 2.0, 1.0, 0.3), 2.0),
    "one unit dead": ((2.0, 0.6, 0.0, 2.0), 1.5),
    "units merged": ((1.0, 0.6, 1.0, 0.6), 1.25),
}
GAUSSIAN_BETAS = (1e2, 1e3, 1e4, 1e6)
# K, dimension, half the rank of its Hessian, its learning coefficient
KNOWN: dict[str, tuple[Excess, int, float, float]] = {
    "w^2": (lambda w: w**2, 1, 0.5, 0.5),
    "w^4": (lambda w: w**4, 1, 0.0, 0.25),
    "0.01 w^2 + w^4": (lambda w: 0.01 * w**2 + w**4, 1, 0.5, 0.5),
    "(w1 w2)^2": (lambda a, b: (a * b) ** 2, 2, 0.0, 0.5),
}


@dataclass(frozen=True)
class Plan:
    """How long chains run: `effort` multiplies steps and draws."""

    n_chains: int
    effort: float


def near_curve(slope: float, sampler: str, plan: Plan, seed: int) -> list[dict[str, Any]]:
    """Sampled and exact coefficients of `a w^2 + w^4` at temperatures around `1 / a^2`."""
    loss = FunctionLoss(lambda w: slope * w[:, 0] ** 2 + w[:, 0] ** 4, batched=True)
    found = []
    for i, share in enumerate(SHARES):
        n_beta = share / slope**2
        how = _chains(sampler, plan, draws=100, burn_in=600, thin=4 if sampler == "mala" else 25)
        exact = local_coefficient(lambda w: slope * w**2 + w**4, n_beta, dimension=1, gamma=WEAK)
        e = _sampled(loss, torch.zeros(1, dtype=torch.float64), how, n_beta, WEAK, 10 * seed + i)
        found.append(_row(e, exact=exact, share=share))
    return found


def crossing_curve(sampler: str, plan: Plan, seed: int) -> list[dict[str, Any]]:
    """Sampled and exact coefficients of `(w1 w2)^2`, on the same budget of steps at each temperature."""
    loss = FunctionLoss(lambda w: (w[:, 0] * w[:, 1]) ** 2, batched=True)
    found = []
    for i, n_beta in enumerate(CROSSING_BETAS):
        how = _chains(sampler, plan, draws=100, burn_in=4000, thin=100)
        exact = local_coefficient(lambda a, b: (a * b) ** 2, n_beta, dimension=2, gamma=1.0)
        e = _sampled(loss, torch.zeros(2, dtype=torch.float64), how, n_beta, 1.0, 10 * seed + i)
        found.append(_row(e, exact=exact))
    return found


def regression_curve(sizes: tuple[int, int, int, int], plan: Plan, seed: int) -> list[dict[str, Any]]:
    """Reduced-rank regression at the most singular parameters of its truth; also exact where the truth is 0."""
    inputs, outputs, hidden, rank = sizes
    loss, w_star = _regression(inputs, outputs, hidden, [1.0] * rank)
    found = []
    for i, n_beta in enumerate(REGRESSION_BETAS):
        how = _chains("mala", plan, draws=50, burn_in=2000, thin=40, adapt=True)
        exact = zero_rank_regression(inputs, outputs, hidden, n_beta, gamma=1.0) if rank == 0 else None
        found.append(_row(_sampled(loss, w_star, how, n_beta, 1.0, 10 * seed + i), exact=exact))
    return found


def strength_curve(strength: float, plan: Plan, seed: int) -> list[dict[str, Any]]:
    """A network of rank one whose truth has one singular value: 0, small, or 1."""
    inputs, outputs, hidden = WIDTHS
    loss, w_star = _regression(inputs, outputs, hidden, [strength])
    found = []
    for i, n_beta in enumerate(STRENGTH_BETAS):
        how = _chains("mala", plan, draws=80, burn_in=3000, thin=60, adapt=True)
        exact = zero_rank_regression(inputs, outputs, hidden, n_beta, gamma=1.0) if strength == 0 else None
        found.append(_row(_sampled(loss, w_star, how, n_beta, 1.0, 10 * seed + i), exact=exact))
    return found


def tanh_points(name: str, plan: Plan, seed: int) -> dict[str, Any]:
    """Two tanh units at one point: Hessian, adapted chains over temperatures, and plain SGLD as it is mostly run."""
    point = torch.tensor(POINTS[name][0], dtype=torch.float64)
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)

    def output(w: Tensor) -> Tensor:
        return w[:, :1] * torch.tanh(w[:, 1:2] * x) + w[:, 2:3] * torch.tanh(w[:, 3:] * x)

    loss = FunctionLoss(lambda w: (output(w) - output(point[None])).square().mean(dim=1), batched=True)
    found: dict[str, Any] = {"curve": []}
    for i, n_beta in enumerate(TANH_BETAS):
        how = _chains("mala", plan, draws=100, burn_in=4000, thin=20, adapt=True)
        found["curve"].append(_row(_sampled(loss, point, how, n_beta, TANH_GAMMA, 10 * seed + i)))
    gaussian = gaussian_coefficients(loss, point, n_beta=TANH_BETAS[-1], gamma=TANH_GAMMA)
    found["half_rank"], found["laplace"], found["flat"] = gaussian.half_rank, gaussian.laplace, gaussian.flat
    plain = Chains(n_chains=8, n_draws=1000, n_burn_in=1000)
    found["plain"] = _row(_sampled(loss, point, plain, TANH_BETAS[-1], TANH_GAMMA, 10 * seed + 9))
    return found


def short_runs(plan: Plan, seed: int) -> list[dict[str, Any]]:
    """Runs that are too short on purpose, of losses whose answer is known: what do the diagnostics say of them?"""
    found = []
    for i, effort in enumerate(SHORT if plan.effort == 1 else SHORT[-1:]):
        short = Plan(plan.n_chains, effort * plan.effort)
        for sampler in ("mala", "sgld"):
            found += crossing_curve(sampler, short, seed + 10 * i)
        for j, sizes in enumerate(REGRESSIONS):
            if sizes[3] == 0:
                found += regression_curve(sizes, short, seed + 10 * i + j)
    return found


def gaussian_rows() -> list[dict[str, Any]]:
    """Known losses at each temperature: what is exact, and what two Gaussians in its place say. Nothing is sampled."""
    found = []
    for name, (excess, dimension, half_rank, coefficient) in KNOWN.items():
        for n_beta in GAUSSIAN_BETAS:
            laplace = laplace_fit(excess, n_beta, dimension=dimension, gamma=1.0)
            field = mean_field_fit(excess, n_beta, dimension=dimension, gamma=1.0)
            found.append(
                {
                    "name": name,
                    "n_beta": n_beta,
                    "half_rank": half_rank,
                    "coefficient": coefficient,
                    "half_dimension": dimension / 2,
                    "exact": local_coefficient(excess, n_beta, dimension=dimension, gamma=1.0),
                    "laplace": laplace.coefficient,
                    "laplace_divergence": max(0.0, laplace.divergence),
                    "field": field.coefficient,
                    "field_divergence": max(0.0, field.divergence),
                }
            )
    return found


def _regression(inputs: int, outputs: int, hidden: int, strengths: list[float]) -> tuple[FunctionLoss, Tensor]:
    """`|B A - truth|^2 / 2`, truth diagonal, and the parameters that share each singular value between `A` and `B`."""
    a, b = torch.zeros(hidden, inputs, dtype=torch.float64), torch.zeros(outputs, hidden, dtype=torch.float64)
    for i, strength in enumerate(strengths):
        a[i, i] = b[i, i] = math.sqrt(strength)
    truth = b @ a

    def loss(w: Tensor) -> Tensor:
        first = w[:, : hidden * inputs].reshape(-1, hidden, inputs)
        second = w[:, hidden * inputs :].reshape(-1, outputs, hidden)
        return (second @ first - truth).square().sum(dim=(1, 2)) / 2

    return FunctionLoss(loss, batched=True), torch.cat([a.flatten(), b.flatten()])


def _chains(sampler: str, plan: Plan, *, draws: int, burn_in: int, thin: int, adapt: bool = False) -> Chains:
    return Chains(
        sampler="mala" if sampler == "mala" else "sgld",
        n_chains=plan.n_chains,
        n_draws=max(8, round(draws * plan.effort)),
        n_burn_in=round(burn_in * plan.effort),
        steps_per_draw=thin,
        adapt=adapt,
    )


def _sampled(
    loss: FunctionLoss, w_star: Tensor, how: Chains, n_beta: float, gamma: float, seed: int
) -> LearningCoefficient:
    generator = torch.Generator().manual_seed(seed)
    return learning_coefficient(loss, w_star, how, n_beta=n_beta, gamma=gamma, generator=generator)


def _row(found: LearningCoefficient, **known: float | None) -> dict[str, Any]:
    """What of an estimate goes into a study's part."""
    kept = ("value", "standard_error", "n_beta", "n_chains", "step", "r_hat", "ess", "growth", "acceptance")
    return {**{name: getattr(found, name) for name in kept}, "problems": found.problems, **known}
