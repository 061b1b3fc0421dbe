"""What a model does, as one number for each prompt: how likely it is to go on with one of some tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sparsight.errors import DataError
from sparsight.models import Edit, LanguageModel, Site, Tokens


@dataclass(frozen=True)
class NextToken:
    """Whether the next token is one of a set: the log odds of the set against the rest, or against another set.

    Attributes:
        ids: Token ids that count as the behaviour.
        against: Token ids that count as its opposite; None for every other token.
    """

    ids: tuple[int, ...]
    against: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.ids or (self.against is not None and (not self.against or set(self.ids) & set(self.against))):
            raise ValueError(f"expected two disjoint sets of token ids, got {self.ids} and {self.against}")

    @staticmethod
    def of_words(lm: LanguageModel, words: Sequence[str], against: Sequence[str] | None = None) -> "NextToken":
        """The behaviour of going on with the first token of one of some words.

        Raises:
            DataError: a word is not known to the tokenizer.
        """
        return NextToken(_first_ids(lm, words), None if against is None else _first_ids(lm, against))

    def log_odds(self, logits: Float[Tensor, "n vocabulary"]) -> Float64[Tensor, " n"]:
        """`log p(ids) - log p(others)`, in nats; above 0 the behaviour is the likelier."""
        wide = logits.double()
        ours = wide[:, list(self.ids)].logsumexp(dim=1)
        if self.against is not None:
            return ours - wide[:, list(self.against)].logsumexp(dim=1)
        others = wide.clone()
        others[:, list(self.ids)] = -torch.inf
        return ours - others.logsumexp(dim=1)


def _first_ids(lm: LanguageModel, words: Sequence[str]) -> tuple[int, ...]:
    found = []
    for word in words:
        tokens = lm.tokenize(word)
        first = int(tokens.ids[0][tokens.counted[0]][0])
        if first == lm.tokenizer.unk_token_id:
            raise DataError(f"the tokenizer of {lm.name} does not know {word!r}")
        found.append(first)
    return tuple(dict.fromkeys(found))


def last_logits(
    lm: LanguageModel, tokens: Tokens, edits: Mapping[Site, Edit] | None = None
) -> Float[Tensor, "n vocabulary"]:
    """Logits of the token that comes after each prompt."""
    logits = lm.logits(tokens, edits=edits)
    last = tokens.mask.long().cumsum(dim=1).argmax(dim=1).to(logits.device)
    return logits[torch.arange(len(logits), device=logits.device), last]


def behaviour_scores(
    lm: LanguageModel, tokens: Tokens, behaviour: NextToken, edits: Mapping[Site, Edit] | None = None
) -> Float64[Tensor, " n"]:
    """Log odds of a behaviour after each prompt, in nats."""
    with torch.no_grad():
        return behaviour.log_odds(last_logits(lm, tokens, edits)).cpu()


def rate(scores: Float64[Tensor, " n"]) -> float:
    """Share of prompts at which the behaviour is the likelier."""
    return float((scores > 0).double().mean())


def mean_kl(lm: LanguageModel, tokens: Tokens, edits: Mapping[Site, Edit], *, last_only: bool = False) -> float:
    """Mean `KL(clean || edited)` of next-token distributions, in nats: after each prompt, or after each real token."""
    with torch.no_grad():
        if last_only:
            pairs = [last_logits(lm, tokens, e) for e in (None, edits)]
        else:
            pairs = [lm.logits(tokens, edits=e) for e in (None, edits)]
            pairs = [logits[tokens.mask.to(logits.device)] for logits in pairs]
        log_p, log_q = (logits.double().log_softmax(dim=-1) for logits in pairs)
        return float((log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp_min(0).mean())
