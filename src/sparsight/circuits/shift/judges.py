"""Who says which nodes a classifier should not go by, and what they may look at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch

from sparsight.circuits.shift.evidence import Evidence, Readings
from sparsight.evaluation.frozen_record import Record
from sparsight.models import Site

Verdict = Literal["keep", "remove", "unclear"]


class Judgement(Record):
    """What a judge says of a node.

    Attributes:
        site, latent: Which.
        verdict: Whether it serves the intended task: "keep" or "remove"; "unclear" where the evidence does not say.
        confidence: The judge's own, in [0, 1].
        reason: In a sentence.
        documents: Number of texts that the judgement has seen.
    """

    site: str
    latent: int
    verdict: Verdict
    confidence: float
    reason: str
    documents: int


@runtime_checkable
class Judge(Protocol):
    """Says of each node whether it serves the task."""

    @property
    def name(self) -> str:
        """As it stands in records."""

    def __call__(self, evidence: Evidence, task: str, target_classes: tuple[str, str]) -> Judgement:
        """Judge one node from evidence, for a task such as "tell the profession" with its two classes."""


def judged(evidence: Evidence, verdict: Verdict, confidence: float, reason: str) -> Judgement:
    """A judgement of the node that the evidence is about."""
    return Judgement(
        site=evidence.site,
        latent=evidence.latent,
        verdict=verdict,
        confidence=confidence,
        reason=reason,
        documents=len(evidence.documents),
    )


@dataclass(frozen=True)
class LabelJudge:
    """Goes by the organism's labels of the texts in the evidence: like a reader who knows what every word means.

    A node with most of its value on names and pronouns is to go, one with most of it on a profession's words to stay.
    One that fires on other words is to go if it tells men from women before the profession is known; if it waits for
    the profession, the texts cannot say which of the two it waits for.

    Attributes:
        majority: Share of the value that settles it.
        early: Share of its strength by which it tells men from women before the profession is known; above it goes.
        least_early: Such tokens below which that share is not looked at.
    """

    majority: float = 0.5
    early: float = 0.5
    least_early: int = 20
    name: str = "labels"

    def __call__(self, evidence: Evidence, task: str, target_classes: tuple[str, str]) -> Judgement:
        """As above.

        Raises:
            ValueError: the texts carry no labels of the organism.
        """
        found = evidence.labelled
        if found is None:
            raise ValueError(
                "these texts carry no labels of the organism; judge them with a person or a language model"
            )
        if found.gendered >= self.majority:
            return judged(evidence, "remove", found.gendered, f"{found.gendered:.0%} of it on names and pronouns")
        if found.professional >= self.majority:
            return judged(evidence, "keep", found.professional, f"{found.professional:.0%} on words of a profession")
        if found.n_early >= self.least_early and found.early >= self.early:
            reason = f"on other words, with {found.early:.0%} of its strength by gender before a profession is known"
            return judged(evidence, "remove", min(1.0, found.early), reason)
        return judged(evidence, "unclear", 0.0, "on other words, once gender and profession are both known")


@dataclass(frozen=True)
class DisambiguatedJudge:
    """Goes by texts in which the two features are independent, which the biased setting forbids: an upper bound.

    Attributes:
        gaps: Of each node, the difference of its mean between classes of the target and of the spurious feature, each
            at equal shares of the other.
    """

    gaps: Mapping[tuple[str, int], tuple[float, float]]
    n_texts: int
    name: str = "disambiguating data"

    @staticmethod
    def of(balanced: Readings) -> "DisambiguatedJudge":
        """Learn gaps from readings of balanced texts.

        Raises:
            ValueError: a combination of the two features has no text.
        """
        target, spurious = balanced.texts.target_labels, balanced.texts.spurious_labels
        if len(balanced.texts.cells) != 4:
            raise ValueError(f"all four combinations are needed, got {balanced.texts.cells}")
        gaps = {}
        for key in balanced.values:
            means = balanced.text_means(key)
            cell = {(t, s): float(means[(target == t) & (spurious == s)].mean()) for t in (0, 1) for s in (0, 1)}
            by_target = (cell[1, 0] + cell[1, 1] - cell[0, 0] - cell[0, 1]) / 2
            by_spurious = (cell[0, 1] + cell[1, 1] - cell[0, 0] - cell[1, 0]) / 2
            gaps[str(key[0]), key[1]] = (by_target, by_spurious)
        return DisambiguatedJudge(gaps, len(balanced.texts))

    def __call__(self, evidence: Evidence, task: str, target_classes: tuple[str, str]) -> Judgement:
        """Remove what differs more by the spurious feature than by the target.

        Raises:
            ValueError: the node was not read on the balanced texts.
        """
        if (evidence.site, evidence.latent) not in self.gaps:
            raise ValueError(f"{evidence.kind} {evidence.latent} at {evidence.site} was not read on the balanced texts")
        target, spurious = map(abs, self.gaps[evidence.site, evidence.latent])
        share = spurious / max(target + spurious, 1e-30)
        reason = f"differs by {target:.3g} with the target and by {spurious:.3g} with the other feature"
        seen = evidence.model_copy(update={"documents": [*evidence.documents, *range(self.n_texts)]})
        return judged(seen, "remove" if share > 0.5 else "keep", max(share, 1 - share), reason)


@dataclass(frozen=True)
class PersonJudge:
    """Asks whoever sits at the terminal.

    Attributes:
        ask: Shows a question and returns the answer; `input` by default.
        show: Shows the evidence; `print` by default.
    """

    ask: Callable[[str], str] = input
    show: Callable[[str], None] = print
    name: str = "person"

    def __call__(self, evidence: Evidence, task: str, target_classes: tuple[str, str]) -> Judgement:
        """Keep, remove or unclear, as answered; anything else is asked again."""
        self.show(f"\nThe task: {task} ({target_classes[0]} or {target_classes[1]}).")
        self.show(evidence.to_text(target_classes))
        answers: dict[str, Verdict] = {"k": "keep", "r": "remove", "u": "unclear"}
        while True:
            answer = self.ask("Does this serve the task? [k]eep, [r]emove, [u]nclear: ").strip().lower()[:1]
            if answer in answers:
                return judged(evidence, answers[answer], 1.0, "a person's answer")


def judge_all(
    judge: Judge, evidence: Sequence[Evidence], task: str, target_classes: tuple[str, str]
) -> list[Judgement]:
    """A judgement of each node, in the order of the evidence."""
    return [judge(one, task, target_classes) for one in evidence]


def chosen_by(judgements: Sequence[Judgement], *verdicts: Verdict) -> dict[Site, list[int]]:
    """Nodes that were given one of the verdicts, by site."""
    found: dict[Site, list[int]] = {}
    for one in judgements:
        if one.verdict in verdicts:
            found.setdefault(Site.parse(one.site), []).append(one.latent)
    return dict(sorted(found.items()))


def matched_random(
    chosen: Mapping[Site, Sequence[int]],
    active: Mapping[Site, torch.Tensor],
    *,
    seed: int,
) -> dict[Site, list[int]]:
    """As many nodes at each site, drawn among those that are active on the texts and were not chosen.

    Args:
        chosen: What to match.
        active: By site, whether each node is active at all.
        seed: Of the draw.
    """
    g = torch.Generator().manual_seed(seed)
    found = {}
    for site, latents in chosen.items():
        pool = active[site].clone()
        pool[list(latents)] = False
        places = pool.nonzero()[:, 0]
        found[site] = sorted(places[torch.randperm(len(places), generator=g)[: len(latents)]].tolist())
    return found
