"""How latents of each architecture become active in a sparse step, and what comes back through that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    GatedDictionary,
    JumpReLUDictionary,
    ReLUDictionary,
    TopKDictionary,
)
from sparsight.dictionaries.selection import Slots
from sparsight.training.objectives.jumprelu import sparsity_penalty
from sparsight.training.objectives.relu import penalty

if TYPE_CHECKING:
    from sparsight.training.compiled.cpu import CpuLoops
    from sparsight.training.compiled.cuda import CudaLoops

# A dense step is faster where some token has more active latents than one in so many.
DENSE_FROM = 16

# What other values of the same slots reconstruct: the pull on each slot, and the mean squared error.
Decode = Callable[[Tensor, float], tuple[Tensor, Tensor]]


@dataclass
class Batch:
    """What a batch has come to when its slots have been decoded.

    Attributes:
        slots: Latents that learn, by token, with their pre-activations.
        active: Which of them count as active.
        pull: Derivative of the reconstruction by each slot's value.
        n_tokens: Tokens of the batch.
        sparsity: Share of its full weight that a penalty has.
        decode: Reconstructs the batch from other values, weighted; its error moves neither atoms nor `b_dec`.
    """

    slots: Slots
    active: Tensor
    pull: Tensor
    n_tokens: int
    sparsity: float
    decode: Decode

    @property
    def l0(self) -> Tensor:
        return self.active.sum() / self.n_tokens


class Activation:
    """TopK, BatchTopK and Matryoshka: rectified, and a choice that lets the gradient through as it is.

    Args:
        dictionary: In training.
        loops: Of its device.
    """

    same_every_step = True  # as many slots, whatever the batch holds, and nothing that the host has to know

    def __init__(self, dictionary: AbstractDictionary, loops: "CpuLoops | CudaLoops") -> None:
        self.dictionary: Any = dictionary
        self.loops = loops

    @property
    def offset(self) -> torch.nn.Parameter:
        """What is added to the encoder's product."""
        parameter: torch.nn.Parameter = self.dictionary.b_enc
        return parameter

    def slots(self, centred: Tensor) -> Slots | None:
        """Every latent that the batch teaches, with its pre-activation; None where there are too many.

        By token, then (but for TopK) by latent.
        """
        dictionary, offset = self.dictionary, self.offset.detach()
        if isinstance(dictionary, TopKDictionary):
            return self.loops.top_k(centred, offset, dictionary.k_now)
        return self.loops.batch_top_k(centred, offset, dictionary.k_now * len(centred))

    def values(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """The slots' values, and which are active."""
        return slots.values, slots.values > 0

    def back(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Derivative of the objective by each slot's product with the encoder, and further terms of the objective.

        Leaves gradients in parameters that only this architecture has.
        """
        return batch.pull.mul_(batch.active), {}

    def leave_offset(self, to_offset: Tensor) -> None:
        """Take the derivative by every latent's product with the encoder, summed over the batch."""
        self.offset.grad = to_offset

    def _above(self, centred: Tensor, lower: Tensor) -> Slots | None:
        most = max(1, self.dictionary.n_latents // DENSE_FROM)
        return self.loops.above(centred, self.offset.detach(), lower.detach(), most)


class ReLUActivation(Activation):
    """All that is positive; the penalty pulls on every value."""

    same_every_step = False

    def slots(self, centred: Tensor) -> Slots | None:
        return self._above(centred, torch.zeros_like(self.offset))

    def back(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weight = batch.sparsity * self.dictionary.config.coefficient
        with torch.enable_grad():
            values = batch.slots.values.clone().requires_grad_()
            term = weight * penalty(self.dictionary, values, batch.n_tokens)
            (slope,) = torch.autograd.grad(term, values)
        return batch.pull.add_(slope), {"sparsity": term.detach()}


class JumpReLUActivation(Activation):
    """What exceeds its threshold; thresholds learn from what lies within a window about them."""

    same_every_step = False

    def slots(self, centred: Tensor) -> Slots | None:
        return self._above(centred, self.dictionary.threshold - self.dictionary.bandwidth / 2)

    def values(self, slots: Slots) -> tuple[Tensor, Tensor]:
        active = slots.values > self.dictionary.threshold[slots.latents]
        return slots.values * active, active

    def back(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """With the rectangle kernel a slot within the window adds `-(theta pull + penalty'(L0) / b) / bandwidth` to its
        threshold's gradient, and `theta` times that to its logarithm's.
        """
        dictionary, near = self.dictionary, batch.slots
        threshold, bandwidth = dictionary.threshold, dictionary.bandwidth
        with torch.enable_grad():
            count = batch.l0.requires_grad_()
            term = batch.sparsity * sparsity_penalty(dictionary.config, count)
            (slope,) = torch.autograd.grad(term, count)
        own = threshold[near.latents]
        within = (near.values - own).abs() < bandwidth / 2
        moved = (own * batch.pull + slope / batch.n_tokens) * within * (-own / bandwidth)
        dictionary.log_threshold.grad = torch.zeros_like(threshold).index_add_(0, near.latents, moved)
        return batch.pull.mul_(batch.active), {"sparsity": term.detach()}


class GatedActivation(Activation):
    """What the gate lets through, with a magnitude of its own; the gate learns from its own reconstruction."""

    same_every_step = False

    @property
    def offset(self) -> torch.nn.Parameter:
        parameter: torch.nn.Parameter = self.dictionary.b_gate
        return parameter

    def slots(self, centred: Tensor) -> Slots | None:
        return self._above(centred, torch.zeros_like(self.offset))

    def values(self, slots: Slots) -> tuple[Tensor, Tensor]:
        dictionary, which = self.dictionary, slots.latents
        product = slots.values - dictionary.b_gate[which]
        values = (product * dictionary.magnitude_scale[which] + dictionary.b_mag[which]).relu()
        return values, values > 0

    def back(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """With `u` the product, `q = u + b_gate > 0` and `f = relu(e^r u + b_mag)`: `dL/du = e^r dL/df + dL/dq`."""
        dictionary, config, slots = self.dictionary, self.dictionary.config, batch.slots
        which, gates = slots.latents, slots.values
        weight = batch.sparsity * config.coefficient
        terms = {"sparsity": weight * gates.sum() / batch.n_tokens}
        to_gate = torch.full_like(gates, weight / batch.n_tokens)
        if config.gate_aux > 0:
            pull, error = batch.decode(gates, float(config.gate_aux))
            to_gate += pull
            terms["gate_reconstruction"] = error
        to_value = batch.pull.mul_(batch.active)
        scale = dictionary.magnitude_scale
        scaled = to_value * scale[which]
        if not config.fixed_r_mag:
            product = gates - dictionary.b_gate[which]
            dictionary.r_mag.grad = torch.zeros_like(scale).index_add_(0, which, scaled * product)
        dictionary.b_mag.grad = torch.zeros_like(scale).index_add_(0, which, to_value)
        dictionary.b_gate.grad = torch.zeros_like(scale).index_add_(0, which, to_gate)
        return scaled.add_(to_gate), terms

    def leave_offset(self, to_offset: Tensor) -> None:
        """Left by `back`: the magnitudes' part does not pass through the gate's offset."""


def activation_of(dictionary: AbstractDictionary, loops: "CpuLoops | CudaLoops") -> Activation:
    """The one of a dictionary that has one."""
    kinds = {
        ReLUDictionary: ReLUActivation,
        JumpReLUDictionary: JumpReLUActivation,
        GatedDictionary: GatedActivation,
    }
    return kinds.get(type(dictionary), Activation)(dictionary, loops)
