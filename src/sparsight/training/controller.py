"""Reaching a mean L0 that was asked for, by moving the weight of a sparsity penalty."""

import math

import torch
from torch import Tensor

# All chosen on planted data and the embedded model (docs/training.md).
AVERAGED_OVER = 0.01  # of the run: the running mean's time constant
MOVES_IN = 0.03  # of the run: in this time the integral moves by the error
AT_LEAST = 12  # steps, in short runs: weights answer the penalty with about this delay
BOUND = math.log(1e4)  # the gain stays within this of 1


class L0Controller:
    """A gain on the penalty's coefficient, from the error of a running mean of L0: proportional and integral.

    With `e = log(mean L0 / target)`, cut to [-1, 1]: `log gain = I + e` and `I <- I + share e / T`. L0 falls about in
    proportion to the coefficient, whence the logarithms; weights answer with a delay, which the first term makes up
    for. `share` is the learning rate over its peak, so that the gain settles as the weights do.

    Args:
        target: Mean number of active latents in a token.
        n_steps: Length of the run.
    """

    def __init__(self, target: float, n_steps: int) -> None:
        self.target = target
        self.window = max(1.0, AVERAGED_OVER * n_steps)
        self.time = max(AT_LEAST, MOVES_IN * n_steps)
        self.log_gain = torch.zeros((), dtype=torch.float64)
        self.mean_l0 = torch.zeros((), dtype=torch.float64)
        self.seen = torch.zeros((), dtype=torch.int64)

    @property
    def gain(self) -> float:
        """By what the penalty's coefficient is multiplied now."""
        return math.exp(min(BOUND, max(-BOUND, float(self.log_gain) + self.error)))

    @property
    def error(self) -> float:
        """Logarithm of the running mean L0 over the target, cut to [-1, 1]; 0 before anything was seen."""
        if int(self.seen) == 0:
            return 0.0
        return min(1.0, max(-1.0, math.log(max(float(self.mean_l0), 1e-3 * self.target) / self.target)))

    @property
    def at_bound(self) -> bool:
        """Whether the gain has gone as far as it may."""
        return abs(float(self.log_gain)) >= BOUND

    def observe(self, l0: float, share: float) -> None:
        """Move the gain by what a step's batch showed.

        Args:
            l0: Mean number of active latents in a token of the batch.
            share: How fast the weights move, as a fraction of their peak rate.
        """
        self.seen += 1
        weight = max(1 / self.window, 1 / int(self.seen))
        self.mean_l0 += weight * (l0 - self.mean_l0)
        self.log_gain += share / self.time * self.error
        self.log_gain.clamp_(-BOUND, BOUND)

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name."""
        return {"log_gain": self.log_gain, "mean_l0": self.mean_l0, "seen": self.seen}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` returned, bit for bit."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
