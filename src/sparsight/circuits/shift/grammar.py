"""What the organism's labels say of a node on biographies, and nothing that the texts it was read on do not show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.circuits.shift.biographies import LabelledTexts
from sparsight.evaluation.frozen_record import Record
from sparsight.models.organism.lexicon import LANGUAGES, PROFESSIONS, Language

UNKNOWN = -1


class LabelEvidence(Record):
    """Where a node's summed absolute value lies.

    Attributes:
        gendered: Share on names and pronouns.
        professional: Share on words that only one profession uses: its title, its place, its task.
        early: On the other words, while the gender is known and the profession is not yet: difference of its mean
            absolute value between texts of men and of women, over the largest such mean before or after the profession
            is known. Near 1 the node goes by the gender; near 0 it does not, or the texts do not say on what it waits.
        n_early: Tokens of that kind, in the rarer of the two: without any, `early` says nothing.
    """

    gendered: float
    professional: float
    early: float
    n_early: int


@dataclass(frozen=True, eq=False)
class Marks:
    """Labels of tokens, the organism's words being its tokens but for the first.

    Attributes:
        gendered: Names and pronouns.
        professional: Words of one profession alone.
        target: Class of the profession where it is known, else -1.
        spurious: Gender where it is known, else -1.
    """

    gendered: Bool[Tensor, "n t"]
    professional: Bool[Tensor, "n t"]
    target: Int64[Tensor, "n t"]
    spurious: Int64[Tensor, "n t"]


def marks_of(texts: LabelledTexts, width: int) -> Marks | None:
    """Marks of the organism's biographies; None where words carry no labels."""
    if not all({"gender", "profession", "is_name", "is_pronoun"} <= set(item.labels) for item in texts.items):
        return None
    words = profession_words()
    shape = (len(texts), width)
    gendered, professional = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    target, spurious = torch.full(shape, UNKNOWN), torch.full(shape, UNKNOWN)
    half = len(PROFESSIONS) // 2
    for row, item in enumerate(texts.items):
        for i, word in enumerate(item.text.split()[: width - 1], start=1):
            labels = {name: values[i - 1] for name, values in item.labels.items()}
            gendered[row, i] = labels["is_name"] == 1 or labels["is_pronoun"] == 1
            professional[row, i] = word in words
            spurious[row, i] = labels["gender"]
            target[row, i] = UNKNOWN if labels["profession"] < 0 else int(labels["profession"] >= half)
    return Marks(gendered, professional, target, spurious)


def label_evidence(value: Float[Tensor, "n t"], marks: Marks) -> LabelEvidence:
    """Shares of a node's value by what the words are."""
    size = value.abs().double()
    total = max(float(size.sum()), torch.finfo(torch.float64).tiny)
    other = ~marks.gendered & ~marks.professional & (marks.spurious != UNKNOWN)
    is_early = marks.target == UNKNOWN
    early, late = ([other & when & (marks.spurious == group) for group in (0, 1)] for when in (is_early, ~is_early))
    before, after = (
        [float(size[where].mean()) if where.any() else 0.0 for where in groups] for groups in (early, late)
    )
    largest = max(*before, *after, torch.finfo(torch.float64).tiny)
    return LabelEvidence(
        gendered=float(size[marks.gendered].sum()) / total,
        professional=float(size[marks.professional].sum()) / total,
        early=abs(before[0] - before[1]) / largest,
        n_early=min(int(where.sum()) for where in early),
    )


@lru_cache
def profession_words() -> frozenset[str]:
    """Words that in some language name one profession, its place or its task, and are used for nothing else."""
    found: set[str] = set()
    for language in LANGUAGES.values():
        common = _common_words(language)
        used: dict[str, set[int]] = {}
        for phrases in (language.men_at_work, language.women_at_work, language.workplaces, language.tasks):
            for i, phrase in enumerate(phrases):
                for word in phrase.split():
                    used.setdefault(word, set()).add(i)
        found |= {word for word, places in used.items() if len(places) == 1 and word not in common}
    return frozenset(found)


def _common_words(language: Language) -> set[str]:
    phrases: Sequence[str] = (
        *language.biography_first, *language.biography_more, *language.verbs, *language.objects,
        *language.places, *language.times, *language.traits,
    )  # fmt: skip
    return {word for phrase in phrases for word in phrase.split()}


def gendered_words(texts: LabelledTexts) -> frozenset[str]:
    """Names and pronouns of the texts, by their labels."""
    found = set()
    for item in texts.items:
        marked: Mapping[str, Sequence[int]] = item.labels
        for i, word in enumerate(item.text.split()):
            if marked["is_name"][i] == 1 or marked["is_pronoun"][i] == 1:
                found.add(word)
    return frozenset(found)
