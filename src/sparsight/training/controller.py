"""Reaching a mean L0 that was asked for, by moving the weight of a sparsity penalty."""

import math

import torch
from torch import Tensor

# In steps; fractions of the run where the run is short. See docs/training.md for how they were chosen.
AVERAGED_OVER = 0.01
MOVES_IN = 0.03
# The gain stays within these factors of 1.
LARGEST = 1e4


class L0Controller:
    """A gain `g` on the penalty's coefficient, moved in its logarithm by the error of a running mean of L0.

    `log g <- log g + share / T clamp(log(mean L0 / target), -1, 1)`, with `T` a fraction of the run: at an error of a
    factor `e` the gain changes by a factor `e` in `T` steps. `share` is the learning rate over its peak, so that the
    gain settles as the weights do. L0 falls about in proportion to the coefficient, whence the logarithms.

    Args:
        target: Mean number of active latents in a token.
        n_steps: Length of the run.
    """

    def __init__(self, target: float, n_steps: int) -> None:
        self.target = target
        self.window = max(1.0, AVERAGED_OVER * n_steps)
        self.time = max(1.0, MOVES_IN * n_steps)
        self.log_gain = torch.zeros((), dtype=torch.float64)
        self.mean_l0 = torch.zeros((), dtype=torch.float64)
        self.seen = torch.zeros((), dtype=torch.int64)

    @property
    def gain(self) -> float:
        """By what the penalty's coefficient is multiplied now."""
        return math.exp(float(self.log_gain))

    @property
    def at_bound(self) -> bool:
        """Whether the gain has gone as far as it may."""
        return abs(float(self.log_gain)) >= math.log(LARGEST)

    def observe(self, l0: float, share: float) -> None:
        """Move the gain by what a step's batch showed.

        Args:
            l0: Mean number of active latents in a token of the batch.
            share: How fast the weights move, as a fraction of their peak rate.
        """
        self.seen += 1
        weight = max(1 / self.window, 1 / int(self.seen))
        self.mean_l0 += weight * (l0 - self.mean_l0)
        error = math.log(max(float(self.mean_l0), 1e-3 * self.target) / self.target)
        self.log_gain += share / self.time * min(1.0, max(-1.0, error))
        self.log_gain.clamp_(-math.log(LARGEST), math.log(LARGEST))

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name."""
        return {"log_gain": self.log_gain, "mean_l0": self.mean_l0, "seen": self.seen}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` returned, bit for bit."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
