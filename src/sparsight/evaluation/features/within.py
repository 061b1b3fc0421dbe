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
from sparsight.evaluation.features.class_means import ClassMeans, shared_between_strata
from sparsight.evaluation.features.labelled import Examples, Labelled, Part
from sparsight.evaluation.features.nonlinearity import (
    BOUND,
    STRENGTHS,
    Compared,
    Sides,
    accuracy,
    answers,
    high,
    low,
    told,
)
from sparsight.evaluation.features.probes import Probe, discriminant, logistic
from sparsight.evaluation.features.scores import Resampling, balanced_accuracy, difference
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.record import Estimate

MOST_KINDS = 16
_DEFINED = 0.95  # share of the tokens that must carry the other feature
_LEAST = 3  # times as many tokens as classes, for a kind of text to get a probe of its own


class KindLinearity(Record):
    """One class of the other feature.

    Attributes:
        kind: Its name.
        pooled, within, mlp: Balanced accuracy there, as in `WithinRecord`, over the classes that occur.
        nonlinearity: MLP minus within.
        own: Whether it has a probe of its own; else it keeps that of all tokens.
        n_judge: Tokens judged on.
    """

    kind: str
    pooled: float
    within: float
    mlp: float
    nonlinearity: Estimate
    own: bool
    n_judge: int


class WithinRecord(Record):
    """Linear probes of a feature within the classes of another one, beside probes of all tokens.

    Attributes:
        given: The other feature, chosen on the choosing documents among all that are defined at these tokens.
        linear: Whether within beats pooled, what the MLP adds to within is at most 0.02, both beyond their intervals,
            and in no kind the MLP adds more than that beyond its interval.
        pooled, within, mlp: Balanced accuracy of one logistic probe, of one for each class of `given`, of one MLP.
        gain: Within minus pooled.
        nonlinearity: MLP minus within: what is left that no linear probe within the classes tells.
        shared: Agreement of the arrangement of class means between kinds: 1 is one arrangement, 0 unrelated ones, below
            0 opposite ones; null where none is reproducible.
        strength: Inverse penalty of the probes of single kinds, chosen on the choosing documents.
        kinds: Each by itself.
    """

    given: str
    linear: bool
    pooled: Estimate
    within: Estimate
    mlp: Estimate
    gain: Estimate
    nonlinearity: Estimate
    shared: float | None
    strength: float
    kinds: list[KindLinearity]


def linear_within(
    xs: Sides, e: Examples, others: Sequence[Labelled], pooled: Compared, resampling: Resampling
) -> WithinRecord:
    """Find the feature within whose classes this one is told best by linear probes, and judge it there.

    Args:
        xs: Activations at the examples.
        e: Examples of the feature to be told.
        others: Features to look within; those with more than 16 classes, or undefined at some tokens, are passed over.
        pooled: A linear probe and an MLP of all tokens.
        resampling: Of the intervals.
    Raises:
        UndefinedMetric: no other feature is defined at these tokens.
    """
    n, judge = e.n_classes, e.judge
    rows = torch.cat([e.fit.rows, e.choose.rows, e.judge.rows])
    usable = [
        other
        for other in others
        if other.name != e.feature.name
        and 2 <= len(other.classes) <= MOST_KINDS
        and float((other.labels[rows] >= 0).double().mean()) >= _DEFINED
    ]
    if not usable:
        raise UndefinedMetric("no other feature is defined at these tokens: there is none to look within")
    everywhere = discriminant(xs[0], e.fit.y, n)

    def choosing(other: Labelled) -> float:
        found = _told(discriminant, xs, e, answers(everywhere, xs[1]), (xs[1], e.choose), other)
        return accuracy(found, e.choose, n)

    best = max(usable, key=choosing)
    strength = _strength(xs, e, best)
    own = _told(_logistic(strength), xs, e, pooled.linear, (xs[2], judge), best)
    first, second, deep = (told(a, judge, n) for a in (pooled.linear, own, pooled.mlp))
    gain, left = difference(second, first, resampling), difference(deep, second, resampling)
    kinds = _kinds(best, e, own, pooled, resampling)
    return WithinRecord(
        given=best.name,
        linear=linear_in_each(gain, left, [k.nonlinearity for k in kinds]),
        pooled=pooled.record.linear,
        within=resampling.of(second, balanced_accuracy),
        mlp=pooled.record.mlp,
        gain=gain,
        nonlinearity=left,
        shared=_shared(xs, e, best),
        strength=strength,
        kinds=kinds,
    )


