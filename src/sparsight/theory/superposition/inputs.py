"""Inputs of a toy model: features that are there rarely, each a number between 0 and 1."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Arrangement = Literal["independent", "together", "apart"]


@dataclass(frozen=True)
class ToyInputs:
    """Each feature is present with a probability, and then uniform on `[0, 1]`.

    Attributes:
        n: Features.
        density: Probability that a feature is present, one for each copy of a model; `1 - density` is what the
            literature calls sparsity.
        arrangement: `"independent"`; `"together"`: neighbours `(0, 1), (2, 3), ...` are present at the same time, with
            values of their own; `"apart"`: never both.
    Raises:
        ValueError: a density is not in `(0, 1]`, or above 1/2 for `"apart"`; pairs of an odd number of features.
    Source:
        Elhage et al., "Toy models of superposition", 2022.
    """

    n: int
    density: tuple[float, ...]
    arrangement: Arrangement = "independent"

    def __post_init__(self) -> None:
        most = 0.5 if self.arrangement == "apart" else 1.0
        if self.n < 1:
            raise ValueError(f"n must be 1 or more, got {self.n}")
        if self.arrangement not in get_args(Arrangement):
            raise ValueError(f"arrangement must be one of {get_args(Arrangement)}, got {self.arrangement!r}")
        if not self.density or any(not 0 < p <= most for p in self.density):
            raise ValueError(f"density must lie in (0, {most:g}] for each copy, got {self.density}")
        if self.arrangement != "independent" and self.n % 2:
            raise ValueError(f"pairs need an even number of features, got n={self.n}")

    @property
    def copies(self) -> int:
        """How many models are drawn for."""
        return len(self.density)

    def draw(self, batch: int, generator: torch.Generator) -> Float[Tensor, "c b n"]:
        """A batch for every copy."""
        p = torch.tensor(self.density)[:, None, None]
        values = torch.rand(self.copies, batch, self.n, generator=generator)
        if self.arrangement == "independent":
            return values * (torch.rand(values.shape, generator=generator) < p)
        one = torch.rand(self.copies, batch, self.n // 2, generator=generator)
        other = one < p if self.arrangement == "together" else (one >= p) & (one < 2 * p)
        return values * torch.stack([one < p, other], dim=-1).flatten(-2)
