"""A place in a network, and the behaviour that follows from what stands there."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.intervention.behaviour import NextToken, last_logits
from sparsight.intervention.difference import activations_at
from sparsight.intervention.direction_edits import replace
from sparsight.intervention.positions import last_tokens
from sparsight.models import LanguageModel, Site, Tokens


@runtime_checkable
class Readout(Protocol):
    """Inputs with one activation each, and the behaviour as a function of what stands there.

    `x` holds the activations of the inputs; `score(x, rows)` is the behaviour of the inputs `rows` with `x` in the
    place of their own, differentiable.
    """

    @property
    def x(self) -> Tensor: ...
    def score(self, x: Tensor, rows: Tensor) -> Tensor: ...


class ModelReadout:
    """A site of a language model at the last token of prompts, and a behaviour of the next token.

    Attributes:
        x: Activations `[n, d]` there.
    """

    def __init__(
        self,
        lm: LanguageModel,
        tokens: Tokens,
        site: Site | str,
        behaviour: NextToken,
        *,
        back: int = 0,
        batch_size: int = 128,
    ) -> None:
        """Read the site once.

        Args:
            lm: A causal model.
            tokens: Prompts.
            site: Where.
            behaviour: What is counted, as log odds.
            back: How many tokens before the last one.
            batch_size: Prompts in a pass.
        """
        self.lm, self.tokens, self.site, self.behaviour = lm, tokens, Site.parse(site), behaviour
        self.where, self.batch_size = last_tokens(tokens, back), batch_size
        self.x: Float[Tensor, "n d"] = activations_at(lm, tokens, [self.site], self.where)[self.site]

    def score(self, x: Float[Tensor, "m d"], rows: Tensor) -> Tensor:
        """Log odds of the behaviour after the prompts `rows`, with `x` in the place of their activations."""
        found = []
        for start in range(0, len(rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            tokens = self.tokens[rows[part]]
            edits = replace(self.lm, self.site, x[part], where=self.where[rows[part]])
            found.append(self.behaviour.log_odds(last_logits(self.lm, tokens, edits)))
        return torch.cat(found) if found else x.new_zeros(0, dtype=torch.float64)
