"""What would "nearly singular" mean, does it show, and why do Gaussian posteriors fail?"""

import math
from functools import partial
from typing import Any

from sparsight.studies.deciding import side
from sparsight.studies.nearly_singular_measured import (
    GAUSSIAN_BETAS,
    POINTS,
    REGRESSIONS,
    SLOPES,
    STRENGTHS,
    Plan,
    crossing_curve,
    gaussian_rows,
    near_curve,
    regression_curve,
    short_runs,
    strength_curve,
    tanh_points,
)
from sparsight.studies.nearly_singular_shown import (
    crossing_table,
    gaussian_table,
    near_table,
    panels,
    regression_table,
    strength_table,
    tanh_table,
)
from sparsight.studies.record import UNDECIDED, Effect, Findings, Verdict
from sparsight.studies.work import Work

FULL = Plan(n_chains=512, effort=1.0)
FAST = Plan(n_chains=256, effort=0.06)

MIDDLE = 0.375  # between 1/4, of w^4, and 1/2, of w^2
MIDDLE_OF_NETWORK = 3.25  # between 2, where the truth is 0, and 4.5, where it is not
FAILS = 0.1  # nats of divergence
AT = 1e4  # n beta at which Gaussians are judged

Rows = list[dict[str, Any]]


def run(work: Work) -> Findings:
    """Curves over temperatures beside exact ones; points of a small network; Gaussians in the posterior's place."""
    plan = FAST if work.options.fast else FULL
    seed = 1000 * work.options.seed
    names = list(POINTS)
    measured: dict[str, Any] = {
        "near": {(a, s): work.part(f"near-{a}-{s}", partial(near_curve, a, s, plan, seed + 100 * i))
                 for i, a in enumerate(SLOPES) for s in ("mala", "sgld")},
        "crossing": {s: work.part(f"crossing-{s}", partial(crossing_curve, s, plan, seed + 300))
                     for s in ("mala", "sgld")},
        "tanh": {name: work.part(f"tanh-{i}", partial(tanh_points, name, plan, seed + 400 + 10 * i))
                 for i, name in enumerate(names)},
        "regression": {sizes: work.part(f"regression-{i}", partial(regression_curve, sizes, plan, seed + 500 + 10 * i))
                       for i, sizes in enumerate(REGRESSIONS)},
        "strengths": {s: work.part(f"strength-{s}", partial(strength_curve, s, plan, seed + 600 + 10 * i))
                      for i, s in enumerate(STRENGTHS)},
        "gaussian": work.part("gaussian", gaussian_rows),
        "short": {"short": work.part("short", partial(short_runs, plan, seed + 700))},
    }  # fmt: skip
    return Findings(
        verdicts=[
            near(measured["near"]),
            weak_network(measured["strengths"]),
            fixed_points(measured["tanh"]),
            finite_temperature(measured["crossing"]["mala"]),
            gaussians(measured["gaussian"]),
            caught(_known(measured)),
        ],
        tables=[
            near_table(measured["near"]),
            strength_table(measured["strengths"]),
            tanh_table(measured["tanh"]),
            crossing_table(measured["crossing"]),
            regression_table(measured["regression"]),
            gaussian_table(measured["gaussian"]),
        ],
        figures=panels(measured),
        caption="Estimates with 95 % intervals over chains; crosses and dashes are exact. Top: a line that is nearly "
        "quartic, two crossing valleys, a network whose truth is weak. Bottom: a network where units merge or die, and "
        "how far Gaussians are from the posterior.",
        method=_method(plan),
        limits=[
            "All models are small enough to know the answer; how near to singular a large network is, is not measured.",
            "The losses have no sampling noise: they are what infinite data would give. n beta stands for the data.",
            "The curve sees curvature down to gamma / (n beta): what is flatter counts as singular, and no finite data "
            "can tell.",
            "Mean-field Gaussians are centred at the minimum; none is fitted to a network.",
        ],
        notes=[
            "The exact curves and the divergences of the Gaussians were known when the rules were written: they need "
            "no sampling. Short runs of the chains had been seen as well: after them the upper bound of the weak "
            "network went from 1,000 / truth^2 to 10 / truth^2, where chains still mix, and the lengths of runs and "
            "the points of the tanh network were chosen so that they mix.",
            "Short chains that all start at w* agree with one another before they have seen the posterior: split R-hat "
            "does not tell. The growth of |w - w*|^2 during the draws does.",
        ],
    )


