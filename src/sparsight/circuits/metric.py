"""The number that nodes are to explain: one for each sequence."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.models import Edit, LanguageModel, Site, Tokens

Judge = Callable[[Tensor, Tensor], Tensor]
"""From logits (or activations) `[m, t, d]` and the numbers `[m]` of the sequences they are of, to `[m]` numbers."""


@dataclass(frozen=True)
class Metric:
    """One differentiable number for each sequence.

    Attributes:
        judge: From `[m, t, vocabulary]` logits and the number `[m]` of each row in the batch that effects are asked
            for, to one number per row. Rows are judged each by itself: they come in other batches than they were given.
        reads: Judge the activations at this site instead, `[m, t, d]`; models without a head have no logits.
    """

    judge: Judge
    reads: Site | None = None

    def of(self, values: Float[Tensor, "m t d"], rows: Int64[Tensor, " m"]) -> Float[Tensor, " m"]:
        """The numbers, checked.

        Raises:
            ValueError: they are not one for each row.
            UndefinedMetric: one of them is NaN or infinite.
        """
        found = self.judge(values, rows)
        if not isinstance(found, Tensor) or found.shape != rows.shape or not found.is_floating_point():
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"the metric must return one number for each of {len(rows)} sequences, [{len(rows)}], got {got}; "
                "sum over positions, not over sequences"
            )
        finite = torch.isfinite(found)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            raise UndefinedMetric(
                f"the metric of sequence {int(rows[first])} is {float(found[first])}; effects need a finite number"
            )
        return found


def logit_difference(tokens: Tokens, right: Int64[Tensor, " n"], wrong: Int64[Tensor, " n"]) -> Metric:
    """Logit of one token less that of another, after the last real token of each sequence.

    Args:
        tokens: The sequences that effects are asked for.
        right: One token id for each.
        wrong: Another for each.
    """
    last = _last(tokens)

    def judge(logits: Tensor, rows: Tensor) -> Tensor:
        here = logits[torch.arange(len(rows)), last.to(rows.device)[rows]]
        picked = [here.gather(1, ids.to(rows.device)[rows, None])[:, 0] for ids in (right, wrong)]
        return picked[0] - picked[1]

    return Metric(judge)


def log_probability(tokens: Tokens, answers: Int64[Tensor, " n"]) -> Metric:
    """Log-probability, in nats, of a token after the last real token of each sequence.

    Args:
        tokens: The sequences that effects are asked for.
        answers: One token id for each.
    """
    last = _last(tokens)

    def judge(logits: Tensor, rows: Tensor) -> Tensor:
        here = logits[torch.arange(len(rows)), last.to(rows.device)[rows]]
        wide = here.to(torch.promote_types(here.dtype, torch.float32))
        return wide.log_softmax(dim=1).gather(1, answers.to(rows.device)[rows, None])[:, 0]

    return Metric(judge)


def probe(tokens: Tokens, site: Site, weights: Float[Tensor, " d"], bias: float = 0.0) -> Metric:
    """`weights · mean + bias`, the mean over the counted tokens of each sequence's activations at a site.

    Args:
        tokens: The sequences that effects are asked for.
        site: Where the probe reads.
        weights: Its direction.
        bias: Added to every number.
    Raises:
        UndefinedMetric: a sequence has no counted token.
    """
    counted = tokens.counted
    if not bool(counted.any(dim=1).all()):
        raise UndefinedMetric("the mean over a sequence without counted tokens is undefined; give longer texts")

    def judge(x: Tensor, rows: Tensor) -> Tensor:
        share = counted.to(x)[rows]
        return (x @ weights.to(x) * share).sum(dim=1) / share.sum(dim=1) + bias

    return Metric(judge, site)


def _last(tokens: Tokens) -> Int64[Tensor, " n"]:
    """Position of the last real token of each sequence."""
    places = torch.arange(tokens.ids.shape[1], device=tokens.mask.device)
    return (tokens.mask.long() * places).argmax(dim=1)


@dataclass
class Passes:
    """Sequences that went through the model, each counted as often as it did."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Bench:
    """A model and a metric on a batch of sequences, of which any rows are run any number of times.

    Attributes:
        lm: The model.
        metric: What is measured.
        tokens: The sequences.
        first: Number of the first of them in the batch that effects were asked for.
        batch_size: Sequences in one pass.
        passes: What was run so far.
    """

    lm: LanguageModel
    metric: Metric
    tokens: Tokens
    first: int
    batch_size: int
    passes: Passes = field(default_factory=Passes)

    def measure(self, rows: Int64[Tensor, " m"], edits: dict[Site, Edit]) -> Float[Tensor, " m"]:
        """The metric of some rows under edits, in one pass."""
        self.passes.forward += len(rows)
        tokens = self.tokens[rows]
        if self.metric.reads is None:
            values = self.lm.logits(tokens, edits=edits)
        else:
            values = self.lm.activations(tokens, [self.metric.reads], edits=edits)[self.metric.reads]
        return self.metric.of(values, (rows + self.first).to(values.device))

    def gradients(self, metric: Float[Tensor, " m"], leaves: list[Tensor]) -> list[Tensor]:
        """Derivatives of the metric of each row by its part of the leaves.

        Raises:
            ValueError: the metric does not depend on them in a way that autograd can follow.
        """
        self.passes.backward += len(metric)
        if not metric.requires_grad:
            raise ValueError("the metric has no gradient: compute it from what it is given, without detaching")
        found = torch.autograd.grad(metric.sum(), leaves, allow_unused=True)
        return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
