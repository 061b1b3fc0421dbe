"""What the biased texts cannot decide about a node, how many of their tokens speak to it, and what the truth was."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsight.circuits.shift.evidence import Readings
from sparsight.evaluation.frozen_record import Record
from sparsight.models import Site

COVERED = 0.8  # share of a node's value that its words are to cover
SEPARATION = 0.5  # ratio of means below which a node depends on a feature


class Hypotheses(Record):
    """Three readings of one node, and whether texts tell them apart.

    W are the fewest words that carry most of the node's value, c the class in whose texts it is stronger. The readings:
    it fires on W; on W only where the target is c; on W only where the spurious feature is c.

    Attributes:
        site, latent: Which node.
        words: W.
        target_class, spurious_class: c, in the words of each feature.
        n_word_or_context: Tokens of W in texts of the other class: they tell the first reading from the other two.
        n_target_or_spurious: Tokens of W where target and spurious feature disagree: they tell the last two apart.
        decided: Whether each of the two numbers is above 0 on the texts that were judged from.
        truth: The reading that holds on texts where all combinations occur, opened after the judgement; None if not
            opened, or if W does not occur there where both are c.
        means: There, mean value on W where target and spurious feature are c: both, the target alone, the spurious one
            alone, neither. None where W does not occur: a name is of one gender.
    """

    site: str
    latent: int
    words: list[str]
    target_class: str
    spurious_class: str
    n_word_or_context: int
    n_target_or_spurious: int
    truth: str | None = None
    means: list[float | None] | None = None

    @property
    def decided(self) -> bool:
        return self.n_word_or_context > 0 and self.n_target_or_spurious > 0

    def __str__(self) -> str:
        words = ", ".join(self.words[:4])
        return (
            f"{self.site} {self.latent}: fires on {words} — always, only for {self.target_class}, or only for "
            f"{self.spurious_class}? {self.n_word_or_context} and {self.n_target_or_spurious} tokens could tell"
        )


def hypotheses(biased: Readings, locked: Readings | None = None) -> list[Hypotheses]:
    """The three readings of every node that was read on the biased texts.

    Args:
        biased: Values on the texts that were judged from.
        locked: Values of the same nodes on texts with all four combinations, to be opened after the judgement.
    """
    return [_of_node(biased, locked, key) for key in biased.values]


def _of_node(biased: Readings, locked: Readings | None, key: tuple[Site, int]) -> Hypotheses:
    value = biased.values[key]
    words = _covering(biased, value)
    means = biased.text_means(key)
    target = biased.texts.target_labels
    c = int(means[target == 1].mean() > means[target == 0].mean())
    s = int(biased.texts.spurious_labels[target == c].float().mean().round())
    on_words = torch.isin(biased.ids, torch.tensor(words)) & biased.counted
    is_target, is_spurious = _known(biased, c, s)
    truth, cells = (None, None) if locked is None else _truth(locked, key, words, c, s)
    return Hypotheses(
        site=str(key[0]),
        latent=key[1],
        words=[biased.strings[word].strip() for word in words],
        target_class=biased.texts.target_classes[c],
        spurious_class=biased.texts.spurious_classes[s],
        n_word_or_context=int((on_words & ~is_target & ~is_spurious).sum()),
        n_target_or_spurious=int((on_words & (is_target != is_spurious)).sum()),
        truth=truth,
        means=cells,
    )


def _known(readings: Readings, c: int, s: int) -> tuple[Tensor, Tensor]:
    """Where target and spurious feature are known to be of a class: by token where labelled, else the whole text."""
    if readings.marks is not None:
        return readings.marks.target == c, readings.marks.spurious == s
    shape = readings.ids.shape
    target = (readings.texts.target_labels == c)[:, None].expand(shape)
    return target, (readings.texts.spurious_labels == s)[:, None].expand(shape)


def _covering(readings: Readings, value: Tensor) -> list[int]:
    """The fewest token ids that carry `COVERED` of a node's absolute value, the largest share first."""
    mass = torch.zeros(max(readings.strings) + 1, dtype=torch.float64)
    mass.scatter_add_(0, readings.ids.flatten(), value.abs().double().flatten())
    shares, order = mass.sort(descending=True, stable=True)
    needed = int((shares.cumsum(0) < COVERED * shares.sum()).sum()) + 1
    found: list[int] = order[:needed][shares[:needed] > 0].tolist()
    return found


def _truth(
    locked: Readings, key: tuple[Site, int], words: Sequence[int], c: int, s: int
) -> tuple[str | None, list[float | None]]:
    on_words = torch.isin(locked.ids, torch.tensor(list(words))) & locked.counted
    is_target, is_spurious = _known(locked, c, s)
    value = locked.values[key]
    means: list[float | None] = []
    for cell in (
        is_target & is_spurious,
        is_target & ~is_spurious,
        ~is_target & is_spurious,
        ~is_target & ~is_spurious,
    ):
        here = on_words & cell
        means.append(float(value[here].abs().mean()) if here.any() else None)
    both, target_alone, spurious_alone, _ = means
    if not both:
        return None, means

    def falls(alone: float | None) -> bool:
        return alone is not None and alone < SEPARATION * both

    reading = {
        (False, False): "fires on its words, whatever the rest",
        (True, False): "only with the target",
        (False, True): "only with the spurious feature",
        (True, True): "only with both",
    }[falls(spurious_alone), falls(target_alone)]
    return reading, means
