"""Tables and panels of the study of the orthogonality quirk."""

from typing import Any

from sparsight.evaluation.record import Estimate
from sparsight.studies.deciding import effect_of, mean_effect
from sparsight.studies.orthogonality_quirk_measured import CODERS, NEAR_LEARNED
from sparsight.studies.record import Cell, Line, Panel, Table

# (cosine within a pair, both members truly active) -> recall of GP, OMP, tied encoder, by an independent program.
REFERENCE = {
    (0.5, True): (0.997, 1.00, 0.870),
    (0.8, True): (0.851, 0.982, 0.918),
    (0.9, True): (0.741, 0.804, 0.939),
    (0.95, True): (0.672, 0.557, 0.934),
    (0.5, False): None,
    (0.8, False): (0.999, 0.999, 0.655),
    (0.9, False): None,
    (0.95, False): (0.938, 0.941, 0.587),
}


def recall_table(recalls: dict[tuple[float, bool], list[dict[str, float]]]) -> Table:
    rows: list[list[Cell]] = []
    for key, found in recalls.items():
        known = REFERENCE[key]
        cells: list[Cell] = [key[0], "both" if key[1] else "one"]
        for i, name in enumerate(CODERS):
            mean = mean_effect([r[name] for r in found], name, "recall")
            cells += [str(mean), None if known is None else known[i]]
        rows.append(cells)
    return Table(
        title="Recall of planted near-duplicates, mean over draws of the atoms with its 95 % interval",
        columns=["cosine", "truly active", *(head for name in CODERS for head in (name, f"{name}, reference"))],
        rows=rows,
        note="Reference: one draw, an independent computation in numpy.",
    )


def overlap_table(planted: Any, natural: Any) -> Table:
    rows: list[list[Cell]] = []
    for name, found in planted.items():
        means = {c: str(mean_effect([r[c] for r in found], c, "")) for c in ("GP", "OMP", "encoder", "random")}
        rows.append([f"planted: {name}", means["GP"], means["OMP"], means["encoder"], means["random"]])
    for name, found in natural.items():
        by = {c: str(effect_of(Estimate(**e), c, 1, "")) for c, e in found["overlap"].items()}
        rows.append([f"{name} atoms", by["pursuit"], "", by.get("encoder", "no encoder"), by["random"]])
    return Table(
        title="Mean overlap of an atom with the span of those chosen before it",
        columns=["atoms", "gradient pursuit", "OMP", "encoder", "random atoms, pursuit's spans"],
        rows=rows,
    )


def near_table(natural: Any) -> Table:
    rows: list[list[Cell]] = []
    for name, found in natural.items():
        shares = [str(effect_of(Estimate(**found["together"][c]), c, 1, "")) if c in found["together"] else ""
                  for c in ("pursuit", "encoder")]  # fmt: skip
        rows.append([name, *found["nearest"], found["with_twin"], *shares])
    return Table(
        title="Near-duplicates among learned atoms",
        columns=["atoms", "cosine to nearest: median", "90 %", "99 %", f"share with one above {NEAR_LEARNED}",
                 "tokens using two together: pursuit", "encoder"],
        rows=rows,
    )  # fmt: skip


def recall_panel(recalls: dict[tuple[float, bool], list[dict[str, float]]], both: bool) -> Panel:
    cosines = [c for c, b in recalls if b == both]
    lines = []
    for name in CODERS:
        means = [mean_effect([r[name] for r in recalls[c, both]], name, "recall") for c in cosines]
        low, high = [e.low or e.value for e in means], [e.high or e.value for e in means]
        lines.append(Line(name=name, x=list(cosines), y=[e.value for e in means], low=low, high=high))
    for i in range(len(CODERS)):
        known = [(c, r[i]) for c in cosines if (r := REFERENCE[c, both]) is not None]
        lines.append(Line(name="reference" if i == 0 else "", x=[c for c, _ in known], y=[y for _, y in known],
                          style="dashed"))  # fmt: skip
    title = "both members active" if both else "one member active"
    return Panel(title=title, x_label="cosine within a pair", y_label="recall", lines=lines)


def overlap_panel(planted: Any, natural: Any) -> Panel:
    lines = []
    for mine, theirs in (("GP", "pursuit"), ("encoder", "encoder"), ("random", "random")):
        x = [*planted, *(f"{n} atoms" for n in natural if theirs in natural[n]["overlap"])]
        y = [_mean_of(rows, mine) for rows in planted.values()]
        y += [natural[n]["overlap"][theirs]["value"] for n in natural if theirs in natural[n]["overlap"]]
        lines.append(Line(name=theirs, x=list(x), y=y, style="bars"))
    return Panel(title="overlap with the span", x_label="", y_label="overlap", lines=lines)


def _mean_of(rows: list[dict[str, float]], name: str) -> float:
    return sum(r[name] for r in rows) / len(rows)
