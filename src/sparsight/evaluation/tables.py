"""Records as tables for a terminal and as figures. Layout only: every number was computed elsewhere."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from sparsight.evaluation.features.best_latent import FeatureTable
    from sparsight.evaluation.record import Evaluation
    from sparsight.evaluation.shrinkage_panel_record import ShrinkagePanel
    from sparsight.evaluation.side_by_side import SideBySide


def rendered(*parts: "Table | str", width: int = 110) -> str:
    """Tables and lines as plain text."""
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False, highlight=False)
    for part in parts:
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO, as made above
    return str(text).rstrip()


def titled(title: str, *columns: str) -> "Table":
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
    table = titled(title, "measurement", "value", f"{e.level:.0%} interval", "0 is, 1 is")
    for name, value, ends, meaning in measurement_rows(e):
        table.add_row(name, value, ends, meaning)
    notes = [f"tokens: {e.token_policy}", *(f"note: {note}" for note in e.notes)]
    if e.search is not None:
        notes.append(f"note: {e.search}")
    if e.no_loss_because:
        notes.append(f"no loss added: {e.no_loss_because}")
    beside = [*baseline_table(e), *breakdown_tables(e), *identity_lines(e)]
    panel = [] if e.shrinkage_panel is None else panel_tables(e.shrinkage_panel)
    return rendered(table, *notes, *beside, *panel)


def side_by_side_table(found: "SideBySide") -> str:
    """Every measurement in a line, a dictionary in each column; then differences, and benchmarks."""
    parts: list[Any] = []
    names = list(found.evaluations)
    if len(names) == 1:
        parts.append(evaluation_table(found.evaluations[names[0]]))
    else:
        table = titled("On the same documents", "measurement", *names)
        rows = {name: {row[0]: row[1] for row in measurement_rows(e)} for name, e in found.evaluations.items()}
        for measurement in dict.fromkeys(key for row in rows.values() for key in row):
            table.add_row(measurement, *(rows[name].get(measurement, "") for name in names))
        parts.append(table)
        for name, e in found.evaluations.items():
            parts += [f"{name}: note: {note}" for note in e.notes]
            parts += [f"{name}: {line}" for line in identity_lines(e)]
    if found.differences:
        table = titled("Differences, the same documents drawn for both", "first", "second", "FVU", "L0 ratio", "better")
        for d in found.differences:
            table.add_row(d.first, d.second, str(d.fvu), f"{d.l0_ratio:.3g}", d.verdict)
        parts.append(table)
    for name, suite in found.suites.items():
        parts += [*([] if len(names) == 1 else [f"Benchmarks of {name}"]), suite.to_table()]
    return rendered(*parts, width=160)


def baseline_table(e: "Evaluation") -> "list[Table | str]":
    """What no trained dictionary scores on the same tokens."""
    if not e.baselines:
        return [] if e.no_baselines_because is None else [f"no baselines: {e.no_baselines_because}"]
    table = titled(f"Baselines, on {e.baselines[0].n_tokens:,} tokens", "baseline", "numbers", "FVU", "loss added")
    for b in e.baselines:
        table.add_row(b.baseline, f"{b.l0:.3g}", str(b.fvu), "" if b.loss_added is None else str(b.loss_added))
    return [table]


def breakdown_tables(e: "Evaluation") -> "list[Table | str]":
    """The tokens in groups, and the headline with and without kinds of token where that matters."""
    parts: list[Any] = []
    for b in e.breakdowns:
        table = titled(f"By {b.by}", b.by, "tokens", "L0", "FVU", "of variance", "of residual")
        for g in b.groups:
            fvu = "undefined" if g.fvu is None else str(g.fvu)
            shares = f"{g.share_of_variance:.1%}", f"{g.share_of_residual:.1%}"
            table.add_row(g.group, f"{g.n_tokens:,}", f"{g.l0.value:.3g}", fvu, *shares)
        parts.append(table)
    return parts


def identity_lines(e: "Evaluation") -> list[str]:
    """How far the identities are from holding."""
    if not e.identities:
        return []
    worst = max(e.identities, key=lambda i: i.residual / i.tolerance)
    held = sum(i.holds for i in e.identities)
    return [
        f"identities: {held} of {len(e.identities)} hold; nearest to its tolerance: {worst.identity} "
        f"({worst.residual:.2g}, allowed {worst.tolerance:.2g})"
    ]


def panel_tables(panel: "ShrinkagePanel") -> "list[Table | str]":
    """Where shrinkage is: one line for each group of tokens, and one for each range of values."""
    groups = titled(f"Shrinkage about the offset, {panel.n_tokens:,} tokens", "tokens", "number", "r", "rho", "nu")
    named = [("norm", group) for group in panel.by_norm] + [("position", group) for group in panel.by_position]
    for name, g in named:
        numbers = (
            ["undefined"] * 3 if g.family is None else [f"{v:.4f}" for v in (g.family.r, g.family.rho, g.family.nu)]
        )
        groups.add_row(f"{name} {between(g.low, g.high)}", f"{g.n_tokens:,}", *numbers)
    values = titled("Values against refitted ones", "values", "number", "mean", "refitted", "ratio", "difference")
    for b in panel.by_value:
        cells = ("" if v is None else f"{v:.4g}" for v in (b.value, b.refitted, b.ratio, b.difference))
        values.add_row(between(b.low, b.high), f"{b.n_values:,}", *cells)
    said: list[Any] = [groups, values]
    if panel.explained_by_factor is not None and panel.explained_by_amount is not None:
        said.append(
            f"of what refitting improves, one factor accounts for {panel.explained_by_factor:.1%}, "
            f"one amount for {panel.explained_by_amount:.1%}"
        )
    if panel.joint_scale is not None and panel.refit_slope is not None:
        j, s = panel.joint_scale, panel.refit_slope
        said.append(
            f"{panel.n_latents:,} latents: best joint scale {j.median:.3f} ({j.p5:.3f} to {j.p95:.3f}), "
            f"refitted over own value {s.median:.3f} ({s.p5:.3f} to {s.p95:.3f})"
        )
    return said


def between(low: float | None, high: float | None) -> str:
    """A range in words."""
    if low is None:
        return "all" if high is None else f"up to {high:.3g}"
    return f"above {low:.3g}" if high is None else f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def measurement_rows(e: "Evaluation") -> list[tuple[str, str, str, str]]:
    def line(name: str, estimate: object, meaning: str) -> tuple[str, str, str, str]:
        value, _, ends = str(estimate).partition("  ")
        return name, value, ends, meaning

    spread = f"median {e.l0.median}, 5 % {e.l0.p5}, 95 % {e.l0.p95}"
    rows = [line("L0", e.l0.mean, spread), line("FVU", e.fvu, "perfect, the mean")]
    if e.explained_variance is not None:
        rows.append(line("explained variance", e.explained_variance, "the mean, perfect"))
    if e.gap is not None:
        rows.append(line("FVU gap to training documents", e.gap.fvu_gap, f"trained: {e.gap.fvu_train.value:.4g}"))
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
        if e.loss.kl_median is not None and e.loss.kl_p99 is not None:
            rows.append(line("  median of tokens", f"{e.loss.kl_median:.4g}", f"99 % below {e.loss.kl_p99:.4g}"))
        if e.loss.fraction_of_mean is not None:
            rows.append(line("loss added / mean ablation", e.loss.fraction_of_mean, "perfect, the mean"))
        if e.loss.fraction_of_zero is not None:
            rows.append(line("loss added / zero ablation", e.loss.fraction_of_zero, "perfect, zero"))
    return rows


def feature_table(f: "FeatureTable") -> str:
    """One class in each line, best first."""
    title = (
        f"{f.model} at {f.site}: best latent of each labelled class, chosen on {f.n_train:,} tokens of training "
        f"documents, scored on {f.n_heldout:,} tokens of held-out ones"
    )
    table = titled(title, "feature", "class", "latent", "AUROC", "chosen at", "F1", "precision", "recall", "share")
    for row in sorted(f.rows, key=lambda row: -row.auroc):
        numbers = (row.auroc, row.auroc_train, row.f1, row.precision, row.recall, row.n_positive / row.n)
        table.add_row(row.feature, row.label, str(row.latent), *(f"{number:.3f}" for number in numbers))
    return rendered(table, *(f"left out: {s.feature} = {s.label}: {s.reason}" for s in f.left_out))
