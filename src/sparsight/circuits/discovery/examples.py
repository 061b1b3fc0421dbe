"""What a circuit is found on and measured on: sequences, what to compare them with, and the number to explain."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from sparsight.circuits.metric import Metric, logit_difference
from sparsight.errors import DataError
from sparsight.models import LanguageModel, Tokens


@dataclass(frozen=True)
class Examples:
    """Sequences with a metric, and paired ones that differ in what matters.

    Attributes:
        clean: The sequences.
        patch: One for each of them, of its length; None where there are no pairs.
        metric: One number for each clean sequence; it is given their numbers in `clean`.
    """

    clean: Tokens
    patch: Tokens | None
    metric: Metric

    def __post_init__(self) -> None:
        if len(self.clean) == 0:
            raise ValueError("expected at least one example, got none")
        if self.patch is None:
            return
        if self.patch.mask.shape != self.clean.mask.shape or not torch.equal(self.patch.mask, self.clean.mask):
            lengths = [tokens.mask.sum(dim=1).tolist()[:6] for tokens in (self.clean, self.patch)]
            raise ValueError(
                f"pairs must be of equal lengths, got {lengths[0]} and {lengths[1]} (the first six); pair templates of "
                "one length, or leave the pairs out and ablate to the mean"
            )

    def __len__(self) -> int:
        return len(self.clean)

    @staticmethod
    def of_answers(
        lm: LanguageModel,
        texts: Sequence[str],
        right: Sequence[str],
        wrong: Sequence[str],
        patch_texts: Sequence[str] | None = None,
    ) -> "Examples":
        """The metric `logit(right) - logit(wrong)` after the last token of each text.

        Args:
            lm: Its tokenizer is used.
            texts: What the model reads.
            right: What it should say next; a single token.
            wrong: What it says next in the paired text, or any other word; a single token.
            patch_texts: Pairs, of the same lengths.
        Raises:
            ValueError: numbers or lengths of texts and answers differ.
            DataError: an answer is not a single token.
        """
        lengths = {len(texts), len(right), len(wrong), len(texts if patch_texts is None else patch_texts)}
        if len(lengths) != 1:
            raise ValueError(f"texts, answers and pairs must be of one number, got {sorted(lengths)}")
        clean = lm.tokenize(list(texts))
        patch = None if patch_texts is None else lm.tokenize(list(patch_texts))
        metric = logit_difference(clean, answer_ids(lm, right), answer_ids(lm, wrong))
        return Examples(clean, patch, metric)


def answer_ids(lm: LanguageModel, answers: Sequence[str]) -> Int64[Tensor, " n"]:
    """The token of each answer.

    Raises:
        DataError: an answer is not a single token.
    """
    tokens = lm.tokenize(list(answers))
    counts = tokens.counted.sum(dim=1)
    if (counts != 1).any():
        first = answers[int((counts != 1).nonzero()[0])]
        raise DataError(f"the answer {first!r} is {int(counts[counts != 1][0])} tokens; give answers of one token")
    return tokens.ids[tokens.counted]
