"""Tables and panels of the frontiers of architectures."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsight.studies.architectures_decided import REPORTED, Rows, agrees, matched, ratios
from sparsight.studies.architectures_measured import NAMES, Plan, of
from sparsight.studies.record import Cell, Effect, Line, Panel, Table


@dataclass(frozen=True)
class Measured:
    """Everything measured on one model.

    Attributes:
        name: Of the model.
        site, d_in: Where it is read, and the width there.
        plan: How much of everything.
        seeds: For each seed the measurements of all dictionaries.
        longer: Those of one L0 and a larger budget; empty where it was left out.
        speed: Tokens that one second of processor time trains, by architecture.
    """

    name: str
    site: str
    d_in: int
    plan: Plan
    seeds: Sequence[Rows]
    longer: Rows
    speed: Mapping[str, float]


def tables(m: Measured) -> list[Table]:
    """Reported relations one by one, all dictionaries, and where architectures differ apart from FVU."""
    return [_relations(m), _frontiers(m), _reasons(m), *([_longer(m)] if m.longer else [])]


def panels(m: Measured) -> list[Panel]:
    """FVU against L0, the same as a share of ReLU's, and the loss added where there is one."""
    found = [_frontier(m, "fvu", f"{m.name}: FVU", "held-out FVU"), _shares(m)]
    if m.seeds[0][0]["added"] is not None:
        found.append(_frontier(m, "added", f"{m.name}: loss", "loss added (nats)"))
    return found


def _relations(m: Measured) -> Table:
    at = matched(m.seeds, m.plan.targets)
    rows: list[list[Cell]] = []
    for claim in REPORTED:
        effects = ratios(at, claim)
        cells = [_percent(effects[t]) if t in effects else "L0 not reached" for t in m.plan.targets]
        rows.append([str(claim), claim.source, *cells, agrees(list(effects.values()), claim.relation)])
    return Table(
        title=f"{m.name}: FVU of the first less that of the second, as a share of the second's, at equal L0",
        columns=["reported", "by", *(f"L0 {t}" for t in m.plan.targets), "holds"],
        rows=rows,
        note="In brackets 95 % intervals over seeds. Not above: by more than 5 %; about: within 5 %.",
    )


def _frontiers(m: Measured) -> Table:
    rows: list[list[Cell]] = []
    with_loss = m.seeds[0][0]["added"] is not None
    for name in NAMES:
        for i, target in enumerate(m.plan.targets):
            runs = [of(seed, name)[i] for seed in m.seeds]
            loss = [_range(runs, "added")] if with_loss else []
            rows.append([name, target, _range(runs, "l0"), _range(runs, "fvu"), *loss, _range(runs, "silent")])
    return Table(
        title=f"{m.name}: every dictionary on held-out documents, mean over seeds and range",
        columns=["architecture", "L0 asked", "L0", "FVU", *(["loss added, nats"] if with_loss else []), "silent"],
        rows=rows,
        note="Silent: share of latents that no held-out token excites.",
    )


def _reasons(m: Measured) -> Table:
    rows: list[list[Cell]] = []
    for name in NAMES:
        runs = [row for seed in m.seeds for row in of(seed, name)]
        refitted = _by_target(m, runs, lambda row: row["refitted"] / row["kept"] - 1)
        with_fixed = runs[0]["fixed"] is not None
        fixed = _by_target(m, runs, lambda row: row["fixed"] / row["fvu"] - 1) if with_fixed else []
        missed = max(abs(row["l0"] / row["target"] - 1) for row in runs)
        spread = _mean([row["spread"] for row in runs])
        cells: list[Cell] = [_list(refitted), _list(fixed), f"{spread:.0%}", f"{missed:.0%}", round(m.speed[name])]
        rows.append([name, *cells])
    targets = ", ".join(map(str, m.plan.targets))
    return Table(
        title=f"{m.name}: where the FVU comes from, how L0 varies, and speed",
        columns=[
            "architecture",
            f"with best values (L0 {targets})",
            f"with equal L0 in every token (L0 {targets})",
            "spread of L0",
            "L0 missed by",
            "tokens per second",
        ],
        rows=rows,
        note="Best values: change of FVU when the latents of the dictionary's own code are given the best non-negative "
        "values. Equal L0: change when every token keeps as many of its largest pre-activations as were asked for, in "
        "place of those above a threshold. Spread: standard deviation of L0 over tokens, as a share of its mean. "
        "Missed: the largest distance of any dictionary's L0 from the one asked for. Tokens per second of processor "
        f"time, one thread, trained alone at L0 {_middle(m)} in batches of 1,024; the steps of ReLU, Gated and "
        "JumpReLU are dense: every latent of every token is multiplied.",
    )


