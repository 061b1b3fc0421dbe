"""The figures of a report, from the records of training, evaluation and comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsight.evaluation import Comparison, Evaluation
from sparsight.interpretation.figures import Series, line_chart
from sparsight.interpretation.page import Figure

ARM_NAMES = {
    "encoder": "encoder",
    "topk": "encoder top-k",
    "refit": "encoder top-k, refitted",
    "pursuit": "gradient pursuit",
}
_MOST_POINTS = 120  # more could not be told apart at the width of a figure


def training_figures(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Figure]:
    """FVU and dead latents against tokens seen.

    Args:
        metrics: Lines of `metrics.jsonl` by the name under which each dictionary is shown.
    """
    kept = {name: _thinned(lines) for name, lines in metrics.items() if len(lines) > 1}
    if not kept:
        return []

    def chart(key: str, label: str, factor: float, log: bool) -> Any:
        series = [
            Series(name=name, x=[r["tokens"] for r in lines], y=[factor * r[key] for r in lines], slot=slot)
            for slot, (name, lines) in enumerate(kept.items())
        ]
        return line_chart(series, x_label="tokens seen", y_label=label, y_log=log)

    return [
        Figure(
            title="Learning",
            caption="FVU of the training batches, on a logarithmic scale. A curve still falling at its end would "
            "gain from more tokens.",
            drawing=chart("fvu", "FVU", 1.0, True),
        ),
        Figure(
            title="Latents in use",
            caption="Mean number of active latents in a training batch. TopK holds it by construction; JumpReLU is "
            "pulled towards its target.",
            drawing=chart("l0", "L0", 1.0, False),
        ),
        Figure(
            title="Dying and revival",
            caption="Latents silent for as many tokens as the configuration calls dead. An auxiliary loss revives "
            "them.",
            drawing=chart("dead", "dead latents, %", 100.0, False),
        ),
    ]


def density_figure(evaluations: Mapping[str, Evaluation]) -> list[Figure]:
    """How often latents are active: a histogram of the logarithm of density, dead latents left out."""
    series = [
        Series(
            name=name,
            x=e.density.histogram_edges[:-1],
            y=e.density.histogram_counts,
            slot=slot,
            steps=True,
        )
        for slot, (name, e) in enumerate(evaluations.items())
        if sum(e.density.histogram_counts)
    ]
    if not series:
        return []
    shown = _without_empty_ends(series)
    dead = "; ".join(f"{name} {100 * e.density.dead_fraction:.1f} %" for name, e in evaluations.items())
    return [
        Figure(
            title="How often latents are active",
            caption=f"Latents by the share of held-out tokens in which they are active: −2 is one token in a hundred. "
            f"Never active, and so not drawn: {dead}.",
            drawing=line_chart(shown, x_label="log₁₀ of density", y_label="latents"),
        )
    ]


def coder_figures(comparisons: Mapping[str, Comparison]) -> list[Figure]:
    """FVU against realised L0 of each coder, one figure for each dictionary."""
    figures = []
    for name, comparison in comparisons.items():
        arms = list(dict.fromkeys(record.arm for record in comparison.arms))
        series = [_arm(comparison, arm, slot) for slot, arm in enumerate(arms)]
        ticks = sorted({r.k for r in comparison.arms if isinstance(r.k, int)})
        figures.append(
            Figure(
                title=f"Coders with the atoms of {name}",
                caption="The same atoms coded in several ways, at equal numbers of latents per token. Refitting "
                "changes values only; pursuit chooses latents too. Both axes are logarithmic. Whiskers: 95 % "
                "intervals over documents.",
                drawing=line_chart(
                    series,
                    x_label="L0",
                    y_label="FVU",
                    x_log=True,
                    y_log=True,
                    x_ticks=ticks if 2 <= len(ticks) <= 8 else None,
                ),
            )
        )
    return figures


def _arm(comparison: Comparison, arm: str, slot: int) -> Series:
    records = sorted((r for r in comparison.arms if r.arm == arm), key=lambda r: r.l0)
    low = [r.fvu.low if r.fvu.low is not None else r.fvu.value for r in records]
    high = [r.fvu.high if r.fvu.high is not None else r.fvu.value for r in records]
    return Series(
        name=ARM_NAMES.get(arm, arm),
        x=[r.l0 for r in records],
        y=[r.fvu.value for r in records],
        low=low,
        high=high,
        slot=slot % 6,
        marks=True,
    )


def _thinned(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Evenly spaced lines, the last one kept."""
    step = -(-len(lines) // _MOST_POINTS)
    return [line for i, line in enumerate(lines) if (len(lines) - 1 - i) % step == 0]


def _without_empty_ends(series: Sequence[Series]) -> list[Series]:
    """Histograms over the bins that at least one of them fills, when all share their edges."""
    if len({tuple(s.x) for s in series}) != 1:
        return list(series)
    filled = [i for i in range(len(series[0].x)) if any(s.y[i] for s in series)]
    part = slice(max(0, filled[0] - 1), filled[-1] + 2)
    return [Series(name=s.name, x=s.x[part], y=s.y[part], slot=s.slot, steps=True) for s in series]
