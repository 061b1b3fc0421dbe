"""Oversight by cognition: telling classifiers apart that behave alike, by which latents they go by.

Classifiers agree on every text at hand, where the intended property and another always go together; elsewhere they
would not. Hard: nothing is at hand that would tell them apart, and latents are judged from these texts and the model's
own weights. Relaxed: a few labelled texts where the properties differ may be used to judge. A bed where the answer is
known is in `oversight_bed`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.circuits.nodes import AbstractNodes
from sparsight.circuits.shift.biographies import LabelledTexts
from sparsight.circuits.shift.classifier import Classifier, pooled_activations
from sparsight.circuits.shift.effects import attribute
from sparsight.circuits.shift.evidence import evidence, read
from sparsight.circuits.shift.judges import Judge, Judgement, judge_all
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.classification import auroc
from sparsight.evaluation.frozen_record import Record
from sparsight.models import Site

INTENDED, UNCLEAR, UNINTENDED = 1, 0, -1
NOTHING_JUDGED = 0.5  # score of a classifier none of whose effects lie with judged latents


class CognitionScore(Record):
    """How far a classifier goes by what it should.

    Attributes:
        value: Effects on latents judged intended, over those on latents judged either way. 1: all intended.
        low, high: The same with every unclear latent counted as unintended, and as intended.
        unclear: Share of the effects on all latents that lies with unclear ones.
    """

    value: float
    low: float
    high: float
    unclear: float


class Oversight(Record):
    """How well scores tell classifiers that go by the intended property from those that do not.

    Attributes:
        scores: One for each classifier.
        auroc: Chance that one that does is scored above one that does not; 0.5 is chance.
        p_value: Share of shuffled verdicts with an AUROC at least as large.
        n_judged: Latents judged intended or unintended.
    """

    scores: list[CognitionScore]
    auroc: float
    p_value: float
    n_judged: int


def score_of(effects: Float[Tensor, " n"], verdicts: Int64[Tensor, " n"]) -> CognitionScore:
    """The score of one classifier.

    Args:
        effects: Mean absolute effect of each latent on its logit.
        verdicts: `INTENDED`, `UNCLEAR` or `UNINTENDED` for each.
    Raises:
        ValueError: an effect is negative.
    """
    if float(effects.min()) < 0:
        raise ValueError("effects are mean absolute values, got a negative one")
    mass = effects.double()
    good, bad, open_ = (float(mass[verdicts == v].sum()) for v in (INTENDED, UNINTENDED, UNCLEAR))
    judged, total = good + bad, good + bad + open_
    return CognitionScore(
        value=good / judged if judged > 0 else NOTHING_JUDGED,
        low=good / total if total > 0 else NOTHING_JUDGED,
        high=(good + open_) / total if total > 0 else NOTHING_JUDGED,
        unclear=open_ / total if total > 0 else 0.0,
    )


def discriminate(
    effects: Float[Tensor, "c n"],
    verdicts: Int64[Tensor, " n"],
    intended: Sequence[bool],
    *,
    n_shuffles: int = 200,
    seed: int = 0,
) -> Oversight:
    """Score classifiers and compare with the truth.

    Args:
        effects: Mean absolute effect of each latent on the logit of each classifier.
        verdicts: Of the latents; judged without knowing which classifier goes by them.
        intended: The truth, for each classifier.
        n_shuffles: Of the verdicts among latents that any classifier goes by.
        seed: Of the shuffles.
    Raises:
        ValueError: numbers differ.
        UndefinedMetric: all classifiers are of one sort.
    """
    if len(intended) != len(effects) or len(verdicts) != effects.shape[1]:
        raise ValueError(
            f"expected a truth for each of {len(effects)} classifiers and a verdict for each of {effects.shape[1]} "
            f"latents, got {len(intended)} and {len(verdicts)}"
        )
    truth = torch.tensor(list(intended))
    if len(set(intended)) != 2:
        raise UndefinedMetric("classifiers of both sorts are needed: some that go by the intended property, some not")
    scores = [score_of(row, verdicts) for row in effects]
    found = auroc(torch.tensor([score.value for score in scores]), truth)
    g = torch.Generator().manual_seed(seed)
    used = effects.sum(dim=0).nonzero()[:, 0]
    as_good = 0
    for _ in range(n_shuffles):
        shuffled = verdicts.clone()
        shuffled[used] = verdicts[used[torch.randperm(len(used), generator=g)]]
        values = torch.tensor([score_of(row, shuffled).value for row in effects])
        as_good += auroc(values, truth) >= found
    judged = int((verdicts[used] != UNCLEAR).sum())
    return Oversight(scores=scores, auroc=found, p_value=(1 + as_good) / (1 + n_shuffles), n_judged=judged)


def effects_on(
    classifiers: Sequence[Classifier], nodes: dict[Site, AbstractNodes], texts: LabelledTexts
) -> Float[Tensor, "c n"]:
    """Mean absolute first-order effect of every node of every site on each classifier, sites one after the other."""
    rows = []
    for classifier in classifiers:
        magnitude = attribute(classifier, nodes, texts).magnitude
        rows.append(torch.cat([magnitude[site] for site in sorted(nodes)]))
    return torch.stack(rows)


def oversee(
    classifiers: Sequence[Classifier],
    nodes: dict[Site, AbstractNodes],
    texts: LabelledTexts,
    judge: Judge,
    intended: Sequence[bool],
    *,
    n_judged: int = 200,
    n_shuffles: int = 200,
    seed: int = 0,
) -> Oversight:
    """Judge the nodes that classifiers go by, from texts on which all answer alike, and tell the classifiers apart.

    Nodes are ranked by their effects on all classifiers together, and evidence on them names no classifier: the judge
    cannot know which one it decides about. Hard: a judge that sees `texts` alone. Relaxed: one that was made from some
    texts where the properties differ (`DisambiguatedJudge`).

    Args:
        classifiers: Of one site.
        nodes: At sites up to that one.
        texts: Where the intended property and the other always go together.
        judge: Says of each node whether it serves the task.
        intended: The truth, for each classifier; used for the comparison alone.
        n_judged: Nodes with the largest effects of all sites together.
        n_shuffles, seed: As in `discriminate`.
    Raises:
        ValueError: two classifiers answer a text differently; or as `discriminate` and `attribute`.
    """
    lm = classifiers[0].lm
    x = pooled_activations(lm, classifiers[0].site, texts.texts)
    answers = torch.stack([one.of_pooled(x) > 0 for one in classifiers])
    if apart := int((answers != answers[0]).any(dim=0).sum()):
        raise ValueError(f"the classifiers do not answer alike on {apart} of {len(texts)} texts; leave those texts out")
    effects = effects_on(classifiers, nodes, texts)
    mass = effects.sum(dim=0)
    order = mass.argsort(descending=True, stable=True)[:n_judged]
    chosen: dict[Site, dict[int, float]] = {}
    for column in order[mass[order] > 0].tolist():
        site, latent = _place(column, nodes)
        chosen.setdefault(site, {})[latent] = float(mass[column]) / len(classifiers)
    readings = read(lm, nodes, texts, {site: list(found) for site, found in chosen.items()})
    shown = evidence(lm, nodes, readings, chosen)
    judgements = judge_all(judge, shown, f"tell the {texts.target}", texts.target_classes)
    return discriminate(effects, verdicts_of(judgements, nodes), intended, n_shuffles=n_shuffles, seed=seed)


def _place(column: int, nodes: dict[Site, AbstractNodes]) -> tuple[Site, int]:
    """Site and latent of a column of `effects_on`."""
    for site in sorted(nodes):
        if column < nodes[site].n_latents:
            return site, column
        column -= nodes[site].n_latents
    raise ValueError(f"there are fewer than {column} nodes")


def verdicts_of(judgements: Sequence[Judgement], nodes: dict[Site, AbstractNodes]) -> Int64[Tensor, " n"]:
    """Judgements as verdicts over all nodes in the order of `effects_on`; what was not judged is unclear."""
    starts, total = {}, 0
    for site in sorted(nodes):
        starts[str(site)] = total
        total += nodes[site].n_latents
    verdicts = torch.full((total,), UNCLEAR)
    number = {"keep": INTENDED, "remove": UNINTENDED, "unclear": UNCLEAR}
    for one in judgements:
        verdicts[starts[one.site] + one.latent] = number[one.verdict]
    return verdicts
