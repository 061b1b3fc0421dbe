"""Linear within the classes of another feature: a direction of its own in each, which no one direction is.

Where an MLP beats a linear probe, the classes may still lie along directions that differ from one kind of text to the
next: then a linear probe for each kind is as good as the MLP for all. Exclusive or is the extreme case: no linear probe
beats chance, and within each class of one of its bits one is perfect.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.labelled import Documents, Labelled, Part, examples_of
from sparsight.evaluation.features.probes import Probe, discriminant, logistic, mlp
from sparsight.evaluation.features.scores import Resampling, balanced_accuracy, difference, hits
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.reading import StoredActivations
from sparsight.evaluation.record import Estimate
from sparsight.models import Site

SIZES = (6000, 1500, 2400)
"""Tokens to fit on, to choose on, to judge on: more than elsewhere, since each kind of text has its own probe."""

MOST_KINDS = 16
_DEFINED = 0.95  # share of the tokens that must carry the other feature
_LEAST = 3  # times as many tokens as classes, for a kind of text to get a probe of its own
_STEPS = 800


class WithinRecord(Record):
    """Linear probes of a feature within the classes of another one, beside probes of all tokens.

    Attributes:
        given: The other feature, chosen on the choosing documents among all that are defined at these tokens.
        pooled, within, mlp: Balanced accuracy of one logistic probe, of one for each class of `given`, of one MLP.
        gain: Within minus pooled.
        nonlinearity: MLP minus within: what is left that no linear probe within the classes tells.
        n_fit: Tokens fitted on.
    """

    given: str
    pooled: Estimate
    within: Estimate
    mlp: Estimate
    gain: Estimate
    nonlinearity: Estimate
    n_fit: int


def linear_within(
    store: StoredActivations,
    site: Site,
    feature: Labelled,
    others: Sequence[Labelled],
    documents: Documents,
    resampling: Resampling,
    *,
    sizes: tuple[int, int, int] = SIZES,
    seed: int = 0,
) -> WithinRecord:
    """Find the feature within whose classes this one is told best by linear probes, and judge it there.

    Args:
        store: Whole.
        site: Where.
        feature: To be told.
        others: Features to look within; those with more than 16 classes, or undefined at some tokens, are passed over.
        documents: Which rows are on which side.
        resampling: Of the intervals.
        sizes: Most tokens to fit on, to choose on, to judge on.
        seed: Of the draw and of the MLP.
    Raises:
        UndefinedMetric: no other feature is defined at these tokens.
    """
    e = examples_of(feature, documents, sizes=sizes, seed=seed)
    n = e.n_classes
    xs = [store.rows(site, part.rows) for part in (e.fit, e.choose, e.judge)]
    rows = torch.cat([e.fit.rows, e.choose.rows, e.judge.rows])
    usable = [
        other
        for other in others
        if other.name != feature.name
        and 2 <= len(other.classes) <= MOST_KINDS
        and float((other.labels[rows] >= 0).double().mean()) >= _DEFINED
    ]
    if not usable:
        raise UndefinedMetric("no other feature is defined at these tokens: there is none to look within")

    def told(fit: Fit, within: Labelled | None, part: Part, x: Tensor) -> Int64[Tensor, " m"]:
        return _told(fit, n, (xs[0], e.fit), (x, part), within)

    def choosing(other: Labelled) -> float:
        answers = told(discriminant, other, e.choose, xs[1])
        return float(balanced_accuracy(hits(answers, e.choose.y, e.choose.document_ids, n).sum(dim=0)))

    best = max(usable, key=choosing)
    judge = e.judge
    network = mlp(xs[0], e.fit.y, n, n_steps=_STEPS, seed=seed).scores(xs[2]).argmax(dim=1)
    answers = (told(logistic, None, judge, xs[2]), told(logistic, best, judge, xs[2]), network)
    pooled, within, deep = (hits(a, judge.y, judge.document_ids, n) for a in answers)
    return WithinRecord(
        given=best.name,
        pooled=resampling.of(pooled, balanced_accuracy),
        within=resampling.of(within, balanced_accuracy),
        mlp=resampling.of(deep, balanced_accuracy),
        gain=difference(within, pooled, resampling),
        nonlinearity=difference(deep, within, resampling),
        n_fit=len(e.fit),
    )


Fit = Callable[[Tensor, Tensor, int], Probe]


def _told(
    fit: Fit, n_classes: int, train: tuple[Tensor, Part], test: tuple[Tensor, Part], within: Labelled | None
) -> Int64[Tensor, " m"]:
    """Answers of one probe, or of one for each class of `within`.

    A class of `within` in which some class has too few tokens keeps the probe of all tokens: it must not win by telling
    which classes are there.
    """
    (x, part), (test_x, test_part) = train, test
    found = fit(x, part.y, n_classes).scores(test_x).argmax(dim=1)
    if within is None:
        return found
    kinds, test_kinds = within.labels[part.rows], within.labels[test_part.rows]
    for kind in range(len(within.classes)):
        mine, asked = kinds == kind, test_kinds == kind
        if _enough(part.y[mine], n_classes) and bool(asked.any()):
            found[asked] = fit(x[mine], part.y[mine], n_classes).scores(test_x[asked]).argmax(dim=1)
    return found


def _enough(y: Int64[Tensor, " n"], n_classes: int) -> bool:
    counts: Bool[Tensor, " c"] = torch.bincount(y, minlength=n_classes) >= _LEAST * n_classes
    return bool(counts.all())
