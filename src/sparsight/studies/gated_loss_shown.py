"""Tables and panels of the study of Gated's loss."""

from typing import Any

from sparsight.studies.deciding import mean_effect
from sparsight.studies.gated_loss_compared import Run, excess, excess_effects, fvu, l0
from sparsight.studies.gated_loss_exact import EXPECTED, HELD, TERMS
from sparsight.studies.gated_loss_trained import (
    INPUT_HELD,
    NEITHER,
    NO_SCALE,
    ONE_OFFSET,
    PUBLISHED,
    RELU,
    RESCALED,
    SHIFTED,
    UNFROZEN,
    UNTIED,
    WEIGHTS,
    WITHOUT,
    fixed_name,
    frontier_names,
    weight_name,
)
from sparsight.studies.record import Cell, Line, Panel, Table


def gradients_table(table: dict[str, dict[str, float]]) -> Table:
    rows: list[list[Cell]] = []
    for name, cells in table.items():
        row: list[Cell] = [name]
        for term in (*TERMS, HELD):
            row += ["none" if cells[term] == 0 else f"{cells[term]:.3g}", "yes" if term in EXPECTED[name] else "none"]
        rows.append(row)
    return Table(
        title="Norm of the gradient that each term gives each parameter (float64, by autograd)",
        columns=["parameter", *(head for term in (*TERMS, HELD) for head in (term, "expected"))],
        rows=rows,
        note='"none": every entry is exactly 0. Expected: equation 8 as published, whose third term holds the decoder '
        "that reads q, and not the offset subtracted from the input.",
    )


def symmetry_table(found: list[dict[str, float]]) -> Table:
    keys = ("c", "code", "reconstruction", "sparsity", "third term")
    return Table(
        title="(W_enc, b_gate) times c, r_mag less log c",
        columns=["c", "change of the code", "change of the reconstruction term", "penalty less c times itself",
                 "third term over itself before"],
        rows=[[row[key] for key in keys] for row in found],
        note="The first three are relative, and rounding.",
    )  # fmt: skip


def perspectives_table(found: dict[str, dict[str, float]]) -> Table:
    keys = ("P1", "P2", "P2, decoder of q held", "explained", "masked")
    return Table(
        title="Distance of equation 8's gradient from those of other losses, relative to it",
        columns=["parameter", "P1", "P2", "P2, decoder of q held", "P2 less the decoder's gradient of FVU(q)",
                 "equation 8 with q masked by the open gates"],
        rows=[[name, *(cells[key] for key in keys)] for name, cells in found.items()],
        note="P1: FVU(q) + l1 |q|, to which FVU(z) is added. P2: [FVU(z) + l1 |gate|] + [FVU(q) + l1 |q|]. "
        "q is the rectified gate, z the code, |gate| the number of open gates, whose gradient is 0.",
    )  # fmt: skip


def arms_table(where: str, runs: list[Run], target: float) -> Table:
    rows: list[list[Cell]] = []
    for name in runs[0]["arms"]:
        known = [v for run in runs if (v := excess(run, name)) is not None]
        over = {e.unit: str(e) for e in excess_effects({where: runs}, name)}
        if name in frontier_names(PUBLISHED):
            over = dict.fromkeys(over, "reference")
        rows.append(
            [
                name,
                _mean([l0(run, name) for run in runs]),
                _mean([fvu(run, name) for run in runs]),
                over.get(
                    "excess FVU at equal L0, over seeds",
                    f"beyond the frontier: {len(runs) - len(known)} of {len(runs)} seeds",
                ),
                over.get("excess FVU at equal L0, over documents"),
                *(_arm_mean(runs, name, key) for key in ("r", "gate", "silent", "recovered", "f1")),
            ]
        )
    n = len(runs)
    return Table(
        title=f"{where}: means over {n} seeds with their 95 % intervals, on rows not trained on; L0 asked for: "
        f"{target:g}",
        columns=["loss", "L0", "FVU", "excess FVU at equal L0, over seeds", "over documents", "bias r",
                 "norm of gate weights", "silent latents", "atoms recovered", "F1 of true latents"],
        rows=rows,
        note="Excess: FVU over that of the published loss at the same L0, interpolated along its frontier, less 1. "
        "r below 1: reconstructions are too short. Recovered: share of true atoms with a learned one at cosine above "
        "0.9. Silent: on these rows.",
    )  # fmt: skip


