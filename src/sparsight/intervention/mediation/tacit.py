"""Explicit or tacit: a variable that can be decoded, and one that the network uses."""

from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.frozen_record import Record
from sparsight.intervention.difference import logistic_direction
from sparsight.intervention.direction import orthonormal
from sparsight.intervention.mediation import measure as m
from sparsight.intervention.mediation.battery import random_subspaces
from sparsight.intervention.mediation.readout import Readout
from sparsight.intervention.mediation.record import ENOUGH

DECODABLE = 0.8
"""AUROC from which a variable counts as decodable."""


class Format(Record):
    """Whether a variable is represented, and used.

    Attributes:
        decodable: Held-out AUROC of a linear probe.
        control: The same for shuffled labels: what a probe finds in anything.
        mediated: Mediated fraction of the subspace of `rank` dimensions that carries most, with its interval.
        random: 95 % quantile of random subspaces of that rank.
        rank: Dimensions of the subspace: the probe's direction, the difference in means, and what greedily adds most.
        verdict: "explicit": decodable and used; "decodable, not used": tacit, or without consequence; "explicit in
            another format": used but not linearly decodable; "absent here": neither.
    """

    decodable: float
    control: float
    mediated: m.Effect
    random: float
    rank: int
    verdict: Literal["explicit", "decodable, not used", "explicit in another format", "absent here"]


def explicit_or_tacit(
    readout: Readout, labels: Int64[Tensor, " n"], *, n_pairs: int = 200, rank: int = 2, seed: int = 0
) -> Format:
    """Decodable x mediating, for one binary variable at one place.

    Half of the inputs fit the probe and the direction, the other half judge both. The table says something about an
    implementation, never about a task: two networks with the same outputs may differ.

    Args:
        readout: Inputs with activations, and the behaviour the variable should bear on.
        labels: Its value, 0 or 1.
        n_pairs: Pairs for the interchange.
        rank: Dimensions granted to the variable: 1 the probe's direction, 2 also the difference in means.
        seed: Of the split, the pairs and the shuffles.
    Raises:
        UndefinedMetric: a class is missing in either half.
    """
    if rank not in (1, 2):
        raise ValueError(f"rank must be 1 or 2, got {rank}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    fit, held = order[: len(order) // 2], order[len(order) // 2 :]
    x = readout.x.double()
    for part in (fit, held):
        if len(torch.unique(labels[part])) < 2:
            raise UndefinedMetric("each half of the inputs needs both classes; give more inputs")
    probe = logistic_direction(x[fit][labels[fit] == 1], x[fit][labels[fit] == 0])
    score = _auroc(x[held] @ probe.vector.to(x), labels[held])
    shuffled = labels[fit][torch.randperm(len(fit), generator=generator)]
    fake = logistic_direction(x[fit][shuffled == 1], x[fit][shuffled == 0])
    control = _auroc(x[held] @ fake.vector.to(x), labels[held])
    difference = x[fit][labels[fit] == 1].mean(dim=0) - x[fit][labels[fit] == 0].mean(dim=0)
    rows = [probe.vector.to(x)]
    left = difference - (difference @ rows[0]) * rows[0]
    if rank == 2 and float(left.norm()) > 1e-6 * float(difference.norm()):
        rows.append(left)
    basis = orthonormal(torch.stack(rows)).to(x)
    only_held = torch.full_like(labels, -1)
    only_held[held] = labels[held]
    # The whole swap may do nothing at all where the place is not read: then nothing is mediated here.
    try:
        pairs = m.draw_pairs(readout, only_held, n_pairs, seed)
        mediated = m.fraction_mediated(readout, pairs, basis, seed=seed)
        random = [m.share_mediated(readout, pairs, r) for r in random_subspaces(x, len(basis), 40, seed + 1)]
        quantile = float(torch.tensor(random, dtype=torch.float64).quantile(0.95))
    except UndefinedMetric:
        mediated, quantile = m.Effect(value=0.0, low=0.0, high=0.0, n=n_pairs), 0.0
    decodable = score >= DECODABLE and score > control + 0.1
    used = mediated.low >= ENOUGH and mediated.low > quantile
    verdict: Literal["explicit", "decodable, not used", "explicit in another format", "absent here"]
    if decodable:
        verdict = "explicit" if used else "decodable, not used"
    else:
        verdict = "explicit in another format" if used else "absent here"
    return Format(
        decodable=score, control=control, mediated=mediated, random=quantile, rank=len(basis), verdict=verdict
    )


def _auroc(scores: Tensor, labels: Tensor) -> float:
    """Share of pairs of unlike class in the right order, ties counted half; at least 1/2 by choice of sign."""
    value = _area(scores, labels)
    return max(value, 1 - value)


def _area(scores: Tensor, labels: Tensor) -> float:
    positive, negative = scores[labels == 1], scores[labels == 0]
    above = (positive[:, None] > negative[None, :]).double().mean()
    equal = (positive[:, None] == negative[None, :]).double().mean()
    return float(above + equal / 2)
