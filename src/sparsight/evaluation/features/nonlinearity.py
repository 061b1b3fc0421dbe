"""A linear probe beside an MLP at one site: what does the MLP add, and is that less than a bound, or more?

The linear probe is given its best chance: logistic regression, fitted until it converges, with the penalty that does
best on the choosing documents. What an MLP adds is counted on documents that neither has seen, with an interval over
documents, and judged against a bound that was set beforehand:

    linear       the interval lies wholly at or below the bound,
    not linear   it lies wholly above,
    undecided    the bound is inside it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from sparsight.evaluation.features.labelled import Examples, Part
from sparsight.evaluation.features.probes import LinearProbe, Probe, logistic, mlp
from sparsight.evaluation.features.scores import Resampling, balanced_accuracy, difference, hits
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.record import Estimate

BOUND = 0.02
"""Balanced accuracy that an MLP may add to a linear probe where a feature is linear."""

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Inverse penalties of logistic regression that are tried, the strongest penalty first."""

N_STEPS = 800
"""Of the MLP, where what it adds decides."""

Verdict = Literal["linear", "not linear", "undecided"]

Sides = tuple[Tensor, Tensor, Tensor]
"""Activations of the examples to fit on, to choose on and to judge on."""


class SiteLinearity(Record):
    """A linear probe and an MLP at one site.

    Attributes:
        site: Where.
        linear, mlp: Balanced accuracy of logistic regression and of the MLP on held-out documents.
        gain: MLP minus linear, the same documents drawn for both.
        strength: Inverse penalty of the logistic regression, chosen on the choosing documents.
        n_fit: Tokens that both were fitted on.
        verdict: "linear" where the interval of `gain` lies at or below 0.02, "not linear" where it lies above,
            "undecided" where 0.02 is inside.
    """

    site: str
    linear: Estimate
    mlp: Estimate
    gain: Estimate
    strength: float
    n_fit: int
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Compared:
    """Both probes at one site, with what they answer on the examples to judge on."""

    record: SiteLinearity
    linear: Int64[Tensor, " m"]
    mlp: Int64[Tensor, " m"]


def chosen_logistic(xs: Sides, e: Examples) -> tuple[LinearProbe, float]:
    """Logistic regression with the penalty that does best on the choosing documents, and its inverse penalty.

    Of penalties that do equally well the strongest is taken.
    """
    best: tuple[float, LinearProbe, float] | None = None
    for strength in STRENGTHS:
        probe = logistic(xs[0], e.fit.y, e.n_classes, strength=strength)
        reached = accuracy(answers(probe, xs[1]), e.choose, e.n_classes)
        if best is None or reached > best[0]:
            best = (reached, probe, strength)
    assert best is not None
    return best[1], best[2]


def compare(site: str, xs: Sides, e: Examples, resampling: Resampling, *, seed: int) -> Compared:
    """Fit both at a site.

    Args:
        site: Its name.
        xs: Activations there.
        e: The examples.
        resampling: Of the intervals.
        seed: Of the MLP.
    """
    linear, strength = chosen_logistic(xs, e)
    network = mlp(xs[0], e.fit.y, e.n_classes, n_steps=N_STEPS, seed=seed)
    return compared(site, answers(linear, xs[2]), answers(network, xs[2]), strength, e, resampling)


def compared(
    site: str,
    linear: Int64[Tensor, " m"],
    network: Int64[Tensor, " m"],
    strength: float,
    e: Examples,
    resampling: Resampling,
) -> Compared:
    """From the answers of both on the examples to judge on."""
    first, second = (told(a, e.judge, e.n_classes) for a in (linear, network))
    gain = difference(second, first, resampling)
    record = SiteLinearity(
        site=site,
        linear=resampling.of(first, balanced_accuracy),
        mlp=resampling.of(second, balanced_accuracy),
        gain=gain,
        strength=strength,
        n_fit=len(e.fit),
        verdict=verdict_of(gain),
    )
    return Compared(record, linear, network)


def verdict_of(gain: Estimate) -> Verdict:
    """What a gain with its interval says; without an interval the value decides."""
    if high(gain) <= BOUND:
        return "linear"
    return "not linear" if low(gain) > BOUND else "undecided"


def low(estimate: Estimate) -> float:
    """Lower end, or the value where there is no interval."""
    return estimate.low if estimate.low is not None else estimate.value


def high(estimate: Estimate) -> float:
    """Upper end, or the value where there is no interval."""
    return estimate.high if estimate.high is not None else estimate.value


def answers(probe: Probe, x: Tensor) -> Int64[Tensor, " m"]:
    """The class that scores highest at each row."""
    return probe.scores(x).argmax(dim=1)


def told(found: Int64[Tensor, " m"], part: Part, n_classes: int) -> Float64[Tensor, "documents k"]:
    """Hits by document."""
    return hits(found, part.y, part.document_ids, n_classes)


def accuracy(found: Int64[Tensor, " m"], part: Part, n_classes: int) -> float:
    """Balanced accuracy of answers, without an interval."""
    return float(torch.as_tensor(balanced_accuracy(told(found, part, n_classes).sum(dim=0))))