def panels(data: dict[str, list[Run]]) -> list[Panel]:
    """Six: costs of changes to the third term, its weight, the magnitudes; collapse; two frontiers."""
    names = list(data)
    return [
        _bars(data, (UNFROZEN, INPUT_HELD, weight_name(0.1), weight_name(10.0)), "changes to the third term"),
        _bars(data, (UNTIED, NO_SCALE, ONE_OFFSET, NEITHER), "changes to the magnitudes"),
        _weights(data),
        _collapse(data),
        *(_frontier(where, data[where]) for where in names),
    ]


def _bars(data: dict[str, list[Run]], arms: tuple[str, ...], title: str) -> Panel:
    lines = []
    for where, runs in data.items():
        x: list[str | float] = []
        y, low, high = [], [], []
        for name in arms:
            for effect in excess_effects({where: runs}, name):
                if effect.unit.endswith("over seeds"):
                    x.append(name.replace("third term times", "weight"))
                    y.append(effect.value)
                    low.append(effect.value if effect.low is None else effect.low)
                    high.append(effect.value if effect.high is None else effect.high)
        lines.append(Line(name=where, x=x, y=y, low=low, high=high, style="bars"))
    return Panel(title=title, x_label="", y_label="excess FVU at equal L0", lines=lines)


def _weights(data: dict[str, list[Run]]) -> Panel:
    lines = []
    for where, runs in data.items():
        x: list[str | float] = []
        y, low, high = [], [], []
        for weight in sorted((*WEIGHTS, 1.0)):
            name = PUBLISHED if weight == 1 else weight_name(weight)
            effect = excess_effects({where: runs}, name)[0]
            if effect.unit.endswith("over seeds"):
                x.append(weight)
                y.append(effect.value)
                low.append(effect.value if effect.low is None else effect.low)
                high.append(effect.value if effect.high is None else effect.high)
        lines.append(Line(name=where, x=x, y=y, low=low, high=high))
    return Panel(title="weight of the third term", x_label="weight", y_label="excess FVU at equal L0", lines=lines,
                 x_log=True)  # fmt: skip


def _collapse(data: dict[str, list[Run]]) -> Panel:
    lines = []
    for label, name in (("published", PUBLISHED), (WITHOUT, WITHOUT)):
        y = [_value([l0(run, fixed_name(name)) for run in runs]) for runs in data.values()]
        lines.append(Line(name=label, x=list(data), y=y, style="bars"))
    return Panel(title="one weight of the penalty", x_label="", y_label="L0", lines=lines, y_log=True)


def _frontier(where: str, runs: list[Run]) -> Panel:
    lines = []
    for name in (PUBLISHED, RELU, RESCALED, SHIFTED):
        arms = frontier_names(name)
        x: list[str | float] = [_value([l0(run, arm) for run in runs]) for arm in arms]
        lines.append(Line(name="Gated" if name == PUBLISHED else name, x=x,
                          y=[_value([fvu(run, arm) for run in runs]) for arm in arms]))  # fmt: skip
    return Panel(title=f"ReLU repaired: {where}", x_label="L0", y_label="FVU", lines=lines, y_log=True)


def _arm_mean(runs: list[Run], name: str, key: str) -> Cell:
    found: list[Any] = [run["arms"][name].get(key) for run in runs]
    return None if any(value is None for value in found) else _value(found)


def _mean(values: list[float]) -> str:
    return str(mean_effect(values, "", ""))


def _value(values: list[float]) -> float:
    return sum(values) / len(values)
