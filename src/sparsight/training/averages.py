"""Adam's averages of parameters, and steps along their gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adam import adam


@dataclass(frozen=True)
class Group:
    """Parameters that move at `rate` times the learning rate."""

    parameters: Sequence[Parameter]
    rate: float = 1.0


class Adam:
    """Adam by torch's own fused operation, as `torch.optim.Adam(fused=True)` takes its steps, bit for bit.

    That class loads torch's compiler when it is made: 140 MB, and seconds at the start of every run.

    Args:
        groups: Of parameters; those without a gradient do not move.
        betas: Decay rates of the averages of the gradient and of its square.
        eps: Added to the root of the average square.
    """

    def __init__(self, groups: Sequence[Group], betas: tuple[float, float], eps: float) -> None:
        self.groups, self.betas, self.eps = groups, betas, eps
        self.state: dict[Parameter, dict[str, Tensor]] = {}

    def averages(self, parameter: Parameter) -> dict[str, Tensor]:
        """`exp_avg`, `exp_avg_sq` and the count of steps `step`; zeros at first, laid out as the parameter is."""
        state = self.state.get(parameter)
        if state is None:
            state = self.state[parameter] = {"step": torch.zeros((), device=parameter.device)}
            state |= {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
        return state

    def clear_gradients(self) -> None:
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float | Tensor) -> None:
        """Move every parameter that has a gradient; a rate on the device is not waited for."""
        beta1, beta2 = self.betas
        for group in self.groups:
            moving = [p for p in group.parameters if p.grad is not None]
            if not moving:
                continue
            states = [self.averages(p) for p in moving]
            adam(
                list[Tensor](moving),
                [p.grad for p in moving if p.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=lr * group.rate,
                weight_decay=0.0,
                eps=self.eps,
                maximize=False,
            )
