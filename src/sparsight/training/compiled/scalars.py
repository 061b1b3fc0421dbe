"""The numbers of one step of Adam."""

from typing import NamedTuple


class AdamScalars(NamedTuple):
    """What all weights share in a step.

    Attributes:
        shrink: Factor of the gradient that its clipping asks for.
        rate: Learning rate over `1 - beta1^step`.
        beta1, beta2: Decay rates of the two averages.
        correction: `1 / sqrt(1 - beta2^step)`.
        eps: Adam's floor.
    """

    shrink: float
    rate: float
    beta1: float
    beta2: float
    correction: float
    eps: float

    @classmethod
    def of(cls, step: float, lr: float, shrink: float, betas: tuple[float, float], eps: float) -> "AdamScalars":
        """Those of a step, which is counted from 1."""
        beta1, beta2 = betas
        return cls(shrink, lr / (1 - beta1**step), beta1, beta2, (1 - beta2**step) ** -0.5, eps)
