"""Records of studies as text for a terminal."""

from typing import TYPE_CHECKING

from sparsight.evaluation.tables import rendered
from sparsight.studies.demo_record import ENOUGH

if TYPE_CHECKING:
    from rich.table import Table

    from sparsight.studies.demo import DemoResult


def demo_table(result: "DemoResult") -> str:
    """Dictionaries, coders, features, claims, and where the page is."""
    record = result.record
    found = ["This folder held a finished demo with these settings; nothing was computed anew."] if result.found else []
    return rendered(
        *found,
        _dictionaries(result),
        _coders(result),
        _features(result),
        _claims(result),
        f"Took {sum(record.seconds.values()):.0f} s. The page: {result.report}",
    )


def _table(title: str, *columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _dictionaries(result: "DemoResult") -> "Table":
    evaluations = result.record.evaluations
    first = next(iter(evaluations.values()))
    title = f"On {first.n_tokens:,} held-out activations of {first.model} at {first.site}, with 95 % intervals"
    table = _table(title, "dictionary", "L0", "FVU", "dead", "loss added / mean ablation's")
    for name, e in evaluations.items():
        share = e.loss.fraction_of_mean if e.loss is not None else None
        dead = f"{e.density.dead_fraction:.1%}"
        table.add_row(name, str(e.l0.mean), str(e.fvu), dead, "not measured" if share is None else str(share))
    return table


def _coders(result: "DemoResult") -> "Table":
    comparison = result.record.comparison
    arms = list(dict.fromkeys(arm.arm for arm in comparison.arms))
    table = _table("FVU of coders with the atoms of TopK, at equal L0", "latents per token", *arms)
    fvu = {(arm.arm, arm.k): arm.fvu for arm in comparison.arms}
    for k in dict.fromkeys(arm.k for arm in comparison.arms):
        table.add_row(str(k), *(str(fvu[arm, k]) for arm in arms))
    return table


def _features(result: "DemoResult") -> "Table":
    tables = result.record.features
    title = (
        f"Labelled features: classes (of {ENOUGH} held-out tokens or more) that a latent tells with AUROC 0.95 or more"
    )
    table = _table(title, "feature", *(f"{name}: classes, best latent" for name in tables))
    told: dict[str, dict[str, str]] = {}
    for name, features in tables.items():
        for feature in dict.fromkeys(row.feature for row in features.rows):
            rows = [row for row in features.rows if row.feature == feature and row.n_positive >= ENOUGH]
            found = [row for row in rows if row.auroc >= 0.95]
            if found:
                best = max(found, key=lambda row: row.auroc)
                what = "" if best.label == "yes" else f" for {best.label}"
                told.setdefault(feature, {})[name] = (
                    f"{len(found)} of {len(rows)}, #{best.latent}{what} {best.auroc:.3f}"
                )
    for feature, cells in told.items():
        table.add_row(feature, *(cells.get(name, "none") for name in tables))
    return table


def _claims(result: "DemoResult") -> "Table":
    table = _table("What the demo is meant to show", "claim", "measured", "")
    for claim in result.record.claims:
        table.add_row(claim.text, f"{claim.value:.4g}", "yes" if claim.holds else "NO")
    return table
