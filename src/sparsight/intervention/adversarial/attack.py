"""The inner loop: projected gradient ascent on a perturbation of activations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.errors import DataError
from sparsight.intervention.adversarial.ball import Ball


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How a perturbation is looked for.

    Attributes:
        steps: Gradient steps.
        step_size: Length of a step over the radius; `2.5 / steps` when None.
        random_start: Begin at a random point of the ball, not at 0.
        seed: Of the start.
    """

    steps: int = 6
    step_size: float | None = None
    random_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.step_size is not None and not 0 < self.step_size < float("inf")):
            raise ValueError(f"expected steps >= 1 and a positive step size, got {self.steps} and {self.step_size}")


@dataclass(frozen=True)
class Attacked:
    """The worst perturbation that was met.

    Attributes:
        delta: `[b, t, d]`, 0 where none was allowed.
        loss: Of each example under it; for a universal one the examples' own losses.
        clean: Without it.
    """

    delta: Float[Tensor, "b t d"]
    loss: Float[Tensor, " b"]
    clean: Float[Tensor, " b"]


def attack(
    loss: Callable[[Tensor], Tensor],
    x: Float[Tensor, "b t d"],
    allowed: Bool[Tensor, "b t"],
    ball: Ball,
    settings: Attack | None = None,
) -> Attacked:
    """Raise a loss by a perturbation inside a ball.

    Steps go along the gradient, scaled to length 1 for each budget, and back into the ball; of all points met, 0 among
    them, the one of largest loss is kept for each example (for a universal one: of largest mean), so that no attack
    lowers the loss. At radius 0 the perturbation is exactly 0.

    Args:
        loss: From perturbations `[b, t, d]` to the loss of each example.
        x: Activations that are perturbed, for their shape and type.
        allowed: Tokens that may be perturbed; others, padding among them, take no share of a budget.
        ball: What is allowed.
        settings: Steps.
    Raises:
        DataError: a loss or a gradient is not finite (the step is named), or no token may be perturbed.
    Source:
        Madry et al., 2018; in latent space: Casper et al., "Defending Against Unforeseen Failure Modes with Latent
        Adversarial Training", 2024.
    """
    settings = settings or Attack()
    if not bool(allowed.any()):
        raise DataError("no token may be perturbed; allow one at least")
    z = torch.zeros(ball.shape(x), dtype=x.dtype, device=x.device)
    where = allowed[:, :, None] if ball.per != "universal" else torch.ones_like(z[..., :1], dtype=torch.bool)
    with torch.no_grad():
        clean = loss(ball.delta(z, allowed, x.dtype))
    best, worst = z, clean
    if ball.radius == 0:
        return Attacked(ball.delta(z, allowed, x.dtype), clean, clean)
    if settings.random_start:
        generator = torch.Generator().manual_seed(settings.seed)
        drawn = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z) * where
        share = torch.rand(z.shape[0], 1, 1, generator=generator, dtype=torch.float64).to(z)
        z = ball.radius * share * ball.ascent(drawn)
    size = ball.radius * (settings.step_size or 2.5 / settings.steps)
    for step in range(settings.steps + 1):
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            losses = loss(ball.delta(at, allowed, x.dtype))
            (gradient,) = torch.autograd.grad(losses.sum(), at)
        if not bool(torch.isfinite(losses).all()) or not bool(torch.isfinite(gradient).all()):
            raise DataError(f"the loss under attack is not finite at step {step}; lower the radius")
        best, worst = _worse(ball, (best, worst), (z, losses.detach()))
        z = ball.project(z + size * ball.ascent(gradient))
    return Attacked(ball.delta(best, allowed, x.dtype).expand_as(x).contiguous(), worst, clean)


def _worse(ball: Ball, kept: tuple[Tensor, Tensor], met: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The perturbation of larger loss, for each example; of larger mean loss for a universal one."""
    (z, loss), (other, other_loss) = kept, met
    if ball.per == "universal":
        return met if float(other_loss.mean()) > float(loss.mean()) else kept
    larger = other_loss > loss
    return torch.where(larger[:, None, None], other, z), torch.where(larger, other_loss, loss)
