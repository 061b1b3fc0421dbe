"""The page of a suite: its frontiers, its layers and all its members, in one HTML file."""

from pathlib import Path
from typing import Any

from sparsight.formats.architectures import ARCHITECTURES
from sparsight.interpretation.figures import Series, line_chart
from sparsight.interpretation.frame import asset, rendered_page, write_page
from sparsight.interpretation.page import Figure
from sparsight.interpretation.report import number
from sparsight.suites.index import Suite, SuiteMember

REPORT_FILE = "report.html"
_COLOURS = 6


def write_suite_report(path: str | Path, made: Suite) -> Path:
    """Write the page; it opens anywhere, offline, and never asks for another file. Whole or not at all."""
    return write_page(path, render(made))


def render(made: Suite) -> str:
    """The page as one string of HTML."""
    record = made.record
    return rendered_page(
        asset("suite.html", "sparsight.suites"),
        "suite",
        f"{len(record.members)} {ARCHITECTURES[record.architecture].__name__} dictionaries of {record.model}",
        {"number": number},
        record=record,
        has_loss=any(member.measured.loss_added is not None for member in record.members),
        layers=layer_figures(record.members),
        sites=site_figures(record.members),
        facts=_facts(made),
    )


def site_figures(members: list[SuiteMember]) -> dict[str, list[Figure]]:
    """For each site FVU against L0, and the added loss against L0, one line for each width."""
    figures: dict[str, list[Figure]] = {}
    for site in dict.fromkeys(member.site for member in members):
        here = [member for member in members if member.site == site]
        figures[site] = [_frontier(site, here, "fvu", "FVU")]
        if all(member.measured.loss_added is not None for member in here):
            figures[site].append(_frontier(site, here, "loss_added", "loss added, nats per token"))
    return figures


def _frontier(site: str, members: list[SuiteMember], key: str, label: str) -> Figure:
    series = []
    for slot, width in enumerate(dict.fromkeys(member.n_latents for member in members)):
        line = sorted((m.measured for m in members if m.n_latents == width), key=lambda measured: measured.l0)
        values = [getattr(m, key) for m in line]
        ends = [
            [
                value if end is None else end
                for value, end in zip(values, (getattr(m, key + e) for m in line), strict=True)
            ]
            for e in ("_low", "_high")
        ]
        x, low, high = [m.l0 for m in line], ends[0], ends[1]
        name, slot = f"{width:,} latents", slot % _COLOURS
        series.append(Series(name=name, x=x, y=values, low=low, high=high, slot=slot, marks=True))
    asked = sorted({float(member.target_l0) for member in members})
    ticks = asked if 2 <= len(asked) <= 8 else None
    drawing = line_chart(series, x_label="L0", y_label=label, x_log=True, x_ticks=ticks)
    return Figure(title=f"{_capital(label)} at {site}", caption="", drawing=drawing)


def layer_figures(members: list[SuiteMember]) -> list[Figure]:
    """FVU and added loss along the layers: one line per kind of site, at the widest width and the middle sparsity."""
    width = max(member.n_latents for member in members)
    sparsities = sorted({member.target_l0 for member in members})
    sparsity = sparsities[len(sparsities) // 2]
    chosen = [m for m in members if m.n_latents == width and m.target_l0 == sparsity and m.layer is not None]
    if len({member.layer for member in chosen}) < 2:
        return []
    figures = []
    for key, label in (("fvu", "FVU"), ("loss_added", "loss added, nats per token")):
        with_value = [m for m in chosen if getattr(m.measured, key) is not None]
        if not with_value:
            continue
        kinds = list(dict.fromkeys(member.kind for member in with_value))
        series = [_along_layers([m for m in with_value if m.kind == kind], key, i) for i, kind in enumerate(kinds)]
        ticks = sorted({m.layer for m in with_value if m.layer is not None})
        drawing = line_chart(series, x_label="layer", y_label=label, x_ticks=ticks if len(ticks) <= 16 else None)
        caption = f"Dictionaries of {width:,} latents asked for an L0 of {sparsity:g}. Whiskers: 95 % intervals."
        figures.append(Figure(title=f"{_capital(label)} along the layers", caption=caption, drawing=drawing))
    return figures


def _along_layers(members: list[SuiteMember], key: str, slot: int) -> Series:
    def ends(which: str, m: SuiteMember) -> Any:
        end = getattr(m.measured, key + which)
        return getattr(m.measured, key) if end is None else end

    return Series(
        name=members[0].kind,
        x=[m.layer for m in members if m.layer is not None],
        y=[getattr(m.measured, key) for m in members],
        low=[ends("_low", m) for m in members],
        high=[ends("_high", m) for m in members],
        slot=slot % _COLOURS,
        marks=True,
    )


def _facts(made: Suite) -> dict[str, str]:
    s, training = made.record.settings, made.record.settings["training"]
    measured = made.record.members[0].measured
    return {
        "Model": made.record.model,
        "Sites": ", ".join(s["sites"]),
        "Activations": f"{s['n_tokens']:,} stored per site in {s['dtype']}, contexts of {s['context']} tokens",
        "Tokens": made.record.token_policy,
        "Training": f"{training['n_tokens']:,} tokens per member, batches of {training['batch_size']:,}, peak rate "
        f"{training['lr']:g}; activations centred and scaled to unit variance, folded into the weights",
        "Measured on": f"{measured.n_tokens:,} tokens of {measured.n_documents:,} held-out documents",
        "Seed": str(s["seed"]),
    }


def _capital(label: str) -> str:
    """The quantity of an axis, without its unit, as a title starts."""
    quantity = label.partition(",")[0]
    return quantity[0].upper() + quantity[1:]
