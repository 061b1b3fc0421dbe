"""The page of an evaluation: numbers with intervals and floors, figures, benchmarks, in one HTML file."""

from pathlib import Path

from sparsight.evaluation.core_records import BreakdownRecord
from sparsight.evaluation.record import Evaluation
from sparsight.evaluation.side_by_side import SideBySide
from sparsight.evaluation.tables import identity_lines, measurement_rows
from sparsight.interpretation.figures import Series, line_chart
from sparsight.interpretation.frame import asset, rendered_page, write_page
from sparsight.interpretation.page import Figure
from sparsight.interpretation.report import number

_COLOURS = 6


def write_evaluation_page(path: str | Path, found: SideBySide) -> Path:
    """Write the page; it opens anywhere, offline, and never asks for another file. Whole or not at all."""
    return write_page(path, render(found))


def render(found: SideBySide) -> str:
    """The page as one string of HTML."""
    rows = {name: {row[0]: row for row in measurement_rows(e)} for name, e in found.evaluations.items()}
    return rendered_page(
        asset("evaluation.html"),
        "evaluation",
        ", ".join(found.evaluations),
        {"number": number},
        found=found,
        measurements=list(dict.fromkeys(key for row in rows.values() for key in row)),
        rows=rows,
        figures=figures(found),
        identities={name: identity_lines(e) for name, e in found.evaluations.items()},
    )


def figures(found: SideBySide) -> list[Figure]:
    """Densities, and FVU over position and norm, one line for each dictionary."""
    made = [_densities(found.evaluations)]
    for by, label in (("position", "place in the context, in ranges"), ("norm", "tenth of the norm")):
        records = {name: next((b for b in e.breakdowns if b.by == by), None) for name, e in found.evaluations.items()}
        lines = [_line(name, record, i) for i, (name, record) in enumerate(records.items()) if record is not None]
        if lines:
            drawing = line_chart(lines, x_label=label, y_label="FVU")
            caption = "Residual of the group over its squared distance from the mean of all tokens."
            made.append(Figure(title=f"FVU by {by}", caption=caption, drawing=drawing))
    return made


def _densities(evaluations: dict[str, Evaluation]) -> Figure:
    series = [
        Series(name=name, x=e.density.histogram_edges[:-1], y=e.density.histogram_counts, slot=i % _COLOURS, steps=True)
        for i, (name, e) in enumerate(evaluations.items())
    ]
    dead = ", ".join(f"{name}: {e.density.dead_fraction:.1%} dead" for name, e in evaluations.items())
    drawing = line_chart(series, x_label="log10 of density", y_label="latents")
    return Figure(title="How often latents are in use", caption=dead, drawing=drawing)


def _line(name: str, record: BreakdownRecord, slot: int) -> Series:
    groups = [g for g in record.groups if g.fvu is not None]
    y = [g.fvu.value for g in groups if g.fvu is not None]
    low = [g.fvu.value if g.fvu.low is None else g.fvu.low for g in groups if g.fvu is not None]
    high = [g.fvu.value if g.fvu.high is None else g.fvu.high for g in groups if g.fvu is not None]
    x = list(range(1, len(y) + 1))
    return Series(name=name, x=x, y=y, low=low, high=high, slot=slot % _COLOURS, marks=True)
