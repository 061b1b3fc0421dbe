"""Oversight by cognition: telling classifiers apart that behave alike, by which latents they go by.

Classifiers agree on every text at hand, where the intended property and another always go together; elsewhere they
would not. Hard: nothing is at hand that would tell them apart, and latents are judged from these texts and the model's
own weights. Relaxed: a few labelled texts where the properties differ may be used to judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.circuits.nodes import AbstractNodes
from sparsight.circuits.shift.biographies import LabelledTexts
from sparsight.circuits.shift.classifier import Classifier
from sparsight.circuits.shift.effects import attribute
from sparsight.circuits.shift.judges import Judgement
from sparsight.dictionaries import AbstractDictionary
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


@dataclass(frozen=True, eq=False)
class Bed:
    """A planted benchmark: two properties in superposition with others, always together on the texts at hand.

    Attributes:
        directions: Unit directions of all properties; row 0 is the intended one, row 1 the other.
        at_hand: Activations where the two always go together.
        broad: Activations where all properties are independent: what a general dictionary is trained on.
        heads: Linear classifiers with equal outputs at hand, one row each.
        intended: Whether each goes by the intended property.
        deciding, deciding_labels: Few activations where the two differ, and which of the two is present (0, 1).
    """

    directions: Float[Tensor, "p d"]
    at_hand: Float[Tensor, "n d"]
    broad: Float[Tensor, "m d"]
    heads: Float[Tensor, "c d"]
    intended: list[bool]
    deciding: Float[Tensor, "k d"]
    deciding_labels: Int64[Tensor, " k"]


def planted_bed(
    seed: int, *, d: int = 24, n_properties: int = 32, n: int = 2000, n_broad: int = 20_000, n_heads: int = 8
) -> Bed:
    """Draw a bed: activations are sums of about three of `n_properties` directions, more than `d`, with weights 1 to 2.

    The first two directions span a plane that no other direction reaches into. A head reads `1 - e` of one of them and
    `e` of the other, `e` below 0.3, and nothing else: where both are present with one weight, all heads agree exactly.

    Args:
        seed: Of everything.
        d, n_properties, n, n_broad, n_heads: Sizes; half of the heads go by each property.
    """
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_properties, d, generator=g)
    plane = torch.linalg.qr(directions[:2].T).Q
    directions[2:] -= directions[2:] @ plane @ plane.T
    directions = torch.nn.functional.normalize(directions, dim=1)

    def weights(rows: int) -> Tensor:
        active = torch.rand(rows, n_properties, generator=g) < 3 / n_properties
        return active * (1 + torch.rand(rows, n_properties, generator=g))

    at_hand, broad, deciding = weights(n), weights(n_broad), weights(64)
    at_hand[:, :2] = (torch.rand(n, 1, generator=g) < 0.5) * (1 + torch.rand(n, 1, generator=g))
    labels = torch.arange(64) % 2
    deciding[:, :2] = torch.nn.functional.one_hot(labels, 2) * (1 + torch.rand(64, 1, generator=g))
    duals = torch.linalg.pinv(directions[:2]).T
    intended = [i % 2 == 0 for i in range(n_heads)]
    part = 0.3 * torch.rand(n_heads, 1, generator=g)
    part = torch.where(torch.tensor(intended)[:, None], part, 1 - part)
    heads = (1 - part) * duals[0] + part * duals[1]
    return Bed(directions, at_hand @ directions, broad @ directions, heads, intended, deciding @ directions, labels)


def head_effects(dictionary: AbstractDictionary, heads: Float[Tensor, "c d"], x: Float[Tensor, "n d"]) -> Tensor:
    """Mean absolute effect of each latent on each linear head: `mean |z_j| |atom_j . w|`, exact as heads are linear."""
    with torch.no_grad():
        values = dictionary.encode(x).to_dense().abs().double().mean(dim=0)
        return (heads.double() @ dictionary.atoms.double().T).abs() * values


def judge_latents(
    dictionary: AbstractDictionary, bed: Bed, how: Literal["hard", "relaxed"], *, margin: float = 0.2
) -> Int64[Tensor, " n_latents"]:
    """Verdicts on the latents of a planted bed, without a look at any head.

    Args:
        dictionary: Whose latents.
        bed: What is at hand.
        how: "hard": by the cosines of a latent's atom with the model's own directions of the two properties, which
            stand for its words. "relaxed": by its mean on the few deciding activations of either kind.
        margin: Relative difference below which a latent is unclear.
    """
    with torch.no_grad():
        if how == "hard":
            two = (dictionary.atoms @ bed.directions[:2].T).clamp_min(0).T
        else:
            values = dictionary.encode(bed.deciding).to_dense()
            two = torch.stack([values[bed.deciding_labels == c].mean(dim=0) for c in (0, 1)])
    gap = (two[0] - two[1]) / two.sum(dim=0).clamp_min(1e-12)
    strong = two.amax(dim=0) > (0.5 if how == "hard" else 0.05 * float(two.max()))
    verdicts = torch.zeros(len(gap), dtype=torch.int64)
    verdicts[strong & (gap > margin)] = INTENDED
    verdicts[strong & (gap < -margin)] = UNINTENDED
    return verdicts
