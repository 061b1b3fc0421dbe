"""Runs of one stream held against the published loss at the L0 that each of them reached."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sparsight.evaluation.record import estimate
from sparsight.studies.deciding import effect_of, mean_effect, n_needed, side
from sparsight.studies.gated_loss_trained import PUBLISHED, RELU, frontier_names
from sparsight.studies.record import UNDECIDED, Effect

MARGIN = 0.02  # a smaller share of the FVU does not count
MISSED = 0.2  # an L0 further off its target than this, relative, was not reached

Run = dict[str, Any]  # what `measured` returns: one seed


def fvu(run: Run, name: str) -> float:
    """Fraction of variance unexplained of one arm."""
    return float(sum(run["arms"][name]["error"]) / sum(run["energy"]))


def l0(run: Run, name: str) -> float:
    """Mean number of active latents of one arm on rows not trained on."""
    return float(run["arms"][name]["l0"])


def place(value: float, points: Sequence[float]) -> tuple[int, int, float] | None:
    """The two neighbours of a value among positive points, and the weight of the second, in logarithms.

    None where the value lies outside.
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    for low, high in pairwise(order):
        if points[low] <= value <= points[high]:
            width = math.log(points[high] / points[low])
            return low, high, 0.0 if width == 0 else math.log(value / points[low]) / width
    return None


def excess(run: Run, name: str) -> float | None:
    """FVU of an arm over that of the published loss at the same L0, less 1; None beyond the published frontier.

    The published FVU at that L0 is interpolated between its own arms, FVU and L0 in logarithms.
    """
    reference = frontier_names(PUBLISHED)
    found = place(l0(run, name), [l0(run, arm) for arm in reference])
    if found is None:
        return None
    low, high, weight = found
    log_fvu = (1 - weight) * math.log(fvu(run, reference[low])) + weight * math.log(fvu(run, reference[high]))
    return fvu(run, name) / math.exp(log_fvu) - 1


def share_of_latents(run: Run) -> float | None:
    """L0 at which the published loss has ReLU's FVU, over ReLU's L0; None beyond the published frontier."""
    reference = frontier_names(PUBLISHED)
    found = place(fvu(run, RELU), [fvu(run, arm) for arm in reference])
    if found is None:
        return None
    low, high, weight = found
    log_l0 = (1 - weight) * math.log(l0(run, reference[low])) + weight * math.log(l0(run, reference[high]))
    return math.exp(log_l0) / l0(run, RELU)


def excess_effects(data: dict[str, list[Run]], name: str) -> list[Effect]:
    """Excess of an arm over seeds, and over documents where rows have such, on each kind of data.

    Where some seed ends beyond the published frontier, the share of such seeds stands in their place: an L0 that cannot
    be had counts as an excess.
    """
    effects = []
    for where, runs in data.items():
        values = [excess(run, name) for run in runs]
        known = [v for v in values if v is not None]
        if len(known) < len(values):
            lost = 1 - len(known) / len(values)
            effects.append(Effect(name=f"{name}, {where}: beyond the frontier", value=lost, n=len(runs),
                                  unit="share of seeds"))  # fmt: skip
            continue
        effects.append(mean_effect(known, f"{name}, {where}", "excess FVU at equal L0, over seeds"))
        if len(runs[0]["energy"]) > 1:
            effects.append(_over_documents(runs, name, where))
    return effects


def missed(runs: list[Run], name: str, target: float) -> float:
    """Share of the seeds whose L0 is off the target."""
    return sum(abs(l0(run, name) / target - 1) > MISSED for run in runs) / len(runs)


def beyond(effects: Sequence[Effect], threshold: float, *, wanted: int) -> str:
    """Whether effects lie beyond a threshold: "yes" if all do on the wanted side, "no" if all do on the other.

    Effects of one name are intervals of one quantity, over seeds and over documents, and must agree. "depends on the
    data" takes one quantity on either side.
    """
    sides: dict[str, set[int]] = {}
    for effect in effects:
        sides.setdefault(effect.name, set()).add(side(_shifted(effect, threshold)))
    agreed = {found.pop() if len(found) == 1 else 0 for found in sides.values()}
    if agreed == {wanted}:
        return "yes"
    if agreed == {-wanted}:
        return "no"
    return "depends on the data" if {-1, 1} <= agreed else UNDECIDED


def better_weight(by_weight: dict[float, list[Effect]]) -> str:
    """ "yes" if some weight leaves less variance everywhere, "no" if none does anywhere; by the margin.

    "depends on the data" if one does on some data and every weight is shown not to on others.
    """
    sides = {w: [side(_shifted(effect, -MARGIN)) for effect in effects] for w, effects in by_weight.items()}
    if any(set(found) == {-1} for found in sides.values()):
        return "yes"
    by_effect = list(zip(*sides.values(), strict=True))
    nowhere = [all(s == 1 for s in found) for found in by_effect]
    if all(nowhere):
        return "no"
    somewhere = [any(s == -1 for s in found) for found in by_effect]
    return "depends on the data" if any(nowhere) and any(somewhere) else UNDECIDED


def note(effects: Sequence[Effect], threshold: float) -> str:
    """What would change an answer that was read off a threshold."""
    shifted = [_shifted(effect, threshold) for effect in effects]
    open_ones = [(e, n_needed(s)) for e, s in zip(effects, shifted, strict=True) if side(s) == 0]
    if open_ones:
        return "; ".join(
            f"{e.name} ({e.unit}): "
            + (
                f"its value is the threshold of {threshold:.0%}"
                if n is None
                else f"about {n:,} units instead of {e.n:,} would bring its interval off {threshold:.0%}"
            )
            for e, n in open_ones
        ) + "."  # fmt: skip
    gaps = [min(abs(s.value if s.low is None else s.low), abs(s.value if s.high is None else s.high)) for s in shifted]
    nearest = min(range(len(effects)), key=lambda i: gaps[i])
    return (
        f"The interval nearest to {threshold:.0%} is that of {effects[nearest].name} ({effects[nearest].unit}), "
        f"{gaps[nearest]:.2g} away."
    )


def _shifted(effect: Effect, by: float) -> Effect:
    ends = {} if effect.low is None or effect.high is None else {"low": effect.low - by, "high": effect.high - by}
    return effect.model_copy(update={"value": effect.value - by, **ends})


def _over_documents(runs: list[Run], name: str, where: str) -> Effect:
    """The mean excess over seeds, with an interval over documents that all seeds share."""
    reference = frontier_names(PUBLISHED)
    columns, weights = [], []
    for run in runs:
        found = place(l0(run, name), [l0(run, arm) for arm in reference])
        assert found is not None
        low, high, weight = found
        columns += [run["arms"][arm]["error"] for arm in (name, reference[low], reference[high])]
        weights.append(weight)
    sums = torch.tensor(columns, dtype=torch.float64).T
    statistic = partial(_mean_excess, torch.tensor(weights, dtype=torch.float64))
    found_estimate = estimate(sums, statistic, n_resamples=1000, level=0.95, seed=0)
    return effect_of(found_estimate, f"{name}, {where}", len(sums), "excess FVU at equal L0, over documents")


def _mean_excess(weights: Tensor, sums: Tensor) -> Tensor:
    """From sums of three errors for each seed: variant, lower and upper neighbour."""
    logs = sums.reshape(*sums.shape[:-1], -1, 3).log()
    reference = (1 - weights) * logs[..., 1] + weights * logs[..., 2]
    mean: Tensor = ((logs[..., 0] - reference).exp() - 1).mean(dim=-1)
    return mean
