"""The posterior near a point, and what its curvature and its gradient's noise are there."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.theory.learning_coefficient.losses import AbstractLoss


@dataclass(frozen=True)
class LocalPosterior:
    """The density proportional to `exp(-n_beta L(w) - gamma |w - w*|^2 / 2)`, over the coordinates of `moves`.

    Attributes:
        loss: `L`.
        w_star: `w*`.
        n_beta: Samples times inverse temperature.
        gamma: Precision of the localisation.
        moves: 1 for each coordinate that varies, 0 for those that stay at `w*`.
    """

    loss: AbstractLoss
    w_star: Float[Tensor, " d"]
    n_beta: float
    gamma: float
    moves: Float[Tensor, " d"]

    @property
    def dimension(self) -> int:
        """Number of coordinates that vary."""
        return int(self.moves.sum())

    def losses(self, w: Float[Tensor, "chains d"]) -> Float[Tensor, " chains"]:
        """`L` on all data at each row, without a graph."""
        with torch.no_grad():
            return self.loss.at(w)

    def gradient(
        self, w: Float[Tensor, "chains d"], minibatch: torch.Generator | None = None
    ) -> tuple[Float[Tensor, " chains"], Float[Tensor, "chains d"]]:
        """`L` and its gradient at each row: on a minibatch for each where a generator is given, else on all data."""
        w = w.detach().requires_grad_()
        losses = self.loss.at(w) if minibatch is None else self.loss.sampled(w, minibatch)
        (gradient,) = torch.autograd.grad(losses.sum(), w)
        return losses.detach(), gradient * self.moves

    def drift(self, w: Float[Tensor, "chains d"], gradient: Float[Tensor, "chains d"]) -> Float[Tensor, "chains d"]:
        """Gradient of the negative log density, from that of the loss."""
        return self.n_beta * gradient + self.gamma * (w - self.w_star)

    def energy(self, w: Float[Tensor, "chains d"], losses: Float[Tensor, " chains"]) -> Float[Tensor, " chains"]:
        """Negative log density, up to a constant."""
        return self.n_beta * losses + self.gamma / 2 * (w - self.w_star).square().sum(dim=1)

    def noise(self, w: Float[Tensor, "chains d"], generator: torch.Generator) -> Float[Tensor, "chains d"]:
        """Standard normal numbers in the coordinates that vary."""
        drawn = torch.randn(w.shape, generator=generator, device=generator.device, dtype=w.dtype)
        return drawn.to(w.device) * self.moves

    def hessian_times(
        self,
        w: Float[Tensor, "chains d"],
        vectors: Float[Tensor, "chains d"],
        minibatch: torch.Generator | None = None,
    ) -> Float[Tensor, "chains d"]:
        """Product of the Hessian of `L` at each row with that row's vector, by differentiating the gradient.

        On a minibatch for each row where a generator is given, else on all data.
        """
        w = w.detach().requires_grad_()
        losses = self.loss.at(w) if minibatch is None else self.loss.sampled(w, minibatch)
        (gradient,) = torch.autograd.grad(losses.sum(), w, create_graph=True)
        if not gradient.requires_grad:  # a loss that is linear here
            return torch.zeros_like(w)
        (product,) = torch.autograd.grad((gradient * self.moves * vectors).sum(), w, allow_unused=True)
        found: Tensor = torch.zeros_like(w) if product is None else product * self.moves
        return found

    def curvature(
        self,
        w: Float[Tensor, "chains d"],
        generator: torch.Generator,
        *,
        shape: Float[Tensor, "d d"] | None = None,
        iterations: int = 20,
    ) -> Float[Tensor, " chains"]:
        """Largest eigenvalue, by magnitude, of `C (n_beta H + gamma) C` at each row, by power iteration: a little low.

        Where the loss has minibatches, the Hessian is that of one minibatch for each row, the same in all iterations.

        Args:
            shape: The symmetric `C`; None for the identity.
        """
        vectors = self.noise(w, generator)
        batch = None if self.loss.full_batch else torch.Generator(generator.device)
        seed = 0 if batch is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
        norms: Tensor = torch.ones_like(vectors[:, 0])
        for _ in range(iterations):
            vectors = vectors / vectors.norm(dim=1, keepdim=True)
            turned = vectors if shape is None else vectors @ shape
            batch = None if batch is None else batch.manual_seed(seed)
            vectors = self.n_beta * self.hessian_times(w, turned, batch) + self.gamma * turned
            vectors = vectors if shape is None else vectors @ shape
            norms = vectors.norm(dim=1)
            if not bool((norms > 0).all()):  # no curvature at all, in some row
                return norms
        return norms

    def gradient_noise(self, generator: torch.Generator, repeats: int = 32) -> float:
        """Variance of the minibatch gradient of `L` at `w*`, mean over coordinates that vary; 0 without minibatches."""
        if self.loss.full_batch:
            return 0.0
        _, gradients = self.gradient(self.w_star.expand(repeats, -1), generator)
        return float(gradients.double().var(dim=0).sum()) / self.dimension


def posterior_near(
    loss: AbstractLoss,
    w_star: Float[Tensor, " d"],
    n_beta: float | None = None,
    gamma: float = 1.0,
    mask: Bool[Tensor, " d"] | None = None,
) -> LocalPosterior:
    """The posterior near `w_star`, its arguments checked; they are those of `learning_coefficient`.

    Raises:
        ValueError: an argument is out of range or of the wrong shape.
    """
    if not w_star.is_floating_point() or len(w_star) == 0 or not bool(torch.isfinite(w_star).all()):
        raise ValueError(
            f"w_star must be finite floating numbers, one or more, got {w_star.dtype} {tuple(w_star.shape)}"
        )
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be 0 or more, got {gamma}")
    if mask is not None and mask.shape != w_star.shape:
        raise ValueError(
            f"mask must have the shape of w_star, {tuple(w_star.shape)}, got {tuple(mask.shape)}; "
            "ModuleLoss.mask(name, ...) makes one"
        )
    if mask is not None and not bool(mask.any()):
        raise ValueError("mask must be True for one parameter or more, got none; leave it out to vary all")
    moves = torch.ones_like(w_star) if mask is None else mask.to(w_star)
    return LocalPosterior(loss, w_star.detach(), _checked_n_beta(loss, n_beta), float(gamma), moves)


def _checked_n_beta(loss: AbstractLoss, n_beta: float | None) -> float:
    if n_beta is None:
        if loss.n_data is None:
            raise ValueError("n_beta must be given for a loss that is no mean over data; it has no n")
        if loss.n_data < 3:
            raise ValueError(f"n / log n needs 3 samples or more, got {loss.n_data}; give n_beta")
        return loss.n_data / math.log(loss.n_data)
    if not (math.isfinite(n_beta) and n_beta > 0):
        raise ValueError(f"n_beta must be a number above 0, got {n_beta}")
    return float(n_beta)