def near(curves: dict[tuple[float, str], Rows]) -> Verdict:
    """Singular below `1 / a^2`, regular above."""
    below, above, worst = [], [], 0.0
    for (slope, sampler), rows in curves.items():
        worst = max(worst, *(abs(_z(row)) for row in rows)) if sampler == "mala" else worst
        if sampler == "mala":
            below += [_effect(row, MIDDLE, f"a = {slope:g}, n beta = {row['share']:g} / a^2: estimate - 3/8")
                      for row in rows if row["share"] <= 0.1]  # fmt: skip
            above += [_effect(row, MIDDLE, f"a = {slope:g}, n beta = {row['share']:g} / a^2: estimate - 3/8")
                      for row in rows if row["share"] >= 10]  # fmt: skip
    lowest, highest = min(below, key=lambda e: e.value), max(above, key=lambda e: e.value)
    return Verdict(
        question="Does a regular model near a singular one read as singular until n beta reaches 1 / a^2?",
        answer=_crosses(below, above),
        because="a w^2 + w^4 has the coefficient 1/2 for every a > 0, yet reads as little as "
        f"{MIDDLE + lowest.value:.3f} at n beta = 0.01 / a^2 (w^4 alone: 0.25) and at most "
        f"{MIDDLE + highest.value:.3f}. The curve depends on a^2 n beta alone. MALA is within {worst:.1f} standard "
        "errors of exact quadrature everywhere.",
        effects=[*below, *above],
        would_change=_nearest([*below, *above]),
    )


def weak_network(curves: dict[float, Rows]) -> Verdict:
    """The same in a network, at a weak truth."""
    rows = curves[STRENGTHS[1]]
    reach = 1 / STRENGTHS[1] ** 2
    name = "n beta = {:.0e}: estimate - 3.25"
    below = [_effect(r, MIDDLE_OF_NETWORK, name.format(r["n_beta"])) for r in rows if r["n_beta"] <= 0.11 * reach]
    above = [_effect(r, MIDDLE_OF_NETWORK, name.format(r["n_beta"])) for r in rows if r["n_beta"] >= 9 * reach]
    doubtful = sum(bool(row["problems"]) for row in rows)
    return Verdict(
        question=f"Does it show in a network: does a truth of strength {STRENGTHS[1]:g} read as no truth below n beta "
        f"= {0.1 * reach:g}, and as a truth above {10 * reach:g}?",
        answer=_crosses(below, above),
        because="One hidden linear unit has the coefficient 2 for truth 0 and 4.5 for any other. With a weak truth "
        f"it reads {MIDDLE_OF_NETWORK + below[-1].value:.2f} at n beta = {0.1 * reach:g}, where the model of truth 0 "
        f"reads {_at(curves[0.0], 0.1 * reach)['value']:.2f}, and {MIDDLE_OF_NETWORK + above[-1].value:.2f} at "
        f"{rows[-1]['n_beta']:.0e}. {doubtful} of the {len(rows)} estimates are called not valid by their diagnostics.",
        effects=[*below, *above],
        would_change=_nearest([*below, *above]),
    )


def fixed_points(points: dict[str, Any]) -> Verdict:
    """Merged below dead below generic; swapping changes nothing."""
    last = {name: found["curve"][-1] for name, found in points.items()}
    generic, swapped, dead, merged = (last[name] for name in POINTS)
    same = _difference(generic, swapped, "generic - swapped")
    lower = [_difference(generic, dead, "generic - one dead"), _difference(dead, merged, "one dead - merged")]
    agree = abs(same.value) <= 3 * math.hypot(generic["standard_error"], swapped["standard_error"])
    holds = agree and all(side(effect) == 1 for effect in lower)
    fails = not agree or any(side(effect) == -1 for effect in lower)
    return Verdict(
        question="Is it the fixed points of permuting hidden units that are singular, and not permuting itself (tanh)?",
        answer="yes" if holds else "no" if fails else UNDECIDED,
        because=f"Swapping the units changes the estimate by {same}. It is {generic['value']:.2f} at a generic point "
        f"(known: 2), {dead['value']:.2f} where one unit is dead (3/2) and {merged['value']:.2f} where the units are "
        "merged (5/4); half the rank of the Hessian is 2, 3/2 and 1.",
        effects=[same, *lower],
        would_change=_nearest(lower),
    )


