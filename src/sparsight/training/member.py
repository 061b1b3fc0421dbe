"""One dictionary in training: its parameters, the rule that moves them, and its count of silent tokens."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, DictionaryConfig, PursuitDictionary
from sparsight.training.adam import AdamRule
from sparsight.training.objectives import Objective
from sparsight.training.pursuit_rule import PursuitRule
from sparsight.training.settings import Training


@runtime_checkable
class Rule(Protocol):
    """How one batch changes a dictionary, and what the rule itself remembers from batch to batch."""

    def step(
        self, x: Float[Tensor, "b d_in"], dead: Bool[Tensor, " n_latents"], lr: float, sparsity: float
    ) -> Objective:
        """Move the parameters, atoms to norm 1; return the objective as it was before.

        Raises:
            TrainingError: the loss or its gradient is not finite; the parameters are as before.
        """

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` returned, bit for bit."""


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
        self.rule = _rule(name, self.dictionary, training)
        # Tokens since each latent was last active.
        self.silent = torch.zeros(config.n_latents, dtype=torch.int64, device=device)

    @property
    def dead(self) -> Bool[Tensor, " n_latents"]:
        after: int = self.config.dead_after
        return self.silent >= after

    def step(self, x: Float[Tensor, "b d_in"], lr: float, sparsity: float) -> Objective:
        """One step of the rule; atoms keep their norm.

        Raises:
            TrainingError: the loss or its gradient is not finite; the parameters are as before.
        """
        objective = self.rule.step(x, self.dead, lr, sparsity)
        self.silent += len(x)
        self.silent[objective.fired] = 0
        return objective

    def tensors(self) -> dict[str, Tensor]:
        """All state that a step reads or writes, by name."""
        tensors: dict[str, Tensor] = {f"{self.name}/silent": self.silent}
        tensors |= {f"{self.name}/{name}": p.data for name, p in self.dictionary.named_parameters()}
        return tensors | {f"{self.name}/rule/{name}": tensor for name, tensor in self.rule.tensors().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` of the same configuration returned, bit for bit."""
        self.silent.copy_(tensors[f"{self.name}/silent"])
        for name, parameter in self.dictionary.named_parameters():
            parameter.data.copy_(tensors[f"{self.name}/{name}"])
        prefix = f"{self.name}/rule/"
        self.rule.restore({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})


def _rule(name: str, dictionary: AbstractDictionary, training: Training) -> Rule:
    """Pursuit has no differentiable objective of its own; all else descends one."""
    if isinstance(dictionary, PursuitDictionary):
        return PursuitRule(name, dictionary, training)
    return AdamRule(name, dictionary, training)
