"""Records as tables for a terminal and as figures. Layout only: every number was computed elsewhere."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects
    from rich.table import Table

    from sparsight.evaluation.compare import ArmRecord, Comparison
    from sparsight.evaluation.features.best_latent import FeatureTable
    from sparsight.evaluation.record import Evaluation


def rendered(*parts: "Table | str", width: int = 110) -> str:
    """Tables and lines as plain text."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False, highlight=False)
    for part in parts:
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO, as made above
    return str(text).rstrip()


def _table(title: str, *columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i > 0)
    return table


def evaluation_table(e: "Evaluation") -> str:
    """One measurement in each line: value, interval over documents, what it is."""
    d = e.dictionary
    how = e.coder if e.k is None else f"{e.coder} at k={e.k}"
    title = (
        f"{d.architecture}, {d.n_latents} latents of width {d.d_in}, coded by {how}\n"
        f"{e.model} at {e.site}: {e.n_tokens:,} tokens of {e.n_documents:,} documents ({e.split})"
    )
    table = _table(title, "measurement", "value", f"{e.level:.0%} interval", "0 is, 1 is")
    for name, value, ends, meaning in _rows(e):
        table.add_row(name, value, ends, meaning)
    notes = [f"note: {note}" for note in e.notes]
    if e.no_loss_because:
        notes.append(f"no loss added: {e.no_loss_because}")
    return rendered(table, *notes)


def _rows(e: "Evaluation") -> list[tuple[str, str, str, str]]:
    def line(name: str, estimate: object, meaning: str) -> tuple[str, str, str, str]:
        value, _, ends = str(estimate).partition("  ")
        return name, value, ends, meaning

    spread = f"median {e.l0.median}, 5 % {e.l0.p5}, 95 % {e.l0.p95}"
    rows = [line("L0", e.l0.mean, spread), line("FVU", e.fvu, "perfect, the mean")]
    if e.n_outliers and e.fvu_without_outliers is not None:
        rows.append(line("FVU without outliers", e.fvu_without_outliers, f"{e.n_outliers} tokens left out"))
    rows.append(line("FVU uncentred", e.fvu_uncentred, "perfect, zero"))
    if e.fvu_token_mean is not None:
        rows.append(line("FVU token mean", e.fvu_token_mean, "perfect, the mean"))
    rows += [
        line("cosine", e.cosine, "orthogonal, perfect"),
        line("cosine centred", e.cosine_centred, "orthogonal, perfect"),
        line("dead latents", f"{e.density.dead_fraction:.4g}", f"none in {e.density.n_tokens:,} tokens"),
        line("dense latents", f"{e.density.dense_fraction:.4g}", "on over 10 % of tokens"),
    ]
    for name, family in (("raw", e.shrinkage), ("about b_dec", e.shrinkage_centred)):
        if family is not None:
            values = f"rho {family.rho:.4f}, nu {family.nu:.4f}"
            rows.append(line(f"bias r, {name}", f"{family.r:.4f}", values))
    if e.loss is not None:
        rows += [
            line("loss clean", f"{e.loss.clean:.4g}", "nats per token"),
            line("loss added", e.loss.added, "nats per token"),
            line("loss added by mean ablation", e.loss.added_by_mean, "nats per token"),
            line("loss added by zero ablation", e.loss.added_by_zero, "nats per token"),
            line("KL clean to spliced", e.loss.kl, "nats per token"),
        ]
        if e.loss.fraction_of_mean is not None:
            rows.append(line("loss added / mean ablation", e.loss.fraction_of_mean, "perfect, the mean"))
        if e.loss.fraction_of_zero is not None:
            rows.append(line("loss added / zero ablation", e.loss.fraction_of_zero, "perfect, zero"))
    return rows


def comparison_table(c: "Comparison") -> str:
    """One arm at one sparsity in each line, then the paired differences."""
    title = (
        f"{c.dictionary.architecture}, {c.dictionary.n_latents} latents; {c.model} at {c.site}: "
        f"{c.n_tokens:,} tokens of {c.n_documents:,} documents ({c.split}); own mean L0 {c.own_l0:.4g}"
    )
    table = _table(title, "k", "coder", "L0", "FVU", f"{c.level:.0%} interval", "overlap", "loss added", "seconds")
    for arm in c.arms:
        value, _, ends = str(arm.fvu).partition("  ")
        overlap = "" if arm.jaccard is None else f"{arm.jaccard:.3f}"
        loss = "" if arm.loss_added is None else f"{arm.loss_added.value:.4g}"
        table.add_row(str(arm.k), arm.arm, f"{arm.l0:.4g}", value, ends, overlap, loss, f"{arm.seconds:.2f}")
    gaps = _table("FVU, first minus second, same documents", "k", "first", "second", "difference", "interval")
    for difference in c.differences:
        value, _, ends = str(difference.fvu).partition("  ")
        gaps.add_row(str(difference.k), difference.first, difference.second, value, ends)
    notes = [f"note: {note}" for note in c.notes]
    if c.no_loss_because:
        notes.append(f"no loss added: {c.no_loss_because}")
    return rendered(table, *([gaps] if c.differences else []), *notes)


def comparison_figure(c: "Comparison") -> "plotly.graph_objects.Figure":
    """FVU against realised L0, one line for each arm, with intervals over documents."""
    import plotly.graph_objects as go

    figure = go.Figure()
    arms: dict[str, list[ArmRecord]] = {}
    for arm in sorted(c.arms, key=lambda arm: arm.l0):
        arms.setdefault(arm.arm, []).append(arm)
    for name, points in arms.items():
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
        title=f"{c.dictionary.architecture}, {c.dictionary.n_latents} latents, {c.model} at {c.site}",
        xaxis_title="mean L0 (latents per token)",
        yaxis_title="FVU on held-out tokens" if c.split == "heldout" else f"FVU ({c.split})",
        xaxis_type="log",
        yaxis_rangemode="tozero",
        template="plotly_white",
    )
    return figure


def feature_table(f: "FeatureTable") -> str:
    """One class in each line, best first."""
    title = (
        f"{f.model} at {f.site}: best latent of each labelled class, chosen on {f.n_train:,} tokens of training "
        f"documents, scored on {f.n_heldout:,} tokens of held-out ones"
    )
    table = _table(title, "feature", "class", "latent", "AUROC", "chosen at", "F1", "precision", "recall", "share")
    for row in sorted(f.rows, key=lambda row: -row.auroc):
        numbers = (row.auroc, row.auroc_train, row.f1, row.precision, row.recall, row.n_positive / row.n)
        table.add_row(row.feature, row.label, str(row.latent), *(f"{number:.3f}" for number in numbers))
    return rendered(table, *(f"left out: {s.feature} = {s.label}: {s.reason}" for s in f.left_out))