def finite_temperature(rows: Rows) -> Verdict:
    """What is read at the crossing, where diagnostics let it count."""
    good = [row for row in rows if not row["problems"]]
    off = [_effect(row, row["exact"], f"n beta = {row['n_beta']:.0e}: estimate - exact") for row in good]
    short = [_effect(row, 0.5, f"n beta = {row['n_beta']:.0e}: estimate - 1/2") for row in good]
    right = all(abs(_z(row)) <= 3 for row in good) and all(side(effect) == -1 for effect in short)
    shown = ", ".join(f"{row['value']:.3f} (exact {row['exact']:.3f}) at {row['n_beta']:.0e}" for row in good)
    return Verdict(
        question="Must a right sampler miss the learning coefficient of a crossing, and by a known amount?",
        answer=UNDECIDED if len(good) < 2 else "yes" if right else "no",
        because=f"(w1 w2)^2 has 1/2. Read: {shown}. {len(rows) - len(good)} of {len(rows)} temperatures are left out "
        "because their own diagnostics speak against them.",
        effects=[*off, *short] or [_effect(rows[0], rows[0]["exact"], "not valid: estimate - exact")],
        would_change="An estimate more than three standard errors from the exact value; the furthest is "
        f"{max((abs(_z(row)) for row in good), default=0.0):.1f} away.",
    )


def gaussians(rows: Rows) -> Verdict:
    """Judged by their divergence at one temperature, on losses that have singular minima."""
    at = {row["name"]: row for row in rows if row["n_beta"] == AT}
    judged = ("w^4", "(w1 w2)^2")
    found = {
        f"{kind}, {name}": at[name][key]
        for name in judged
        for kind, key in (("Laplace", "laplace_divergence"), ("mean field", "field_divergence"))
    }
    fails = {name for name, value in found.items() if value > FAILS}
    last = max(GAUSSIAN_BETAS)
    grown = next(r for r in rows if r["name"] == "(w1 w2)^2" and r["n_beta"] == last)["field_divergence"]
    kind = "depends on which Gaussian, and on which singularity"
    return Verdict(
        question="Do Gaussian posteriors fail at singular minima?",
        answer="yes" if len(fails) == len(found) else "no" if not fails else kind,
        because="Laplace takes its width from a curvature that is 0: its expected excess loss is "
        f"{at['w^4']['laplace']:,.0f} at w^4 where {at['w^4']['exact']:.2f} is right, its divergence grows as n. A "
        "Gaussian fitted by variational inference has the width of w^4 nearly right "
        f"({at['w^4']['field_divergence']:.2f} nats at any n), but cannot be a cross: "
        f"{at['(w1 w2)^2']['field_divergence']:.2f} nats at n beta = {AT:.0e} and {grown:.2f} at {last:.0e}. "
        "BIC counts d/2 and Laplace's leading term rank(H)/2; the truth lies between.",
        effects=[Effect(name=name, value=value, n=1, unit="nats, by quadrature") for name, value in found.items()],
        would_change=f"A divergence on the other side of {FAILS:g} nats; the nearest is "
        f"{min(found.values(), key=lambda v: abs(v - FAILS)):.2g}.",
    )


