"""A study as a page of Markdown, and as text for a terminal."""

from sparsight.studies.record import Cell, StudyRecord, Table, Verdict


def study_page(record: StudyRecord, figure: str = "figure.png") -> str:
    """The whole study for a reader: question, verdicts, drawing, tables, method, limits, how to run it.

    Args:
        record: The finished study.
        figure: Where the page finds the drawing.
    """
    lines = [f"# {record.name}", "", record.question, "", f"Asked by: {record.source}.", "", "## Verdict", ""]
    for verdict in record.verdicts:
        lines += _verdict(verdict)
    lines += [f"![{record.caption}]({figure})", "", record.caption, ""]
    if record.tables:
        lines += ["## Figures", ""]
    for table in record.tables:
        lines += _table(table)
    lines += ["## What was done", "", *(f"- {sentence}" for sentence in record.method), ""]
    lines += ["## What it cannot say", "", *(f"- {sentence}" for sentence in record.limits), ""]
    if record.notes:
        lines += ["## Notes", "", *(f"- {sentence}" for sentence in record.notes), ""]
    lines += ["## Run it", "", "```console", f"$ {record.command}", "```", ""]
    lines += [
        f"{'The fast form. ' if record.settings.get('fast') else ''}"
        f"sparsight {record.version}, seed {record.seed}, model {record.settings.get('model')}; "
        f"{sum(record.seconds.values()):.0f} s of computing, on a shared machine."
    ]
    return "\n".join(lines) + "\n"


def verdicts_text(record: StudyRecord) -> str:
    """Question, answers, reasons and effects, for a terminal."""
    lines = [record.question, f"(asked by {record.source})", ""]
    for verdict in record.verdicts:
        lines += [f"{verdict.question}", f"  {verdict.answer.upper()}: {verdict.because}"]
        lines += [f"    {e.name}: {e}  ({e.unit}; n = {e.n:,})" for e in verdict.effects]
        lines += [f"  What would change it: {verdict.would_change}", ""]
    return "\n".join(lines).rstrip()


def _verdict(verdict: Verdict) -> list[str]:
    effects = Table(
        title="",
        columns=["effect", "value", "95 % interval", "n", "unit"],
        rows=[
            [e.name, e.value, "exact" if e.low is None else f"[{e.low:.3g}, {e.high:.3g}]", e.n, e.unit]
            for e in verdict.effects
        ],
    )
    return [
        f"**{verdict.question}**",
        "",
        f"**{verdict.answer[0].upper()}{verdict.answer[1:]}.** {verdict.because}",
        "",
        *_grid(effects),
        "",
        f"*What would change it:* {verdict.would_change}",
        "",
    ]


def _table(table: Table) -> list[str]:
    return [f"**{table.title}**", "", *_grid(table), "", *([table.note, ""] if table.note else [])]


def _grid(table: Table) -> list[str]:
    head = "| " + " | ".join(_text(column) for column in table.columns) + " |"
    return [head, "|---" * len(table.columns) + "|", *("| " + " | ".join(map(_text, row)) + " |" for row in table.rows)]


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell.replace("|", "\\|").replace("\n", " ")
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.3g}"
