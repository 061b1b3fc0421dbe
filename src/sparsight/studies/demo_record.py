"""What a demo leaves behind, and what it is meant to show."""

from typing import Any, Literal

from sparsight.evaluation import Comparison, Evaluation, FeatureTable
from sparsight.evaluation.record import Record
from sparsight.studies.questions import asked_of

ENOUGH = 20  # held-out tokens of a class, below which its AUROC says little


class Claim(Record):
    """Something the demo is meant to show, and whether this run shows it."""

    text: str
    value: float
    holds: bool


class DemoRecord(Record):
    """What a demo leaves in `results.json`."""

    schema_version: Literal[1] = 1
    settings: dict[str, Any]
    seconds: dict[str, float]
    evaluations: dict[str, Evaluation]
    comparison: Comparison
    features: dict[str, FeatureTable]
    claims: list[Claim]


def claims_of(
    evaluations: dict[str, Evaluation], comparison: Comparison, features: dict[str, FeatureTable]
) -> list[Claim]:
    """What the demo is meant to show, held against what was measured."""
    claims = []
    for name, e in evaluations.items():
        claims.append(_at_most(f"{name}: FVU at most 0.10 at L0 {e.l0.mean.value:.1f}", e.fvu.value, 0.10))
        claims.append(_at_most(f"{name}: fewer than 10 % dead latents", e.density.dead_fraction, 0.10))
        if e.loss is not None and e.loss.fraction_of_mean is not None:
            share = e.loss.fraction_of_mean.value
            claims.append(_at_most(f"{name}: loss added at most 5 % of that of mean ablation", share, 0.05))
    fvu = {(arm.arm, arm.k): arm.fvu.value for arm in comparison.arms}
    for better, worse in (("pursuit", "refit"), ("refit", "encoder")):
        gap = fvu[better, 16] - fvu[worse, 16]
        claims.append(_at_most(f"at L0 16, FVU of {better} minus that of {worse} is below 0", gap, 0.0))
    for name, table in features.items():
        told = {asked_of(row.feature) for row in table.rows if row.auroc >= 0.95 and row.n_positive >= ENOUGH}
        text = f"{name}: at least 8 features with a latent of AUROC 0.95 or more for a class ({ENOUGH} held-out tokens)"
        claims.append(Claim(text=text, value=len(told), holds=len(told) >= 8))
    return claims


def _at_most(text: str, value: float, bound: float) -> Claim:
    return Claim(text=text, value=value, holds=value <= bound)