def caught(rows: Rows) -> Verdict:
    """Whether each estimate that is wrong was called not valid."""
    wrong = [row for row in rows if is_wrong(row)]
    right = [row for row in rows if not is_wrong(row)]
    missed = sum(not row["problems"] for row in wrong)
    alarms = sum(bool(row["problems"]) for row in right)
    return Verdict(
        question="Do the diagnostics call every wrong estimate not valid?",
        answer=UNDECIDED if not wrong else "yes" if not missed else "no",
        because=f"Of {len(rows)} estimates with an exact value, some of them from chains too short on purpose, "
        f"{len(wrong)} are off by more than three standard errors and 3 %; {len(wrong) - missed} of them were called "
        f"not valid. Of the {len(right)} others, {alarms} were, too.",
        effects=[
            Effect(name="wrong and not called so", value=float(missed), n=max(1, len(wrong)), unit="estimates"),
            Effect(name="right and called not valid", value=float(alarms), n=max(1, len(right)), unit="estimates"),
        ],
        would_change="One wrong estimate more or less without a warning.",
    )


def is_wrong(row: dict[str, Any]) -> bool:
    """Off by more than three standard errors and 3 % of the exact value."""
    return abs(_z(row)) > 3 and abs(row["value"] - row["exact"]) > 0.03 * row["exact"]


def _known(measured: dict[str, Any]) -> Rows:
    groups = (measured[name] for name in ("near", "crossing", "regression", "strengths", "short"))
    return [row for group in groups for rows in group.values() for row in rows if row["exact"] is not None]


def _z(row: dict[str, Any]) -> float:
    return float((row["value"] - row["exact"]) / row["standard_error"])


def _effect(row: dict[str, Any], level: float, name: str) -> Effect:
    value, half = row["value"] - level, 1.96 * row["standard_error"]
    return Effect(name=name, value=value, low=value - half, high=value + half, n=row["n_chains"], unit="over chains")


def _difference(first: dict[str, Any], second: dict[str, Any], name: str) -> Effect:
    value = first["value"] - second["value"]
    half = 1.96 * math.hypot(first["standard_error"], second["standard_error"])
    return Effect(name=name, value=value, low=value - half, high=value + half, n=first["n_chains"], unit="over chains")


def _crosses(below: list[Effect], above: list[Effect]) -> str:
    sides = [-side(effect) for effect in below] + [side(effect) for effect in above]
    return "yes" if all(s == 1 for s in sides) else "no" if -1 in sides else UNDECIDED


def _nearest(effects: list[Effect]) -> str:
    nearest = min(effects, key=lambda e: min(abs(e.low or 0.0), abs(e.high or 0.0)))
    return f"An interval that holds 0; the nearest to it is that of {nearest.name} ({nearest})."


def _at(rows: Rows, n_beta: float) -> dict[str, Any]:
    return min(rows, key=lambda row: abs(math.log(row["n_beta"] / n_beta)))


def _method(plan: Plan) -> list[str]:
    return [
        "Estimate: n beta times the mean of L(w) - L(w*) over draws from the density proportional to exp(-n beta L - "
        f"gamma |w - w*|^2 / 2); {plan.n_chains} chains from w*, steps chosen from the curvature. Intervals are 1.96 "
        "standard errors, from the effective sample size.",
        "MALA accepts or rejects each step and is exact in the long run; SGLD does not, and its step is set so that "
        "the variance of the stiffest direction is 2 % too large.",
        "Exact: the same mean by Gauss rules in log |w|, at the same temperature and localisation; for regression on a "
        "truth of rank 0, by an integral over the eigenvalues of a Wishart matrix.",
        "Two tanh units: inputs are 41 points between -4 and 4, the truth is the network at the point itself.",
        "Gaussians: Laplace's, with the Hessian at the minimum and the prior's precision 1; and the one with "
        "independent coordinates of the least divergence.",
        f"Decided by: the curve crosses if its intervals lie below {MIDDLE} up to 0.1 / a^2 and above it from "
        f"10 / a^2; the weak network if below {MIDDLE_OF_NETWORK} up to 0.1 / strength^2 and above it from "
        "10 / strength^2; fixed points are singular if generic and swapped are within three standard errors and "
        "generic, dead and merged fall in that order; a Gaussian "
        f"fails with more than {FAILS:g} nats at n beta = {AT:.0e}; an estimate is wrong if it is off by more than "
        "three standard errors and 3 %.",
        "Too short on purpose: 1, 3 and 10 % of the steps and draws, of the crossing and of regressions on rank 0.",
    ]
