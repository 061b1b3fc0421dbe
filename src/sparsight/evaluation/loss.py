"""Next-token loss added by a reconstruction, beside what ablating the site adds."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric


@dataclass(frozen=True)
class LossAdded:
    """Next-token losses in nats per token: clean, spliced, zero-ablated, mean-ablated; sums over the same tokens.

    `value` is the loss added by the splice, spliced minus clean: 0 is a perfect reconstruction. As a fraction of what
    an ablation adds, 1 is no better than the ablation; `1 - fraction` is the "loss recovered" of the literature.
    Ablation replaces the same positions as the splice, so that both fractions compare like with like; zero ablation of
    a residual stream is catastrophic and flatters, mean ablation is the one to read.

    Attributes:
        n: Predicted tokens.
        sum_clean: Loss of the untouched model.
        sum_spliced: With the reconstruction in place of the activation.
        sum_zero: With zero in its place.
        sum_mean: With the mean activation in its place.
        sum_kl: Divergence `KL(clean || spliced)` of the next-token distributions.
    """

    n: int
    sum_clean: float
    sum_spliced: float
    sum_zero: float
    sum_mean: float
    sum_kl: float

    def __add__(self, other: "LossAdded") -> "LossAdded":
        return LossAdded(
            self.n + other.n,
            self.sum_clean + other.sum_clean,
            self.sum_spliced + other.sum_spliced,
            self.sum_zero + other.sum_zero,
            self.sum_mean + other.sum_mean,
            self.sum_kl + other.sum_kl,
        )

    @property
    def value(self) -> float:
        """Loss added by the splice, in nats per token.

        Raises:
            UndefinedMetric: no token was predicted.
        """
        return self._per_token(self.sum_spliced - self.sum_clean)

    @property
    def clean(self) -> float:
        """Loss of the untouched model, in nats per token."""
        return self._per_token(self.sum_clean)

    @property
    def kl(self) -> float:
        """`KL(clean || spliced)` in nats per token, `>= 0`."""
        return self._per_token(self.sum_kl)

    @property
    def added_by_zero(self) -> float:
        """Loss added by zero ablation, in nats per token."""
        return self._per_token(self.sum_zero - self.sum_clean)

    @property
    def added_by_mean(self) -> float:
        """Loss added by mean ablation, in nats per token."""
        return self._per_token(self.sum_mean - self.sum_clean)

    @property
    def fraction_of_zero(self) -> float:
        """Loss added by the splice over that added by zero ablation. Raises as `fraction_of_mean` does."""
        return self._fraction(self.added_by_zero, "zero")

    @property
    def fraction_of_mean(self) -> float:
        """Loss added by the splice over that added by mean ablation.

        Raises:
            UndefinedMetric: the ablation does not raise the loss: the model does not need this site on these tokens.
        """
        return self._fraction(self.added_by_mean, "mean")

    def _fraction(self, added: float, name: str) -> float:
        if added <= 0:
            raise UndefinedMetric(
                f"no fraction: {name} ablation changes the loss by {added:.3g} nats, which is no loss"
            )
        return self.value / added

    def _per_token(self, total: float) -> float:
        if self.n == 0:
            raise UndefinedMetric("loss is undefined: no token was predicted; contexts need at least two tokens")
        return total / self.n


def next_token_loss(logits: Float[Tensor, "b t vocab"], ids: Int64[Tensor, "b t"]) -> Float[Tensor, "b t-1"]:
    """Cross-entropy in nats of each token given those before it; column `i` is the loss of token `i + 1`."""
    return torch.nn.functional.cross_entropy(
        _precise(logits[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(ids.shape[0], ids.shape[1] - 1)


def next_token_kl(logits: Float[Tensor, "b t vocab"], other: Float[Tensor, "b t vocab"]) -> Float[Tensor, "b t-1"]:
    """`KL(softmax(logits) || softmax(other))` in nats, of the distribution over each next token.

    Logits are log-softmaxed before they are subtracted, so that no probability underflows: finite for finite logits.
    """
    log_p, log_q = (_precise(values[:, :-1]).log_softmax(dim=-1) for values in (logits, other))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _precise(logits: Tensor) -> Tensor:
    """Half-precision logits in float32; others as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
