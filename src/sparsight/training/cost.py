"""What a run costs: the time of a sparse step from what a machine does in a second."""

import math
from dataclasses import dataclass

from sparsight.dictionaries.base import check_positive

FLOAT = 4
# Adam reads a parameter, its gradient and two averages, and writes all but the gradient.
ADAM = 7 * FLOAT


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one device does in a second.

    Attributes:
        products: Floating-point operations of a large matrix product, in the precision that screens the latents.
        memory: Bytes read or written.

    Raises:
        ValueError: a rate is not positive.
    """

    products: float
    memory: float

    def __post_init__(self) -> None:
        check_positive(products=self.products, memory=self.memory)


def step_seconds(machine: Machine, *, d: int, n_latents: int, k: int, batch: int) -> dict[str, float]:
    """Least seconds of one sparse step, by what they go to.

    - encoder: one product of `[batch, d]` and `[d, n_latents]`; no sparse step has another.
    - gathers: `k` atoms of each token read once (they stay in the cache for the code's gradient), `k` rows of the
      encoder to compute its values again in full precision, and for both gradients `k` rows of a token's error and of
      its activation.
    - optimiser: gradients written, then 28 bytes for each parameter; gradients of active latents only, of which there
      are at most `batch k`.

    Raises:
        ValueError: a size is not positive.
    """
    check_positive(d=d, n_latents=n_latents, k=k, batch=batch)
    active = n_latents * -math.expm1(batch * k * math.log1p(-1 / n_latents)) if n_latents > 1 else 1.0
    return {
        "encoder": 2 * batch * d * n_latents / machine.products,
        "gathers": 4 * FLOAT * batch * k * d / machine.memory,
        "optimiser": (FLOAT * 2 * d * active + ADAM * 2 * d * n_latents) / machine.memory,
    }


def run_hours(
    machine: Machine, *, d: int, n_latents: int, k: int, batch: int, n_tokens: int, devices: int = 1, share: float = 0.6
) -> float:
    """Hours of a run whose steps reach `share` of the least time, its latents shared out evenly among devices.

    What devices send each other (a reconstruction and `k` candidates for each token) is left out: it is `2 d` numbers a
    token, against `2 d n_latents` operations.

    Raises:
        ValueError: a size is not positive, or the share not between 0 and 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is of the speed that the machine allows, above 0 and at most 1, got share={share}")
    check_positive(n_tokens=n_tokens, devices=devices)
    per_step = step_seconds(machine, d=d, n_latents=math.ceil(n_latents / devices), k=k, batch=batch)
    return math.ceil(n_tokens / batch) * sum(per_step.values()) / share / 3600
