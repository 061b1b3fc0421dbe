"""One dictionary in training: its parameters, the rule that moves them, and its count of silent tokens."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.dictionaries import AbstractDictionary, DictionaryConfig, JumpReLU, PursuitDictionary, TopKDictionary
from sparsight.training.adam import AdamRule
from sparsight.training.controller import L0Controller
from sparsight.training.ema import WeightAverage
from sparsight.training.objectives import Objective
from sparsight.training.parallel.latents import gathered, shard_of, sharded, whole_of
from sparsight.training.parallel.processes import Processes, current_processes
from sparsight.training.pursuit_rule import PursuitRule
from sparsight.training.settings import Training

_FIRST_VALUES = 0xD1C7  # says what a generator is for, beside the seed


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

    Args:
        name: Of the run, for messages and files.
        config: What to build.
        d_in: Width of the activations; of several sites, all widths.
        training: Settings of the run.
        device: Where to compute.
        start: A dictionary of the same configuration over normalised activations, whose weights to begin with.
    """

    def __init__(
        self,
        name: str,
        config: DictionaryConfig,
        d_in: int | tuple[int, ...],
        training: Training,
        device: torch.device,
        start: AbstractDictionary | None = None,
    ) -> None:
        # Not the bare seed: data that a user drew from the same one would begin with the very same numbers, and a
        # dictionary for planted directions would start at the truth.
        generator = torch.Generator().manual_seed(mix_seed(training.seed, _FIRST_VALUES))
        self.name = name
        self.config: Any = config
        self.lr = training.lr
        build: Any = config.build  # some architectures take several widths
        whole: AbstractDictionary = build(d_in, generator)
        if start is not None:
            whole.load_state_dict(start.state_dict())
        processes = current_processes()
        self.shards = processes if training.parallel == "latents" and processes.size > 1 else None
        self.dictionary = (whole if self.shards is None else sharded(whole, self.shards)).to(device)
        self.rule = _rule(name, self.dictionary, training, self.shards)
        self.controller = _controller(config, training)
        self.average = None if training.ema is None else WeightAverage(self.dictionary, training.ema)
        # Tokens since each latent was last active.
        self.silent = torch.zeros(self.dictionary.n_latents, dtype=torch.int64, device=device)

    @property
    def dead(self) -> Bool[Tensor, " n_latents"]:
        after: int = self.config.dead_after
        return self.silent >= after

    def dead_share(self) -> float:
        """Fraction of the latents that are dead, of all processes' where they are cut into shards."""
        share = self.dead.float().mean()
        if self.shards is not None:
            self.shards.mean_([share])
        return float(share)

    def step(self, x: Float[Tensor, "b d_in"], lr: float, sparsity: float, progress: float = 0.0) -> Objective:
        """One step of the rule; atoms keep their norm.

        Args:
            lr: Learning rate.
            sparsity: Share of its full weight that a sparsity penalty has.
            progress: Share of the training that lies behind.
        Raises:
            TrainingError: the loss or its gradient is not finite; the parameters are as before.
        """
        self.dictionary.schedule_(progress)
        gain = 1.0 if self.controller is None else self.controller.gain
        objective = self.rule.step(x, self.dead, lr, sparsity * gain)
        self.silent += len(x)
        self.silent.masked_fill_(objective.fired, 0)
        if self.controller is not None and sparsity >= 1:
            self.controller.observe(float(objective.l0), lr / self.lr)
        if self.average is not None:
            self.average.update()
        return objective

    def finished(self) -> AbstractDictionary:
        """The dictionary at the end of training, over normalised activations, its parameters frozen."""
        if self.average is not None:
            self.average.apply_()
        self.dictionary.schedule_(1.0)
        if self.shards is not None:
            assert isinstance(self.dictionary, TopKDictionary)
            return gathered(self.dictionary, self.shards).requires_grad_(False)
        for parameter in self.dictionary.parameters():
            parameter.data = parameter.data.contiguous()
        return self.dictionary.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """All state that a step reads or writes, by name."""
        tensors: dict[str, Tensor] = {f"{self.name}/silent": self.silent}
        tensors |= {f"{self.name}/{name}": p.data for name, p in self.dictionary.named_parameters()}
        for part, owner in self._owners():
            tensors |= {f"{self.name}/{part}/{name}": tensor for name, tensor in owner.tensors().items()}
        if self.shards is not None:
            tensors = {name: whole_of(name, tensor, self.shards) for name, tensor in tensors.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` of the same configuration returned, bit for bit."""
        if self.shards is not None:
            tensors = {name: shard_of(name, tensor, self.shards) for name, tensor in tensors.items()}
        self.silent.copy_(tensors[f"{self.name}/silent"])
        for name, parameter in self.dictionary.named_parameters():
            parameter.data.copy_(tensors[f"{self.name}/{name}"])
        for part, owner in self._owners():
            prefix = f"{self.name}/{part}/"
            owner.restore({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})

    def _owners(self) -> list[tuple[str, Rule | L0Controller | WeightAverage]]:
        """Whatever holds tensors of its own."""
        owners: list[tuple[str, Rule | L0Controller | WeightAverage]] = [("rule", self.rule)]
        if self.controller is not None:
            owners.append(("controller", self.controller))
        if self.average is not None:
            owners.append(("average", self.average))
        return owners


def _controller(config: Any, training: Training) -> L0Controller | None:
    """For penalties that are to reach an L0; JumpReLU's is already a function of its target."""
    target = getattr(config, "target_l0", None)
    if target is None or isinstance(config, JumpReLU):
        return None
    return L0Controller(float(target), training.n_steps)


def _rule(name: str, dictionary: AbstractDictionary, training: Training, shards: Processes | None) -> Rule:
    """Pursuit has no differentiable objective of its own; all else descends one."""
    if isinstance(dictionary, PursuitDictionary):
        return PursuitRule(name, dictionary, training)
    return AdamRule(name, dictionary, training, shards)
