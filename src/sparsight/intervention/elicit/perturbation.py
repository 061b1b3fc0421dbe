"""What a search looks for: vectors, or adapters that read what they are added to."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Perturbations(Protocol):
    """Several perturbations of one kind and size, each a function of one token's activation."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> "Perturbations": ...

    def added(self, x: Tensor) -> Tensor:
        """What they add to activations `[v, prompts, t, d]`, the `i`-th to `x[i]`; broadcast against `x`."""

    def written(self) -> Tensor:
        """The directions `[v, r, d]` along which each adds something, of unit length, in float64."""

    def likeness(self) -> Tensor:
        """Cosines `[v, v]` between them, as vectors of all their numbers."""

    def controls(self, n: int, generator: torch.Generator) -> "Perturbations":
        """As many perturbations that change activations by as much, along random directions."""


@dataclass(frozen=True)
class Vectors:
    """Perturbations that add one vector everywhere: `x + theta`.

    Attributes:
        theta: One in each row.
    """

    theta: Float[Tensor, "v d"]

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, rows: slice, /) -> "Vectors":
        return Vectors(self.theta[rows])

    def added(self, x: Float[Tensor, "v prompts t d"]) -> Float[Tensor, "v 1 1 d"]:
        return self.theta[:, None, None, :].to(x)

    def written(self) -> Float[Tensor, "v 1 d"]:
        return torch.nn.functional.normalize(self.theta.double(), dim=1)[:, None]

    def likeness(self) -> Float[Tensor, "v v"]:
        unit = self.written()[:, 0]
        return unit @ unit.T

    def controls(self, n: int, generator: torch.Generator) -> "Vectors":
        radius = float(self.theta[0].norm())
        return Vectors(radius * _random_units((n, self.theta.shape[1]), generator).to(self.theta))


@dataclass(frozen=True)
class Adapters:
    """Perturbations that read what they are added to: `x + R sum_r (a_r . x / |x|) b_r`, each `a_r`, `b_r` of norm 1.

    Attributes:
        read: The `a`.
        write: The `b`.
        radius: `R`.
    """

    read: Float[Tensor, "v rank d"]
    write: Float[Tensor, "v rank d"]
    radius: float

    def __len__(self) -> int:
        return len(self.read)

    def __getitem__(self, rows: slice, /) -> "Adapters":
        return Adapters(self.read[rows], self.write[rows], self.radius)

    def added(self, x: Float[Tensor, "v prompts t d"]) -> Float[Tensor, "v prompts t d"]:
        unit = x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        coordinates = torch.einsum("vptd,vrd->vptr", unit, self.read.to(x))
        return self.radius * torch.einsum("vptr,vrd->vptd", coordinates, self.write.to(x))

    def written(self) -> Float[Tensor, "v rank d"]:
        return torch.nn.functional.normalize(self.write.double(), dim=2)

    def likeness(self) -> Float[Tensor, "v v"]:
        read, write = self.read.double(), self.write.double()
        # <sum_r b_r a_r^T, sum_s b_s' a_s'^T> = sum_rs (a_r . a_s')(b_r . b_s')
        inner = torch.einsum("vrd,wsd,vre,wse->vw", read, read, write, write)
        length = inner.diagonal().sqrt()
        return inner / (length[:, None] * length[None, :])

    def controls(self, n: int, generator: torch.Generator) -> "Adapters":
        """Their own reads, so that as much is added, written along random directions."""
        read = self.read[torch.arange(n) % len(self)]
        return Adapters(read, _random_units(tuple(read.shape), generator).to(read), self.radius)


def _random_units(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)
