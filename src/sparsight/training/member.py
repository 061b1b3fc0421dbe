"""One dictionary in training: its parameters, optimiser and count of silent tokens."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, DictionaryConfig
from sparsight.errors import TrainingError
from sparsight.training.objectives import OBJECTIVES, Objective
from sparsight.training.settings import Training


class Member:
    """Everything that one step changes, and nothing else: its tensors are the checkpoint.

    Members of one run share batches but not randomness: each is drawn from the seed afresh, so that a dictionary does
    not depend on its companions.
    """

    def __init__(
        self, name: str, config: DictionaryConfig, d_in: int, training: Training, device: torch.device
    ) -> None:
        generator = torch.Generator().manual_seed(training.seed)
        self.name = name
        self.config: Any = config
        self.dictionary: AbstractDictionary = config.build(d_in, generator).to(device)
        # Adam's floor must stay below the root mean square gradient of rare latents, about 1e-7 at unit variance.
        self.optimizer = torch.optim.Adam(
            _parameter_groups(self.dictionary), lr=training.lr, betas=training.betas, eps=1e-10, fused=True
        )
        self.clip = training.clip
        # Tokens since each latent was last active.
        self.silent = torch.zeros(config.n_latents, dtype=torch.int64, device=device)

    @property
    def dead(self) -> Bool[Tensor, " n_latents"]:
        after: int = self.config.dead_after
        return self.silent >= after

    def step(self, x: Float[Tensor, "b d_in"], lr: float, sparsity: float) -> Objective:
        """One step of Adam along the sphere: atoms keep their norm.

        The component of an atom's gradient along the atom can only change its norm, which is then put back to 1; left
        in, it would still fill Adam's averages.

        Raises:
            TrainingError: the loss or its gradient is not finite; the parameters are as before.
        """
        objective = OBJECTIVES[type(self.dictionary)](self.dictionary, x, self.dead, sparsity)
        self.optimizer.zero_grad(set_to_none=True)
        objective.loss.backward()  # type: ignore[no-untyped-call]
        norm = self._project_and_clip()
        loss = objective.loss.detach()
        if not bool(torch.isfinite(loss + norm)):
            raise TrainingError(
                f"{self.name}: the loss is {float(loss):g} with a gradient of norm {float(norm):g}; "
                f"lower lr={lr:g}, lengthen the warmup or set clip, and resume from the last checkpoint"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        self.optimizer.step()
        self.dictionary.normalize_atoms_()
        self.silent += len(x)
        self.silent[objective.fired] = 0
        return objective

    @torch.no_grad()
    def _project_and_clip(self) -> Tensor:
        """Make the atoms' gradient tangent to the sphere, shorten the whole gradient to `clip`; returns its norm."""
        atoms = self.dictionary.atoms
        assert atoms.grad is not None
        atoms.grad.addcmul_(atoms, (atoms.grad * atoms).sum(dim=1, keepdim=True), value=-1)
        limit = float("inf") if self.clip is None else self.clip
        return torch.nn.utils.clip_grad_norm_(self.dictionary.parameters(), limit)

    def tensors(self) -> dict[str, Tensor]:
        """All state that a step reads or writes, by name."""
        tensors: dict[str, Tensor] = {f"{self.name}/silent": self.silent}
        for name, parameter in self.dictionary.named_parameters():
            tensors[f"{self.name}/{name}"] = parameter.data
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{self.name}/{name}/{key}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` of the same configuration returned, bit for bit."""
        self.silent.copy_(tensors[f"{self.name}/silent"])
        for name, parameter in self.dictionary.named_parameters():
            parameter.data.copy_(tensors[f"{self.name}/{name}"])
            prefix = f"{self.name}/{name}/"
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
