"""A comparison as text for a terminal. Layout only: every number was computed elsewhere."""

from typing import TYPE_CHECKING

from sparsight.evaluation.record import Estimate
from sparsight.evaluation.tables import rendered, titled

if TYPE_CHECKING:
    from rich.table import Table

    from sparsight.evaluation.comparison.record import ArmRecord, Comparison


def comparison_table(c: "Comparison") -> str:
    """One arm at one sparsity in each line: costs, then what the codes show, then the paired differences."""
    title = (
        f"{c.dictionary.architecture}, {c.dictionary.n_latents} latents; {c.place}: "
        f"{c.n_tokens:,} tokens of {c.n_documents:,} documents ({c.split}); own mean L0 {c.own_l0:.4g}"
    )
    table = titled(title, "k", "coder", "L0", "FVU", f"{c.level:.0%} interval", "overlap", "loss added", "seconds")
    for arm in c.arms:
        value, _, ends = str(arm.fvu).partition("  ")
        row = (str(arm.k), short(arm.arm), f"{arm.l0:.4g}", value, ends, brief(arm.jaccard), brief(arm.loss_added))
        table.add_row(*row, f"{arm.seconds:.2f}")
    gaps = titled("FVU, first minus second, same documents", "k", "first", "second", "difference", "interval")
    for difference in c.differences:
        value, _, ends = str(difference.fvu).partition("  ")
        gaps.add_row(str(difference.k), short(difference.first), difference.second, value, ends)
    notes = [f"note: {note}" for note in c.notes]
    notes += [f"k={arm.k}, {short(arm.arm)}: {arm.search}" for arm in c.arms if arm.search is not None]
    if c.no_loss_because:
        notes.append(f"no loss added: {c.no_loss_because}")
    return rendered(table, *_diagnostics(c), *_planted(c), *([gaps] if c.differences else []), *notes)


def _diagnostics(c: "Comparison") -> "list[Table]":
    """What the codes show, where it was measured."""
    shown = [(arm, arm.diagnostics) for arm in c.arms if arm.diagnostics is not None]
    if not shown:
        return []
    title = f"What the codes show (span and optimality on {shown[0][1].n_tokens:,} tokens)"
    columns = ("small: .05 .1 .2", "span", "- random", "- encoder", "KKT", "gap", "off/floor")
    table = titled(title, "k", "coder", *columns)
    for arm, d in shown:
        small = " ".join(f"{q.value:.3f}" for q in (d.small_weight_mass or {}).values())
        spans = [brief(d.span_overlap), signed(d.overlap_minus_random), signed(d.overlap_minus_encoder)]
        known = d.off_support_std is not None and d.interference_floor.value > 0
        over = f"{d.off_support_std.value / d.interference_floor.value:.2f}" if known else ""  # type: ignore[union-attr]
        gap = "" if d.duality_gap is None else f"{d.duality_gap.value:.1g}"
        table.add_row(str(arm.k), short(arm.arm), small, *spans, f"{d.kkt_residual.value:.1g}", gap, over)
    return [table]


def _planted(c: "Comparison") -> "list[Table]":
    """What the codes found of the truth, where it is known."""
    shown: list[ArmRecord] = [arm for arm in c.arms if arm.recall is not None]
    if not shown:
        return []
    table = titled("Planted latents", "k", "coder", "recall", "interval", "precision of small values", "of others")
    for arm in shown:
        value, _, ends = str(arm.recall).partition("  ")
        table.add_row(str(arm.k), short(arm.arm), value, ends, brief(arm.precision_small), brief(arm.precision_large))
    return [table]


def short(arm: str) -> str:
    """An arm's name, by its alias where that is needed to fit a line."""
    return "omp" if arm == "orthogonal_matching_pursuit" else arm


def brief(estimate: Estimate | None) -> str:
    """Its value alone, or nothing."""
    return "" if estimate is None else f"{estimate.value:.3g}"


def signed(estimate: Estimate | None) -> str:
    """Its value with its sign, or nothing."""
    return "" if estimate is None else f"{estimate.value:+.3f}"
