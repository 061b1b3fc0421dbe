"""Tables and panels of the study of gradients under gates."""

from typing import Any

from sparsight.studies.gradients_under_gates_measured import ARCHITECTURES, WIDTHS, Plan
from sparsight.studies.record import Cell, Line, Panel, Table

LABELS = {"relu": "ReLU", "gated": "Gated", "jumprelu": "JumpReLU", "topk": "TopK"}
# Below this a remainder is rounding, and an axis of logarithms would show nothing else.
LEAST = 1e-6


def remainder_table(found: Any) -> Table:
    rows: list[list[Cell]] = []
    for error in ("kept", "dropped"):
        steps = [int(r[0]) for r in found["relu"][error]["midpoint"]]
        for name in ARCHITECTURES:
            at = found[name][error]
            rows.append([LABELS[name], error, "attribution", 1, *_cells(at["attribution"])])
            for rule in (rule for rule in ("left", "midpoint", "gauss") if rule in at):
                by_steps = {int(r[0]): r[1:] for r in at[rule]}
                for n in (steps[-1], 10):
                    if n in by_steps:
                        rows.append([LABELS[name], error, rule, n, *_cells(by_steps[n])])
            if error == "dropped":
                rows.append([LABELS[name], error, "jumps counted", 10, *_cells(found[name]["jumps"])])
    return Table(
        title="What effects leave out: sum |sum of effects - total| / sum |total|",
        columns=["dictionary", "errors", "rule", "steps", "left out", "low", "high"],
        rows=rows,
        note="95 % intervals over sequences.",
    )


def _cells(found: list[float]) -> list[Cell]:
    return [float(f"{value:.3g}") for value in found]


def node_table(found: Any) -> Table:
    rows: list[list[Cell]] = []
    for error in ("kept", "dropped"):
        for name in ARCHITECTURES:
            for arm, cells in found[name]["nodes"][error].items():
                if arm != "n":
                    rows.append([LABELS[name], error, arm, *_cells(cells)])
    return Table(
        title="Node by node against exact patching: sum |effect - exact| / sum |exact|, and rank correlation",
        columns=["dictionary", "errors", "method", "error", "low", "high", "rank correlation"],
        rows=rows,
        note="Latents whose value changes: "
        + "; ".join(f"{LABELS[n]} {found[n]['nodes']['kept']['n'][0]:.0f}" for n in ARCHITECTURES),
    )


def planted_table(known: Any, plan: Plan) -> Table:
    rows: list[list[Cell]] = []
    for name in ARCHITECTURES:
        for rule in ("left", "midpoint"):
            rows.append([LABELS[name], rule, *(float(f"{v:.3g}") for v in known[name][rule]),
                         float(f"{known[name]['many'][0]:.3g}")])  # fmt: skip
    return Table(
        title="Planted gates: what effects leave out, by steps",
        columns=["gate", "rule", *(str(n) for n in plan.steps), f"midpoint, {plan.many:,}"],
        rows=rows,
        note="The last column is what remains however many points there are: the jumps.",
    )


def gate_panel(gate: dict[str, list[float]]) -> Panel:
    steps = [*range(1, 41), 100, 200, 1000]
    lines = [Line(name=rule, x=list(steps), y=values) for rule, values in gate.items()]
    lines.append(Line(name="minus the jump", x=[1, 1000], y=[-0.37, -0.37], style="dashed"))
    return Panel(title="one gate", x_label="steps", y_label="effect less truth", lines=lines, x_log=True)


def regime_panel(found: Any, error: str, title: str) -> Panel:
    lines = []
    for name in ARCHITECTURES:
        rows = found[name][error]["midpoint"]
        lines.append(_line(LABELS[name], rows))
    if error == "dropped":
        steps = [r[0] for r in found["relu"][error]["midpoint"]]
        for name in ARCHITECTURES:
            value = max(LEAST, found[name]["jumps"][0])
            label = "jumps counted" if name == ARCHITECTURES[0] else ""
            lines.append(Line(name=label, x=[steps[0], steps[-1]], y=[value, value], style="dashed"))
    return Panel(title=title, x_label="midpoints", y_label="share left out", lines=lines, x_log=True, y_log=True)


def smoothed_panel(found: Any) -> Panel:
    lines = [_line(f"JumpReLU, {width}", found["jumprelu"]["smoothed"][str(width)]) for width in WIDTHS]
    lines.append(_line("TopK, " + str(WIDTHS[1]), found["topk"]["smoothed"][str(WIDTHS[1])]))
    title = "gates smoothed by a share of the mean value"
    return Panel(title=title, x_label="midpoints", y_label="share left out", lines=lines, x_log=True, y_log=True)


def _line(name: str, rows: list[list[float]]) -> Line:
    value, low, high = ([max(LEAST, row[i]) for row in rows] for i in (1, 2, 3))
    return Line(name=name, x=[row[0] for row in rows], y=value, low=low, high=high)
