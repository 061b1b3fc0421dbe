"""The rule of dictionaries that have a differentiable objective: Adam along the sphere."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import TrainingError
from sparsight.training.objectives import OBJECTIVES, Objective
from sparsight.training.settings import Training


class AdamRule:
    """Steps of Adam down the architecture's objective; atoms keep their norm."""

    def __init__(self, name: str, dictionary: AbstractDictionary, training: Training) -> None:
        self.name = name
        self.dictionary = dictionary
        # Adam's floor must stay below the root mean square gradient of rare latents, about 1e-7 at unit variance.
        self.optimizer = torch.optim.Adam(
            _parameter_groups(dictionary), lr=training.lr, betas=training.betas, eps=1e-10, fused=True
        )
        self.clip = training.clip

    def step(
        self, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], lr: float, sparsity: float
    ) -> Objective:
        """One step down the objective of the batch.

        Raises:
            TrainingError: the loss or its gradient is not finite; the parameters are as before.
        """
        objective = OBJECTIVES[type(self.dictionary)](self.dictionary, x, dead, sparsity)
        self.descend(objective.loss, lr)
        return objective

    def descend(self, loss: Float[Tensor, ""], lr: float) -> None:
        """One step down any loss of the dictionary's parameters.

        The component of an atom's gradient along the atom can only change its norm, which is then put back to 1; left
        in, it would still fill Adam's averages.

        Raises:
            TrainingError: the loss or its gradient is not finite; the parameters are as before.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self._project_and_clip()
        if not bool(torch.isfinite(loss.detach() + norm)):
            raise TrainingError(
                f"{self.name}: the loss is {float(loss.detach()):g} with a gradient of norm {float(norm):g}; "
                f"lower lr={lr:g}, lengthen the warmup or set clip, and resume from the last checkpoint"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        self.optimizer.step()
        self.dictionary.normalize_atoms_()

    @torch.no_grad()
    def _project_and_clip(self) -> Tensor:
        """Make the atoms' gradient tangent to the sphere, shorten the whole gradient to `clip`; returns its norm."""
        atoms = self.dictionary.atoms
        assert atoms.grad is not None
        atoms.grad.addcmul_(atoms, (atoms.grad * atoms).sum(dim=1, keepdim=True), value=-1)
        limit = float("inf") if self.clip is None else self.clip
        return torch.nn.utils.clip_grad_norm_(self.dictionary.parameters(), limit)

    def tensors(self) -> dict[str, Tensor]:
        """Adam's averages, as `<parameter>/<average>`."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.dictionary.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` returned, bit for bit."""
        for name, parameter in self.dictionary.named_parameters():
            prefix = f"{name}/"
            held = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            self.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in held.items()}


def _parameter_groups(dictionary: AbstractDictionary) -> list[dict[str, Any]]:
    """Thresholds move at their own rate, all else at the common one."""
    named = dict(dictionary.named_parameters())
    slow = [p for name, p in named.items() if name != "log_threshold"]
    groups: list[dict[str, Any]] = [{"params": slow, "rate": 1.0}]
    if "log_threshold" in named:
        groups.append({"params": [named["log_threshold"]], "rate": dictionary.config.threshold_rate})
    return groups
