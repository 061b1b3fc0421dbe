"""Tables and panels of the study of weakly active latents."""

from collections.abc import Mapping
from typing import Any

from sparsight.evaluation import Comparison
from sparsight.evaluation.record import Estimate
from sparsight.studies.deciding import effect_of, mean_effect
from sparsight.studies.low_activations_measured import FRACTIONS, TOLD
from sparsight.studies.record import Cell, Effect, Line, Panel, Table

QUARTERS = ("weakest quarter", "second", "third", "strongest quarter")


def planted_mean(draws: list[Any], coder: str, what: str, i: int) -> Effect:
    return mean_effect([d[coder][what][i] for d in draws], coder, "share, over draws")


def paired_table(paired: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = [
        [name, k, *(str(effect_of(Estimate(**e), "", 1, "")) for e in f["fvu"])]
        for name, by_k in paired.items()
        for k, f in by_k.items()
    ]
    return Table(
        title="FVU with the thresholded encoder's L0 in every token",
        columns=["dictionary", "mean L0", "thresholded", "thresholded, refitted", "pursuit"],
        rows=rows,
    )


def planted_table(planted: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for name, draws in planted.items():
        for coder in draws[0]:
            mass = [str(planted_mean(draws, coder, "mass", i)) for i in range(3)]
            precision = [planted_mean(draws, coder, "precision", i).value for i in range(4)]
            rows.append([name, coder, *mass, *precision])
    return Table(
        title=f"Planted signals (512 atoms in 64 d, k 10, noise 0.05), {len(next(iter(planted.values())))} draws",
        columns=["setting", "coder", *(f"below {q}" for q in FRACTIONS), *(f"precision, {q}" for q in QUARTERS)],
        rows=rows,
        note="Below q: share of active values under q times their latent's 99th percentile. Quarters are of "
        "these ratios. "
        f"Chance: {10 / 512:.3f}.",
    )


def small_table(small: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = [
        [name, found["l0"], *(str(effect_of(Estimate(**e), "", 1, "")) for e in found["mass"])]
        for name, found in small.items()
    ]
    n = next(iter(small.values()))["n_documents"]
    return Table(
        title=f"Small values on held-out activations, intervals over {n} documents",
        columns=["coder", "L0", *(f"share below {q}" for q in FRACTIONS)],
        rows=rows,
    )


def label_table(labels: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = [
        [name, found["n_latents"], *(str(effect_of(Estimate(**e), "", 1, "")) for e in found["precision"]),
         found["chance"]]
        for name, found in labels.items()
    ]  # fmt: skip
    return Table(
        title="Precision against labels, by quarter of a latent's values on held-out documents",
        columns=["coder", "questions", *QUARTERS, "chance"],
        rows=rows,
        note=f"Questions: classes of labels that some latent tells with AUROC of {TOLD} or more on training "
        "documents; each "
        "coder's own best latents. Chance: share of the class among the tokens asked.",
    )


def sweep_table(name: str, c: Comparison) -> Table:
    rows: list[list[Cell]] = [
        [str(a.k), a.arm, a.l0, str(a.fvu), "" if a.loss_added is None else str(a.loss_added)] for a in c.arms
    ]
    return Table(
        title=f"{name} dictionary at re-matched L0: {c.n_tokens:,} tokens of {c.n_documents} documents",
        columns=["k", "arm", "L0", "FVU", "loss added, nats"],
        rows=rows,
        note=c.no_loss_because or "",
    )


def quarter_panel(planted: Mapping[str, Any], labels: Mapping[str, Any]) -> Panel:
    draws = next(iter(planted.values()))
    short = ["1 (weakest)", "2", "3", "4"]
    lines = [
        Line(name=f"planted, {coder}", x=list(short),
             y=[planted_mean(draws, coder, "precision", i).value for i in range(4)])
        for coder in ("encoder, threshold", "pursuit")
    ]  # fmt: skip
    for name, found in labels.items():
        es = [Estimate(**e) for e in found["precision"]]
        lines.append(Line(name=f"labels, {name}", x=list(short), y=[e.value for e in es],
                          low=[e.value if e.low is None else e.low for e in es],
                          high=[e.value if e.high is None else e.high for e in es]))  # fmt: skip
    return Panel(title="right, by size of the value", x_label="quarter", y_label="precision", lines=lines)


def mass_panel(planted: Mapping[str, Any], small: Mapping[str, Any]) -> Panel:
    lines = [
        Line(name=f"planted, {coder}", x=list(FRACTIONS),
             y=[planted_mean(next(iter(planted.values())), coder, "mass", i).value for i in range(3)])
        for coder in ("encoder, threshold", "pursuit")
    ]  # fmt: skip
    lines += [Line(name=n, x=list(FRACTIONS), y=[e["value"] for e in f["mass"]]) for n, f in small.items()]
    return Panel(title="small values", x_label="below this share of the latent's 99th percentile",
                 y_label="share of active values", lines=lines)  # fmt: skip


def sweep_panel(c: Comparison) -> Panel:
    lines = []
    for name in dict.fromkeys(a.arm for a in c.arms):
        arms = sorted((a for a in c.arms if a.arm == name), key=lambda a: a.l0)
        lines.append(Line(name=name, x=[a.l0 for a in arms], y=[a.fvu.value for a in arms],
                          low=[a.fvu.value if a.fvu.low is None else a.fvu.low for a in arms],
                          high=[a.fvu.value if a.fvu.high is None else a.fvu.high for a in arms]))  # fmt: skip
    return Panel(title="JumpReLU dictionary, re-matched L0", x_label="L0", y_label="FVU", lines=lines, y_log=True)
