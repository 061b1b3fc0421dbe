"""The toy model of superposition: through fewer dimensions and back."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ToyModel(nn.Module):
    """`x' = relu(W^T W x + b)`: several copies, each with weights of its own.

    Args:
        copies: Models side by side.
        n: Features.
        hidden: Dimensions `m` that they have to share.
        generator: For the first weights, normal with the standard deviation `m^(-1/2)`; biases start at 0.
    Raises:
        ValueError: a size is below 1.
    Source:
        Elhage et al., "Toy models of superposition", 2022.
    """

    def __init__(self, copies: int, n: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        if min(copies, n, hidden) < 1:
            raise ValueError(f"copies, n and hidden must be 1 or more, got {copies}, {n} and {hidden}")
        self.W = nn.Parameter(torch.randn(copies, hidden, n, generator=generator) / hidden**0.5)
        self.b = nn.Parameter(torch.zeros(copies, n))

    def hidden(self, x: Float[Tensor, "c b n"]) -> Float[Tensor, "c b m"]:
        """`W x`: what a dictionary would be trained on."""
        return x @ self.W.mT

    def forward(self, x: Float[Tensor, "c b n"]) -> Float[Tensor, "c b n"]:
        """The features, reconstructed."""
        return (self.hidden(x) @ self.W + self.b[:, None]).relu()

    def loss(self, x: Float[Tensor, "c b n"], importance: Float[Tensor, "#c n"]) -> Float[Tensor, " c"]:
        """`sum_i I_i (x_i - x'_i)^2`, mean over the batch, of each copy."""
        errors: Tensor = (x - self.forward(x)).square() * importance[:, None]
        return errors.sum(dim=-1).mean(dim=-1)
