"""Maximising over spheres: Riemannian Adam, nonlinear power iteration, one after another or all at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import DataError
from sparsight.evaluation.reading import reported
from sparsight.intervention.elicit.perturbation import Adapters
from sparsight.intervention.elicit.reach import Reach

Objective: TypeAlias = Callable[[Tensor], Tensor]
"""From perturbations `[v, d]` to their values `[v]`; each row's value depends on that row alone."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """How perturbations are looked for.

    Attributes:
        n_vectors: How many.
        radius: Their norm, in the units of the source's activations.
        steps: Steps of each.
        method: "adam" climbs on the sphere; "power" sets each vector to the direction of its gradient, the power
            iteration of `J^T J` where the model is linear in the perturbation, and needs far fewer steps there.
        orthogonal: Each vector orthogonal to those before it, found one after another; otherwise all at once from
            independent starts.
        lr: Largest angle of a step of "adam", in radians; it falls to zero along half a cosine.
        seed: Of the starts; vector `i` starts from the same point however many there are.
        first: Number of the first start: with 16, others are found than by a search for 16 before it.
    """

    n_vectors: int = 16
    radius: float | int = 1.0
    steps: int = 300
    method: Literal["adam", "power"] = "adam"
    orthogonal: bool = False
    lr: float | int = 0.1
    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        if self.n_vectors < 1 or self.steps < 1 or self.first < 0:
            raise ValueError(
                f"expected n_vectors and steps of at least 1, and first of at least 0, got {self.n_vectors}, "
                f"{self.steps} and {self.first}"
            )
        if not 0 < self.radius < float("inf"):
            raise ValueError(f"radius must be positive (at 0 there is no gradient), got {self.radius}")
        if self.method not in ("adam", "power"):
            raise ValueError(f"method must be 'adam' or 'power', got {self.method!r}")
        if not 0 < self.lr <= 1:
            raise ValueError(f"lr must be in (0, 1], got {self.lr}")


def find_vectors(
    objective: Objective, d: int, search: Search, *, dtype: torch.dtype = torch.float32, progress: bool = False
) -> Float[Tensor, "v d"]:
    """Perturbations of norm `radius` at which the objective is locally largest.

    Args:
        objective: To maximise; a `Reach`, or any differentiable function of rows.
        d: Width of a perturbation.
        search: How to look.
        dtype: Of the perturbations.
        progress: Show a bar on stderr.
    Returns:
        One row for each vector: in order of search where they are orthogonal, else of their starts.
    Raises:
        ValueError: more orthogonal vectors are wanted than there are dimensions.
        DataError: the objective is not finite, or has no gradient.
    Source:
        The objective: A. Mack and A. Turner, "Mechanistically Eliciting Latent Behaviors in Language Models", 2024. The
        step: Becigneul and Ganea, "Riemannian Adaptive Optimization Methods", 2019, with one second moment for each
        vector, so that the result does not depend on the axes.
    """
    if search.orthogonal and search.n_vectors > d:
        raise ValueError(f"at most {d} vectors of width {d} are orthogonal, got n_vectors={search.n_vectors}")
    numbers = range(search.first, search.first + search.n_vectors)
    starts = torch.stack([_start(d, search.seed, number) for number in numbers]).to(dtype)
    groups = [starts[i : i + 1] for i in range(len(starts))] if search.orthogonal else [starts]
    found = starts.new_zeros(0, d)
    with reported("searching", len(groups) * search.steps, shown=progress) as advance:
        for start in groups:
            found = torch.cat([found, _climbed(objective, start, found, search, lambda: advance(1))])
    return found


def _climbed(
    objective: Objective, start: Tensor, found: Tensor, search: Search, advance: Callable[[], None]
) -> Float[Tensor, "v d"]:
    """One group of vectors, all their steps. `found` are orthogonal to it, and stay so."""
    basis = found / search.radius
    theta = _on_sphere(_off(start, basis), search.radius)
    if search.method == "power":
        for step in range(search.steps):
            gradient = _gradient(objective, theta, step)
            theta = _on_sphere(_off(gradient, basis), search.radius)
            advance()
        return theta
    momentum, size = torch.zeros_like(theta), theta.new_zeros(len(theta), 1)
    for step in range(search.steps):
        gradient = _tangent(_off(_gradient(objective, theta, step), basis), theta)
        momentum = 0.9 * _tangent(momentum, theta) + 0.1 * gradient  # carried along to the new tangent plane
        size = 0.98 * size + 0.02 * gradient.square().sum(dim=1, keepdim=True)
        corrected = momentum / (1 - 0.9 ** (step + 1))
        length = (size / (1 - 0.98 ** (step + 1))).sqrt().clamp_min(torch.finfo(theta.dtype).tiny)
        rate = search.lr * 0.5 * (1 + math.cos(math.pi * step / search.steps))
        moved = theta + rate * search.radius * corrected / length
        theta = _on_sphere(_off(moved, basis), search.radius)
        advance()
    return theta


def _gradient(objective: Objective, theta: Tensor, step: int) -> Tensor:
    with torch.enable_grad():
        at = theta.detach().requires_grad_()
        value = objective(at)
        (gradient,) = torch.autograd.grad(value.sum(), at)
    if not bool(torch.isfinite(gradient).all()) or not bool(torch.isfinite(value).all()):
        raise DataError(f"the search left what is finite at step {step}; lower the radius")
    if bool((gradient.norm(dim=1) == 0).any()):
        raise DataError(f"the objective has no slope at step {step}: the perturbation does not reach what is measured")
    return gradient


def _start(d: int, seed: int, number: int) -> Float[Tensor, " d"]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + 7919 * number + 1) % (1 << 62))
    return torch.randn(d, generator=generator, dtype=torch.float64)


def _off(x: Tensor, basis: Tensor) -> Tensor:
    """Without what lies along an orthonormal basis; twice, since once leaves rounding behind."""
    for _ in range(2):
        x = x - (x @ basis.T) @ basis
    return x


def _tangent(x: Tensor, theta: Tensor) -> Tensor:
    return x - (x * theta).sum(dim=1, keepdim=True) / theta.square().sum(dim=1, keepdim=True) * theta


def _on_sphere(x: Tensor, radius: float | int) -> Tensor:
    return radius * torch.nn.functional.normalize(x, dim=-1)


def first_singular_vectors(reach: Reach, n: int, *, steps: int = 30, seed: int = 0) -> Float[Tensor, "n d"]:
    """The directions that move the target most, for small perturbations: top right singular vectors of `dZ/dtheta`.

    Power iteration at a radius of a thousandth of the mean norm at the source, one after another.
    """
    radius = 1e-3 * reach.mean_norm()
    search = Search(n_vectors=n, radius=radius, steps=steps, method="power", orthogonal=True, seed=seed)
    found = find_vectors(reach, reach.d, search, dtype=reach.unperturbed.dtype)
    return found / radius


def find_adapters(reach: Reach, search: Search, *, rank: int = 1, progress: bool = False) -> Adapters:
    """Adapters of some rank that move the target most: each of their vectors climbs on a sphere of its own.

    Args:
        reach: Where they are added, and what they are to move.
        search: How to look; "adam", and not one after another.
        rank: Vectors read and written by each.
        progress: Show a bar on stderr.
    Raises:
        ValueError: the search asks for what adapters do not have.
    """
    if search.method != "adam" or search.orthogonal or rank < 1:
        raise ValueError("adapters are searched with method='adam', orthogonal=False and a rank of at least 1")
    d = reach.d

    def adapters(rows: Float[Tensor, "n d"]) -> Adapters:
        parts = rows.view(-1, 2 * rank, d)
        return Adapters(parts[:, :rank], parts[:, rank:], float(search.radius))

    def objective(rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        # Every row of a group gets the group's value: their sum's gradient is 2 * rank times too long, which is nothing
        # to a step whose length does not depend on it.
        return reach(adapters(rows)).repeat_interleave(2 * rank)

    each = 2 * rank
    spheres = Search(
        n_vectors=each * search.n_vectors,
        steps=search.steps,
        lr=search.lr,
        seed=search.seed,
        first=each * search.first,
    )
    return adapters(find_vectors(objective, d, spheres, dtype=reach.unperturbed.dtype, progress=progress))
