"""Where perturbations may lie: a norm, what shares one budget, and the directions that are allowed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary


@dataclass(frozen=True)
class Ball:
    """Perturbations `delta = z M` with the norm of `z` at most `radius`.

    Attributes:
        radius: In the units of the activations (of `z`, where `axes` are given).
        per: What shares one budget: each "token"; each "example", over its tokens together; "universal", one
            perturbation of one token, the same at every token of every example.
        norm: "l2", or "linf" (the largest coordinate).
        axes: `M` `[k, d]`, rows. None: any direction. Orthonormal rows restrict to their span; `whitening(x)` makes the
            budget that of the Mahalanobis norm.
    """

    radius: float | int
    per: Literal["token", "example", "universal"] = "token"
    norm: Literal["l2", "linf"] = "l2"
    axes: Float[Tensor, "k d"] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.radius < float("inf"):
            raise ValueError(f"radius must be at least 0 and finite, got {self.radius}")
        if self.per not in ("token", "example", "universal") or self.norm not in ("l2", "linf"):
            raise ValueError(f"expected per token, example or universal, norm l2 or linf, got {self.per}, {self.norm}")

    def shape(self, x: Float[Tensor, "b t d"]) -> tuple[int, int, int]:
        """Shape of `z` for activations.

        Raises:
            ValueError: the axes have another width.
        """
        if self.axes is not None and self.axes.shape[1] != x.shape[2]:
            raise ValueError(f"the axes have width {self.axes.shape[1]}, the activations have {x.shape[2]}")
        k = x.shape[2] if self.axes is None else self.axes.shape[0]
        return (1, 1, k) if self.per == "universal" else (x.shape[0], x.shape[1], k)

    def delta(self, z: Tensor, allowed: Bool[Tensor, "b t"], dtype: torch.dtype) -> Tensor:
        """The perturbation of every token, 0 where none is allowed."""
        moved = z if self.axes is None else z @ self.axes.to(z)
        return (moved * allowed.unsqueeze(-1)).to(dtype)

    def lengths(self, z: Tensor) -> Tensor:
        """The norm of each budget, broadcast over what shares it."""
        over = (1, 2) if self.per == "example" else (2,)
        if self.norm == "linf":
            return z.abs().amax(dim=over, keepdim=True)
        return z.square().sum(dim=over, keepdim=True).sqrt()

    def project(self, z: Tensor) -> Tensor:
        """The nearest point of the ball."""
        if self.norm == "linf":
            return z.clamp(-self.radius, self.radius)
        length = self.lengths(z).clamp_min(torch.finfo(z.dtype).tiny)
        return z * (self.radius / length).clamp_max(1.0)

    def ascent(self, gradient: Tensor) -> Tensor:
        """The step of length 1 along which the loss rises most."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / self.lengths(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)


def whitening(x: Float[Tensor, "n d"], shrinkage: float = 1e-3) -> Float[Tensor, "d d"]:
    """`Sigma^(1/2)` of activations: with it as axes, a radius is a Mahalanobis distance.

    Args:
        x: Natural activations.
        shrinkage: Share of the mean variance mixed in.
    """
    centred = x.double() - x.double().mean(dim=0)
    covariance = centred.T @ centred / len(x)
    values, vectors = torch.linalg.eigh(covariance)
    values = (1 - shrinkage) * values.clamp_min(0) + shrinkage * values.clamp_min(0).mean()
    root: Tensor = (vectors * values.sqrt()) @ vectors.T
    return root.to(x.dtype)


def span_of_latents(dictionary: AbstractDictionary, latents: Sequence[int]) -> Float[Tensor, "k d"]:
    """An orthonormal basis of the span of some latents' atoms: axes of an adversary that can be named.

    Raises:
        ValueError: a latent does not exist, or their atoms are linearly dependent.
    """
    from sparsight.intervention.direction import orthonormal

    if not latents or min(latents) < 0 or max(latents) >= dictionary.n_latents:
        raise ValueError(f"latents must be in [0, {dictionary.n_latents}), one at least, got {list(latents)}")
    return orthonormal(dictionary.atoms.detach()[list(latents)])
