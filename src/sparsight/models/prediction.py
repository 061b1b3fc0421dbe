"""Next-token cross-entropy without a float32 copy of all logits."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.models.tokens import Tokens

_CHUNK = 1 << 24  # logits in one chunk: 64 MB in float32


def predicted(tokens: Tokens) -> Bool[Tensor, "b t_less_1"]:
    """Which tokens from the second on have a prediction: real ones that follow a real one."""
    return tokens.mask[:, 1:] & tokens.mask[:, :-1]


def next_token_loss(
    hidden: Float[Tensor, "b t d"],
    unembed: Callable[[Tensor], Tensor],
    tokens: Tokens,
    vocabulary: int,
) -> Float[Tensor, "b t_less_1"]:
    """`-log p(token i+1 | tokens up to i)` in nats, in float32 at least; 0 where the target is padding.

    Logits are made and used in chunks of positions, so that the largest array is `chunk * vocabulary`.

    Args:
        hidden: What the model's head takes in.
        unembed: The head: hidden states `[m, d]` to logits `[m, vocabulary]`.
        tokens: The batch that `hidden` was computed on.
        vocabulary: Number of logits per token.
    """
    wanted = predicted(tokens)
    inputs, targets = hidden[:, :-1][wanted], tokens.ids[:, 1:][wanted]
    size = max(1, _CHUNK // vocabulary)
    losses = [
        _cross_entropy(unembed(inputs[start : start + size]), targets[start : start + size])
        for start in range(0, len(targets), size)
    ]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.zeros(wanted.shape, dtype=dtype, device=hidden.device)
    return loss.masked_scatter(wanted, torch.cat(losses)) if losses else loss


def _cross_entropy(logits: Float[Tensor, "m vocabulary"], targets: Int64[Tensor, " m"]) -> Float[Tensor, " m"]:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide, targets, reduction="none")


def mean_loss(losses: Float[Tensor, "b t_less_1"], wanted: Bool[Tensor, "b t_less_1"]) -> Float[Tensor, ""]:
    """Mean over all predicted tokens of the batch.

    Raises:
        UndefinedMetric: no token is predicted.
    """
    n = int(wanted.sum())
    if n == 0:
        raise UndefinedMetric("the loss is undefined: no sequence has two tokens; give longer texts")
    return losses.sum() / n
