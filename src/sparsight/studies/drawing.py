"""The drawing of a study: its panels as one SVG and one PNG."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsight.studies.record import Line, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours of Okabe and Ito, then two of Tol: they stay apart for colour-blind readers; markers do so in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933")
MARKERS = "os^Dv*PX<"


def draw(panels: list[Panel], title: str) -> "Figure":
    """All panels, at most three in a row."""
    from matplotlib.figure import Figure

    columns = min(3, len(panels)) if len(panels) != 4 else 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.7 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i < len(panels):
            _panel(axes, panels[i])
        else:
            axes.set_axis_off()
    return figure


def write_drawing(panels: list[Panel], title: str, folder: Path) -> None:
    """Write `figure.svg` and `figure.png`; the same panels give the same bytes."""
    import matplotlib

    figure = draw(panels, title)
    with matplotlib.rc_context({"svg.hashsalt": "sparsight", "svg.fonttype": "none"}):
        figure.savefig(folder / "figure.svg", metadata={"Date": None})
    figure.savefig(folder / "figure.png", dpi=110, metadata={"Software": None})


def _panel(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import NullLocator

    if panel.x_log:
        axes.set_xscale("log")
    if panel.y_log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(_between_powers())
        axes.tick_params(axis="y", which="minor", labelsize=7)
    categories = list(dict.fromkeys(x for line in panel.lines for x in line.x if isinstance(x, str)))
    bars = [line for line in panel.lines if line.style == "bars"]
    for i, line in enumerate(panel.lines):
        positions: list[float] = [float(categories.index(x)) if isinstance(x, str) else float(x) for x in line.x]
        if line.style == "bars":
            width = 0.8 / len(bars) * _spacing(positions)
            offset = (bars.index(line) - (len(bars) - 1) / 2) * width
            positions = [x + offset for x in positions]
            _bars(axes, line, positions, width, COLOURS[i % len(COLOURS)])
        else:
            _points(axes, line, positions, i)
    if categories:
        axes.set_xticks(range(len(categories)), categories, fontsize=8)
        if max(len(c) for c in categories) * len(categories) > 44:
            axes.tick_params(axis="x", rotation=25)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
    elif panel.x_log:
        ticks = sorted({float(x) for line in panel.lines for x in line.x})
        if len(ticks) > 8 and ticks[-1] <= 100 * ticks[0]:
            ticks = [2.0**i for i in range(-40, 41) if ticks[0] / 1.1 <= 2.0**i <= ticks[-1] * 1.1]
        if len(ticks) <= 8:
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x_label, fontsize=9)
    axes.set_ylabel(panel.y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    named = sum(bool(line.name) for line in panel.lines)
    if named > 7:  # more than fit between the lines: room is made below them
        low, high = axes.get_ylim()
        axes.set_ylim(low * (low / high) ** 0.5 if panel.y_log else low - 0.5 * (high - low), high)
        axes.legend(fontsize=7.5, edgecolor="none", loc="lower left", ncols=2)
    elif named > 0:
        axes.legend(fontsize=7.5, framealpha=0.8, edgecolor="none")


def _between_powers() -> Any:
    """Names values between powers of ten on an axis so short that it holds few whole ones."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return Plain(minor_thresholds=(1.6, 0.8))


def _bars(axes: Any, line: Line, positions: list[float], width: float, colour: str) -> None:
    axes.bar(positions, line.y, width, label=line.name or None, color=colour, alpha=0.85, yerr=_whiskers(line),
             error_kw={"elinewidth": 1})  # fmt: skip


def _points(axes: Any, line: Line, positions: list[float], i: int) -> None:
    style = {"line": "-", "points": "", "dashed": "--"}[line.style]
    axes.errorbar(
        positions,
        line.y,
        yerr=_whiskers(line),
        label=line.name or None,
        color="#666666" if line.style == "dashed" else COLOURS[i % len(COLOURS)],
        linestyle=style or "none",
        marker="x" if line.style == "dashed" else MARKERS[i % len(MARKERS)],
        markersize=4.5,
        linewidth=1.4,
        elinewidth=1,
        capsize=2,
    )


def _whiskers(line: Line) -> list[list[float]] | None:
    if line.low is None or line.high is None:
        return None
    # A percentile interval may leave its own value out by a rounding: whiskers have no negative length.
    below = [max(0.0, y - low) for y, low in zip(line.y, line.low, strict=True)]
    above = [max(0.0, high - y) for y, high in zip(line.y, line.high, strict=True)]
    return [below, above]


def _spacing(positions: list[float]) -> float:
    ordered = sorted(set(positions))
    return min((b - a for a, b in pairwise(ordered)), default=1.0)
