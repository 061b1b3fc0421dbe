"""An average of the weights over the steps of a run."""

import torch
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary


class WeightAverage:
    """Exponential moving average of every trained parameter, `a <- a + (1 - beta_t) (w - a)`, in its own type.

    `beta_t = min(decay, 1 - 1/t)` at step `t`: the plain mean of all steps until `1 / (1 - decay)` of them have come,
    exponential from then on. So the first values, which are random, never count more than the later ones.

    Args:
        dictionary: Whose parameters are averaged; not changed until `apply_`.
        decay: Between 0 and 1; the window is about `1 / (1 - decay)` steps.
    """

    def __init__(self, dictionary: AbstractDictionary, decay: float) -> None:
        self.dictionary = dictionary
        self.decay = decay
        self.steps = torch.zeros((), dtype=torch.int64)
        self.trained = {name: p for name, p in dictionary.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters of this step in."""
        self.steps += 1
        weight = max(1 - self.decay, 1 / int(self.steps))
        for name, parameter in self.trained.items():
            self.averages[name].lerp_(parameter, weight)

    @torch.no_grad()
    def apply_(self) -> None:
        """Give the dictionary the averages, atoms set back to norm 1: a mean of unit vectors is shorter."""
        if int(self.steps) == 0:
            return
        for name, parameter in self.trained.items():
            parameter.copy_(self.averages[name])
        self.dictionary.normalize_atoms_()

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name."""
        return {"steps": self.steps, **self.averages}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` returned, bit for bit."""
        self.steps.copy_(tensors["steps"])
        for name, average in self.averages.items():
            average.copy_(tensors[name])
