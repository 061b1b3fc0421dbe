"""Chains that draw from the posterior near a point: Langevin steps with minibatches, or corrected ones without."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.theory.learning_coefficient.posterior import LocalPosterior

# The step is set so that step * (n_beta H + gamma) / 4 is this at the largest eigenvalue.
_RATIO = {"sgld": 0.02, "mala": 0.25}
_NOISE_RATIO = 0.02  # and that minibatches add no more than this share to the injected noise
_WATCHED = 8  # chains whose curvature is looked at; 2 where the loss has minibatches, being large
_ITERATIONS = 8  # of the power iteration: the step need not be known better than to a few per cent
_BLOCKS = 10  # of the burn-in, after each of which step and shape are looked at again


@dataclass(frozen=True, kw_only=True)
class Chains:
    """How the posterior near a point is sampled.

    Attributes:
        sampler: "sgld": uncorrected Langevin steps, with minibatches if the loss has them; its error grows with `step`.
            "mala": each step is accepted or rejected on the loss on all data; exact at any step, given time.
        step: `epsilon` of the update `w - epsilon / 2 * gradient + sqrt(epsilon) * normal`; None chooses it from the
            curvature at `w*` and, during the burn-in, where the chains are.
        n_chains: All start at `w*`.
        n_draws: Losses recorded of each chain.
        n_burn_in: Steps before the first of them.
        steps_per_draw: Steps from one to the next.
        adapt: Propose in the shape of the chains' own cloud, learnt during the burn-in and then kept: for losses of
            very unequal curvature. For "mala", whose answer it cannot change, with four chains or more a parameter.
    """

    sampler: Literal["sgld", "mala"] = "sgld"
    step: float | None = None
    n_chains: int = 8
    n_draws: int = 1000
    n_burn_in: int = 1000
    steps_per_draw: int = 1
    adapt: bool = False

    def __post_init__(self) -> None:
        if self.sampler not in _RATIO:
            raise ValueError(f"sampler must be 'sgld' or 'mala', got {self.sampler!r}")
        if self.step is not None and not 0 < self.step < float("inf"):
            raise ValueError(f"step must be above 0, or None to choose it, got {self.step}")
        if self.adapt and (self.sampler != "mala" or self.step is not None):
            raise ValueError("adapt needs sampler 'mala', whose answer it cannot change, and chooses the step itself")
        for name, least in (("n_chains", 2), ("n_draws", 4), ("n_burn_in", 0), ("steps_per_draw", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Draws:
    """What the chains met.

    Attributes:
        excess: `L(w) - L(w*)` on all data, of each draw.
        last: Where the chains ended.
        squared_distance: `|w - w*|^2` of each draw.
        step: The step of the draws.
        acceptance: Share of proposals accepted; None for "sgld".
        shape: Square root of the covariance in which steps were made; None for the identity.
    """

    excess: Float64[Tensor, "chains draws"]
    last: Float[Tensor, "chains d"]
    squared_distance: Float64[Tensor, "chains draws"]
    step: float
    acceptance: float | None
    shape: Float[Tensor, "d d"] | None


def draw(posterior: LocalPosterior, how: Chains, loss_star: float, generator: torch.Generator) -> Draws:
    """Run the chains from `w*`.

    Raises:
        ValueError: the chains are too few to adapt to their cloud.
        UndefinedMetric: a chain left the finite numbers: the step is too large, or nothing bounds the loss.
    """
    if how.adapt and how.n_chains < 4 * posterior.dimension:
        raise ValueError(
            f"adapt needs n_chains of {4 * posterior.dimension} or more for {posterior.dimension} parameters, got "
            f"{how.n_chains}; add chains, or restrict the parameters with mask"
        )
    start = posterior.w_star.expand(how.n_chains, -1).clone()
    kind = SgldChains if how.sampler == "sgld" else MalaChains
    chains = kind(posterior, start, generator)
    step = _burn_in(chains, posterior, how, generator)
    chains.n_proposed = chains.n_accepted = 0
    excess = torch.empty(how.n_chains, how.n_draws, dtype=torch.float64, device=start.device)
    squares = torch.empty_like(excess)
    for i in range(how.n_draws):
        for _ in range(how.steps_per_draw):
            chains.advance(step)
        excess[:, i] = chains.losses().double() - loss_star
        squares[:, i] = (chains.w - posterior.w_star).double().square().sum(dim=1)
    if not bool(torch.isfinite(excess).all()):
        raise UndefinedMetric(
            f"{int((~torch.isfinite(excess)).any(dim=1).sum())} of {how.n_chains} chains left the finite numbers at "
            f"step {step:.3g}, n_beta {posterior.n_beta:.3g}, gamma {posterior.gamma:.3g}; lower step or raise gamma"
        )
    acceptance = chains.n_accepted / chains.n_proposed if how.sampler == "mala" else None
    return Draws(excess, chains.w, squares, step, acceptance, chains.shape)


class SgldChains:
    """Langevin steps without correction."""

    def __init__(self, posterior: LocalPosterior, w: Float[Tensor, "chains d"], generator: torch.Generator):
        self.posterior, self.w, self.generator = posterior, w, generator
        self.n_accepted = self.n_proposed = 0
        self.shape: Tensor | None = None  # the identity, always
        self._known: tuple[Tensor, Tensor] | None = None  # full-batch loss and gradient at `w`

    def advance(self, step: float) -> None:
        """One step of every chain."""
        if self.posterior.loss.full_batch:
            _, gradient = self._known or self.posterior.gradient(self.w)
        else:
            _, gradient = self.posterior.gradient(self.w, self.generator)
        drift = self.posterior.drift(self.w, gradient)
        self.w = self.w - step / 2 * drift + step**0.5 * self.posterior.noise(self.w, self.generator)
        self._known = None

    def losses(self) -> Float[Tensor, " chains"]:
        """Losses on all data where the chains are."""
        if not self.posterior.loss.full_batch:
            return self.posterior.losses(self.w)
        self._known = self.posterior.gradient(self.w)  # the next step needs the gradient as well
        return self._known[0]


class MalaChains:
    """Langevin proposals, accepted with the probability that leaves the posterior unchanged.

    With `C` the square root of a covariance (`shape`) and `D` the drift, `w' = w - C (e/2 C^T D - sqrt(e) z)`; the
    noise that would lead back is `z' = sqrt(e)/2 C^T (D + D') - z`, so that nothing is inverted.

    Source:
        Roberts & Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations",
        Bernoulli 2(4), 1996.
    """

    def __init__(self, posterior: LocalPosterior, w: Float[Tensor, "chains d"], generator: torch.Generator):
        self.posterior, self.w, self.generator = posterior, w, generator
        self.n_accepted = self.n_proposed = 0
        self.shape: Tensor | None = None
        self._losses, self._energy, self._drift = self._look(w)

    def advance(self, step: float) -> None:
        """One proposal to every chain."""
        z = self.posterior.noise(self.w, self.generator)
        pulled = self._shaped(self._drift)
        proposed = self.w - self._shaped(step / 2 * pulled - step**0.5 * z)
        losses, energy, drift = self._look(proposed)
        z_back = step**0.5 / 2 * (pulled + self._shaped(drift)) - z
        log_ratio = self._energy - energy + (z.square().sum(dim=1) - z_back.square().sum(dim=1)) / 2
        threshold = torch.rand(len(z), generator=self.generator, device=self.generator.device, dtype=torch.float64)
        accepted = threshold.log().to(log_ratio.device) < log_ratio  # False where the proposal is not finite
        self.w = torch.where(accepted[:, None], proposed, self.w)
        self._drift = torch.where(accepted[:, None], drift, self._drift)
        self._losses = torch.where(accepted, losses, self._losses)
        self._energy = torch.where(accepted, energy, self._energy)
        self.n_accepted += int(accepted.sum())
        self.n_proposed += len(accepted)

    def losses(self) -> Float[Tensor, " chains"]:
        """Losses on all data where the chains are."""
        return self._losses

    def adapt(self) -> None:
        """Take the shape of the cloud that the chains form now."""
        variances, axes = torch.linalg.eigh(torch.cov(self.w.double().T).reshape(len(self.w[0]), -1))
        roots = variances.clamp_min(1e-8 * float(variances[-1])).sqrt()
        shape = (axes * roots @ axes.T).to(self.w.dtype)
        self.shape = shape * self.posterior.moves * self.posterior.moves[:, None]

    def _shaped(self, vectors: Tensor) -> Tensor:
        return vectors if self.shape is None else vectors @ self.shape  # which is symmetric

    def _look(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        losses, gradient = self.posterior.gradient(w)
        return losses, self.posterior.energy(w, losses), self.posterior.drift(w, gradient)


def first_step(posterior: LocalPosterior, ratio: float, generator: torch.Generator) -> float:
    """The largest step, up to a factor of two, that meets no more curvature than it can take.

    From `w*` the curvature there sets it; but a singular point has little of its own, so the step is halved until the
    points that it reaches do not have more either.
    """
    centre = posterior.w_star.expand(_watched(posterior), -1)
    step = (
        4
        * ratio
        / max(float(posterior.curvature(centre[:1], generator, iterations=_ITERATIONS)[0]), posterior.gamma, 1e-30)
    )
    for _ in range(100):
        reached = centre + step**0.5 * posterior.noise(centre, generator)
        curvature = float(posterior.curvature(reached, generator, iterations=_ITERATIONS).mean())
        if curvature * step <= 4.4 * ratio:
            return step
        step /= 2
    raise UndefinedMetric("no step is small enough for the curvature near w*: is the loss smooth there?")


def _burn_in(
    chains: SgldChains | MalaChains, posterior: LocalPosterior, how: Chains, generator: torch.Generator
) -> float:
    """Advance the chains to where they are at home; returns the step of the draws."""
    if how.step is not None:
        for _ in range(how.n_burn_in):
            chains.advance(how.step)
        return how.step
    ratio = _RATIO[how.sampler]
    if how.sampler == "mala":  # proposals of equal acceptance shrink as the dimension grows
        ratio *= posterior.dimension ** (-1 / 3)
    step = first_step(posterior, ratio, generator)
    noise = 0.0 if how.sampler == "mala" else posterior.gradient_noise(generator)
    if noise > 0:
        step = min(step, 4 * _NOISE_RATIO / (posterior.n_beta**2 * noise))
    done = 0
    for check in _checks(how.n_burn_in):
        for _ in range(done, check):
            chains.advance(step)
        done = check
        last = check == how.n_burn_in
        if isinstance(chains, MalaChains) and how.adapt and check * _BLOCKS >= how.n_burn_in and not last:
            chains.adapt()
        watched = chains.w[: _watched(posterior)]
        curvature = float(posterior.curvature(watched, generator, shape=chains.shape, iterations=_ITERATIONS).mean())
        if curvature > 0:
            step = 4 * ratio / curvature if chains.shape is not None else min(step, 4 * ratio / curvature)
    return step


def _watched(posterior: LocalPosterior) -> int:
    return _WATCHED if posterior.loss.full_batch else 2


def _checks(n_burn_in: int) -> list[int]:
    """After which steps of the burn-in the curvature is looked at: often at first, where chains leave `w*`."""
    tenths = {n_burn_in * block // _BLOCKS for block in range(1, _BLOCKS + 1)}
    early = {2**i for i in range(n_burn_in.bit_length()) if 2**i * _BLOCKS < n_burn_in}
    return sorted((tenths | early) - {0})