def _by_target(m: Measured, runs: Rows, value: Callable[[Mapping[str, Any]], float]) -> list[float]:
    return [_mean([value(row) for row in runs if row["target"] == t]) for t in m.plan.targets]


def _list(changes: Sequence[float]) -> str:
    return ", ".join(f"{100 * change:+.0f} %" for change in changes)


def _longer(m: Measured) -> Table:
    rows: list[list[Cell]] = []
    for name in NAMES:
        [short] = [row for row in of(m.seeds[0], name) if row["target"] == _middle(m)]
        [long] = of(m.longer, name)
        figures: list[Cell] = [row[key] for row in (short, long) for key in ("l0", "fvu", "silent")]
        rows.append([name, *figures, f"{long['fvu'] / short['fvu'] - 1:+.0%}"])
    one, more = "budget", f"{m.plan.longer} times the budget"
    return Table(
        title=f"{m.name}: L0 {_middle(m)}, one seed, trained longer",
        columns=["architecture", *(f"{what}, {b}" for b in (one, more) for what in ("L0", "FVU", "silent")), "FVU"],
        rows=rows,
    )


def _frontier(m: Measured, key: str, title: str, y_label: str) -> Panel:
    lines = []
    for name in NAMES:
        grid = [[row[key] for row in of(seed, name)] for seed in m.seeds]
        x = _over(_mean, [[row["l0"] for row in of(seed, name)] for seed in m.seeds])
        lines.append(
            Line(
                name=name if key == "fvu" else "",
                x=list(x),
                y=_over(_mean, grid),
                low=_over(min, grid),
                high=_over(max, grid),
            )
        )
    positive = all(low > 0 for line in lines for low in line.low or [])
    return Panel(title=title, x_label="L0", y_label=y_label, lines=lines, x_log=True, y_log=positive)


def _shares(m: Measured) -> Panel:
    at = matched(m.seeds, m.plan.targets)
    lines = []
    for name in NAMES:
        points = {}
        for t in m.plan.targets:
            pairs = zip(at[name][t], at["ReLU"][t], strict=True)
            shares = [a / b for a, b in pairs if a is not None and b is not None]
            if len(shares) == len(m.seeds):
                points[t] = shares
        if points:
            y, low, high = ([float(f(v)) for v in points.values()] for f in (_mean, min, max))
            lines.append(Line(name="", x=[float(t) for t in points], y=y, low=low, high=high))
        else:
            lines.append(Line(name="", x=[], y=[]))  # keeps the colours of the others
    return Panel(title=f"{m.name}: beside ReLU", x_label="L0, matched", y_label="FVU / ReLU's FVU", lines=lines,
                 x_log=True, y_log=True)  # fmt: skip


def _range(runs: Rows, key: str) -> str:
    values = [row[key] for row in runs]
    return f"{_mean(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def _percent(effect: Effect) -> str:
    ends = "" if effect.low is None or effect.high is None else f" [{_change(effect.low)}, {_change(effect.high)}]"
    return f"{_change(effect.value)}{ends}"


def _change(log_ratio: float) -> str:
    return f"{100 * math.expm1(log_ratio):+.1f} %"


def _over(summary: Callable[[Sequence[float]], float], grid: Sequence[Sequence[float]]) -> list[float]:
    """A summary over seeds for each target."""
    return [float(summary(list(column))) for column in zip(*grid, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _middle(m: Measured) -> int:
    return m.plan.targets[len(m.plan.targets) // 2]
