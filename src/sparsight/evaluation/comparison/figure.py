"""A comparison as figures. Layout only: every number was computed elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sparsight.evaluation.comparison.record import ArmRecord, Comparison
from sparsight.evaluation.record import Estimate

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import plotly.graph_objects

# One colour for each family of arms (Okabe and Ito's, told apart by colour-blind readers) and one mark for each arm.
STYLES = {
    "encoder": ("#000000", "o", "-"),
    "topk": ("#000000", "x", ":"),
    "thresholded": ("#7f7f7f", "v", ":"),
    "scaled": ("#e69f00", "s", ":"),
    "joint_scaled": ("#e69f00", "D", "-"),
    "refit": ("#d55e00", "o", "-"),
    "lasso": ("#cc79a7", "^", "-"),
    "matching_pursuit": ("#56b4e9", "s", "-"),
    "pursuit": ("#0072b2", "o", "-"),
    "polished": ("#0072b2", "x", ":"),
    "orthogonal_matching_pursuit": ("#009e73", "D", "-"),
    "oracle": ("#b8a800", "*", "--"),
}

LABELS = {
    "topk": "top k",
    "joint_scaled": "scaled jointly",
    "matching_pursuit": "matching pursuit",
    "pursuit": "gradient pursuit",
    "polished": "gradient pursuit, polished",
    "orthogonal_matching_pursuit": "orthogonal matching pursuit",
}

Reading = Callable[[ArmRecord], Estimate | None]


def plot(c: Comparison) -> "matplotlib.figure.Figure":
    """Panels over realised L0, one line for each arm: FVU, loss added, small values, span overlap less the encoder's.

    A panel without a number is left out. Bars are intervals over documents.
    """
    from matplotlib.figure import Figure

    panels: list[tuple[str, str, Reading, bool]] = [
        ("Variance unexplained", "FVU", lambda arm: arm.fvu, True),
        ("Loss added by the splice", "nats per token", lambda arm: arm.loss_added, True),
        ("Planted latents found", "recall", lambda arm: arm.recall, False),
        ("Small values (below 0.1 of the latent's 99th percentile)", "share of values in use", _small, False),
        ("Atoms' overlap with the span of earlier ones", "overlap less random atoms'", _overlap, False),
    ]
    shown = [panel for panel in panels if any(panel[2](arm) is not None for arm in c.arms)]
    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.5 + 4.6 * columns, 1.2 + 3.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, unit, reading, logarithmic) in zip(grid, shown, strict=False):
        _panel(axes, c, reading, logarithmic)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(unit)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False, fontsize=9)
    d = c.dictionary
    which = "" if c.split == "given" else f" ({c.split})"
    figure.suptitle(
        f"{d.architecture}, {d.n_latents} latents, {_short(c)}: {c.n_tokens:,} tokens{which}, {c.level:.0%} intervals",
        fontsize=11,
    )
    return figure


def write_plot(c: Comparison, folder: Path) -> list[Path]:
    """`comparison.svg` and `comparison.png` in a folder that exists."""
    figure = plot(c)
    paths = [folder / "comparison.svg", folder / "comparison.png"]
    for path in paths:
        # No date, so that one comparison always gives one file.
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _panel(axes: "matplotlib.axes.Axes", c: Comparison, reading: Reading, logarithmic: bool) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    ticks: set[int] = set()
    for name, points in _by_arm(c).items():
        found = [(arm, estimate) for arm in points if (estimate := reading(arm)) is not None]
        if logarithmic:
            found = [(arm, estimate) for arm, estimate in found if estimate.value > 0]
        if not found:
            continue
        colour, mark, line = STYLES.get(name, ("#7f7f7f", "o", "-"))
        y = [estimate.value for _, estimate in found]
        low = [0.0 if e.low is None else max(0.0, e.value - e.low) for _, e in found]
        high = [0.0 if e.high is None else max(0.0, e.high - e.value) for _, e in found]
        if logarithmic:
            low = [min(down, 0.99 * value) for down, value in zip(low, y, strict=True)]
        axes.errorbar(
            [arm.l0 for arm, _ in found],
            y,
            yerr=[low, high],
            label=LABELS.get(name, name),
            color=colour,
            marker=mark,
            linestyle=line,
            markersize=9 if mark == "*" else 5,
            linewidth=1.4,
            capsize=2.5,
        )
        ticks |= {arm.k for arm in points if isinstance(arm.k, int)}
    axes.set_xscale("log")
    if logarithmic:
        axes.set_yscale("log")
    elif axes.get_ylim()[0] < 0 < axes.get_ylim()[1]:
        axes.axhline(0, color="#b0b0b0", linewidth=0.8, zorder=0)
    if ticks:
        axes.set_xticks(sorted(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("mean L0 (latents per token)")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _small(arm: ArmRecord) -> Estimate | None:
    d = arm.diagnostics
    return None if d is None or d.small_weight_mass is None else d.small_weight_mass["0.1"]


def _overlap(arm: ArmRecord) -> Estimate | None:
    return None if arm.diagnostics is None else arm.diagnostics.overlap_minus_random


def _by_arm(c: Comparison) -> dict[str, list[ArmRecord]]:
    """Records of each arm, by realised L0; arms in the order in which they came."""
    arms: dict[str, list[ArmRecord]] = {arm.arm: [] for arm in c.arms}
    for arm in sorted(c.arms, key=lambda arm: arm.l0):
        arms[arm.arm].append(arm)
    return arms


def _short(c: Comparison) -> str:
    """The place, a model's folder named by its last two parts."""
    if c.model is None:
        return c.place
    return f"{'/'.join(c.model.rstrip('/').rsplit('/', 2)[-2:])} at {c.site}"


def interactive(c: Comparison) -> "plotly.graph_objects.Figure":
    """FVU against realised L0, one line for each arm, with intervals over documents."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, points in _by_arm(c).items():
        fvu = [point.fvu for point in points]
        up = [0.0 if f.high is None else f.high - f.value for f in fvu]
        down = [0.0 if f.low is None else f.value - f.low for f in fvu]
        figure.add_scatter(
            x=[point.l0 for point in points],
            y=[f.value for f in fvu],
            error_y={"type": "data", "symmetric": False, "array": up, "arrayminus": down},
            mode="lines+markers",
            name=name,
        )
    figure.update_layout(
        title=f"{c.dictionary.architecture}, {c.dictionary.n_latents} latents, {c.place}",
        xaxis_title="mean L0 (latents per token)",
        yaxis_title="FVU on held-out tokens" if c.split == "heldout" else f"FVU ({c.split})",
        xaxis_type="log",
        yaxis_rangemode="tozero",
        template="plotly_white",
    )
    return figure
