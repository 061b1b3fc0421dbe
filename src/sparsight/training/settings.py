"""How long, how fast and from which seed to train."""

import math
from dataclasses import dataclass

from sparsight.dictionaries.base import Number, check_positive

_CHOICES = {
    "decay_shape": ("linear", "cosine"),
    "precision": ("float32", "bf16"),
    "parallel": ("data", "latents"),
    "revive": ("aux", "resample"),
    "step": ("auto", "dense", "sparse"),
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings shared by all dictionaries trained on one stream.

    Attributes:
        n_tokens: Activations to train on, repeats counted; rounded up to whole batches.
        batch_size: Activations in one step.
        lr: Peak learning rate of Adam.
        warmup: Fraction of the steps in which the rate rises linearly from 0.
        decay: Fraction of the steps, at the end, in which it falls to 0.
        decay_shape: How it falls there: `"linear"` or `"cosine"`.
        sparsity_warmup: Fraction of the steps in which a sparsity penalty rises linearly to its full weight.
        betas: Decay rates of Adam's two averages.
        clip: Largest norm of the gradient, all parameters of one dictionary together; `None` does not clip.
        accumulate: Parts into which a batch is cut; their gradients are added up before the step. Saves memory.
        precision: `"float32"`, or `"bf16"`: matrix products of the objective in bfloat16, all else in float32.
        ema: Decay rate of an average of the weights over the steps, which is then what is saved; `None` saves the last.
        parallel: What the processes of `torchrun` share out: the `"data"` of a batch, or the `"latents"` (TopK).
        revive: How latents come back that were silent for `dead_after` tokens: through the auxiliary loss of the
            architecture (`"aux"`), or from the residual of badly reconstructed tokens (`"resample"`; the auxiliary loss
            is then off). Pursuit always does the latter.
        step: How gradients are computed, which changes them by rounding only: `"sparse"` for active latents alone,
            where the architecture allows, `"dense"` for all, `"auto"` by what is faster.
        seed: Of the dictionaries' first values and of the order of the batches.
        normalization_tokens: Activations on which the mean and the scale are fitted.
        log_every: Steps between two lines of `metrics.jsonl`.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        ValueError: a number is out of its range.
    """

    n_tokens: int
    batch_size: int = 2048
    lr: Number = 1e-3
    warmup: Number = 0.05
    decay: Number = 0.2
    decay_shape: str = "linear"
    sparsity_warmup: Number = 0.1
    betas: tuple[Number, Number] = (0.9, 0.999)
    clip: Number | None = 1.0
    accumulate: int = 1
    precision: str = "float32"
    ema: Number | None = None
    parallel: str = "data"
    revive: str = "aux"
    step: str = "auto"
    seed: int = 0
    normalization_tokens: int = 65_536
    log_every: int = 50
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        check_positive(n_tokens=self.n_tokens, batch_size=self.batch_size, lr=self.lr)
        check_positive(log_every=self.log_every, checkpoint_every=self.checkpoint_every)
        if self.normalization_tokens < 2:
            raise ValueError(f"normalization_tokens must be at least 2, got {self.normalization_tokens}")
        for name in ("warmup", "decay", "sparsity_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a fraction of the steps, between 0 and 1, got {name}={getattr(self, name)}"
                )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got betas={self.betas}")
        if self.clip is not None:
            check_positive(clip=self.clip)
        if not 1 <= self.accumulate <= self.batch_size:
            raise ValueError(
                f"accumulate must be between 1 and batch_size={self.batch_size}, got accumulate={self.accumulate}"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, e.g. 0.999, got ema={self.ema}; None switches it off")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.revive == "resample" and self.parallel == "latents":
            raise ValueError('parallel="latents" revives through the auxiliary loss only; set revive="aux"')

    @property
    def n_steps(self) -> int:
        return -(-self.n_tokens // self.batch_size)

    def lr_at(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0: a trapezoid that is positive at every step."""
        rise = (step + 1) / max(1.0, self.warmup * self.n_steps)
        fall = (self.n_steps - step) / max(1.0, self.decay * self.n_steps)
        if self.decay_shape == "cosine":
            fall = (1 - math.cos(math.pi * min(1.0, fall))) / 2
        return self.lr * min(1.0, rise, fall)

    def progress_at(self, step: int) -> float:
        """Share of the training that lies before step `step`, counted from 0; 1 at the last."""
        return step / max(1, self.n_steps - 1)

    def sparsity_at(self, step: int) -> float:
        """Share of its full weight that a sparsity penalty has at step `step`, counted from 0."""
        return min(1.0, (step + 1) / max(1.0, self.sparsity_warmup * self.n_steps))