def linear_in_each(gain: Estimate, left: Estimate, of_kinds: Sequence[Estimate]) -> bool:
    """Whether probes of single kinds win, leave the MLP no more than the bound, and in no kind more beyond doubt."""
    return low(gain) > 0 and high(left) <= BOUND and all(low(kind) <= BOUND for kind in of_kinds)


Fit = Callable[[Tensor, Tensor, int], Probe]


def _logistic(strength: float) -> Fit:
    return lambda x, y, n: logistic(x, y, n, strength=strength)


def _told(
    fit: Fit,
    xs: Sides,
    e: Examples,
    pooled: Int64[Tensor, " m"],
    test: tuple[Tensor, Part],
    within: Labelled,
) -> Int64[Tensor, " m"]:
    """Answers of one probe for each class of `within`.

    A class of `within` in which some class has too few tokens keeps the answers of the probe of all tokens: it must not
    win by telling which classes are there.
    """
    found, (x, part) = pooled.clone(), test
    kinds, asked = within.labels[e.fit.rows], within.labels[part.rows]
    for kind in range(len(within.classes)):
        mine, here = kinds == kind, asked == kind
        if _enough(e.fit.y[mine], e.n_classes) and bool(here.any()):
            found[here] = answers(fit(xs[0][mine], e.fit.y[mine], e.n_classes), x[here])
    return found


def _strength(xs: Sides, e: Examples, within: Labelled) -> float:
    """The inverse penalty that does best on the choosing documents, the same for all kinds."""
    none = torch.zeros_like(e.choose.y)

    def reached(strength: float) -> float:
        return accuracy(_told(_logistic(strength), xs, e, none, (xs[1], e.choose), within), e.choose, e.n_classes)

    return max(STRENGTHS, key=reached)


def _kinds(
    within: Labelled, e: Examples, own: Int64[Tensor, " m"], pooled: Compared, resampling: Resampling
) -> list[KindLinearity]:
    """Each kind that is judged on, by itself."""
    n, judge, found = e.n_classes, e.judge, []
    fitted, asked = within.labels[e.fit.rows], within.labels[judge.rows]
    for kind, name in enumerate(within.classes):
        here = asked == kind
        if not bool(here.any()):
            continue
        part = Part(*(v[here] for v in (judge.rows, judge.y, judge.document_ids, judge.token_ids, judge.strata)))
        line, deep = told(own[here], part, n), told(pooled.mlp[here], part, n)
        found.append(
            KindLinearity(
                kind=name,
                pooled=accuracy(pooled.linear[here], part, n),
                within=float(balanced_accuracy(line.sum(dim=0))),
                mlp=float(balanced_accuracy(deep.sum(dim=0))),
                nonlinearity=difference(deep, line, resampling),
                own=_enough(e.fit.y[fitted == kind], n),
                n_judge=len(part),
            )
        )
    return found


def _shared(xs: Sides, e: Examples, within: Labelled) -> float | None:
    """Agreement of the class means of different kinds, from different documents."""
    means = []
    for x, part in ((xs[0], e.fit), (xs[2], e.judge)):
        kinds = within.labels[part.rows]
        there = kinds >= 0
        means.append(ClassMeans.of(x[there], part.y[there], kinds[there], e.n_classes, len(within.classes)))
    return shared_between_strata(means[0], means[1])


def _enough(y: Int64[Tensor, " n"], n_classes: int) -> bool:
    counts: Bool[Tensor, " c"] = torch.bincount(y, minlength=n_classes) >= _LEAST * n_classes
    return bool(counts.all())
