"""A feature report as tables for a terminal. Layout only."""

from sparsight.evaluation.features.report_record import FeatureReport, LatentSetRecord, RepresentationRecord
from sparsight.evaluation.features.site_map import SiteScore
from sparsight.evaluation.tables import rendered, titled

_WHERE = ("feature", "token alone", "represented", "home", "accuracy", "control", "unseen types", "MLP adds", "linear")
_HOW = ("feature", "spread", "erased", "carry 90 %", "shape", "R²", "mediated", "random", "turned, moved", "at random")
_LATENTS = (
    *("feature", "dictionary", "n", "accuracy", "dense", "AUROC", "F1"),
    *("mediated", "random", "best single AUROC"),
)


def report_table(report: FeatureReport) -> str:
    """Three parts: features with their representations, what interventions say, and latents."""
    title = (
        f"{report.model}: {len(report.features)} features at {len(report.sites)} sites, {report.n_tokens:,} tokens of "
        f"{report.n_documents:,} documents; balanced accuracy on held-out documents"
    )
    where = titled(title, *_WHERE)
    how = titled(
        "How: dimensions by spread, by erasure, by effect; shape; mediated fraction of one token's exchange", *_HOW
    )
    by_token = {f.name: f.token_identity for f in report.features}
    for r in report.representations:
        where.add_row(r.feature, f"{by_token[r.feature]:.3f}", *_where(r))
        how.add_row(r.feature, *_how(r))
    parts: list[object] = [where, how]
    if report.latent_sets:
        latents = titled("Latents: the smallest set that is as good as 95 % of a dense probe", *_LATENTS)
        for s in report.latent_sets:
            latents.add_row(*_latents(s, report))
        parts.append(latents)
    parts += [f"left out: {name}: {why}" for name, why in report.left_out.items()]
    parts += [f"note: {note}" for note in report.notes]
    return rendered(*parts, width=140)  # type: ignore[arg-type]  # tables and lines, as made above


def home_score(r: RepresentationRecord) -> SiteScore:
    """The score at the home site."""
    return next(s for s in r.sites if s.site == r.home)


def linear_or_not(r: RepresentationRecord) -> str:
    """The verdict in a word or two; empty where there is none."""
    if r.linearity is None:
        return ""
    if r.linearity.verdict == "linear within" and r.linearity.within is not None:
        return f"in each {r.linearity.within.given}"
    return {"linear": "yes", "not linear": "no"}.get(r.linearity.verdict, r.linearity.verdict)


def _where(r: RepresentationRecord) -> list[str]:
    here = home_score(r)
    return [
        "yes" if r.represented else "no",
        r.home,
        f"{here.accuracy.value:.3f}",
        _number(here.control),
        _number(None if r.heldout_types is None else r.heldout_types.accuracy.value),
        _number(None if r.linearity is None else r.linearity.home.gain.value),
        linear_or_not(r),
    ]


def _how(r: RepresentationRecord) -> list[str]:
    d, g, m, t = r.dimension, r.geometry, r.mediation, r.rotation or r.moves_within or r.moves
    shape, r2 = "", ""
    if g is not None:
        periods = f" of {', '.join(f'{p:g}' for p in g.periods)}" if g.periods else ""
        shape = g.family + periods
        chosen = next((f for f in g.families if f.family == g.family), None)
        r2 = _number(None if chosen is None or chosen.r2 is None else chosen.r2.value)
    return [
        "" if d.participation is None else f"{d.participation:.1f}",
        str(d.leace_rank),
        "" if d.mediated_rank is None else str(d.mediated_rank),
        shape,
        r2,
        "" if m is None else f"{m.ranks[-1].fraction.value:.2f} in {m.ranks[-1].rank}",
        "" if m is None else f"{m.random:.2f}",
        "" if t is None else f"{t.moved.value:.1%}",
        "" if t is None else f"{t.random:.1%}",
    ]


def _latents(s: LatentSetRecord, report: FeatureReport) -> list[str]:
    singles = [x.auroc for x in report.latents if (x.dictionary, x.feature) == (s.dictionary, s.feature)]
    return [
        s.feature,
        s.dictionary,
        f"{len(s.latents)}{'' if s.enough else ' (short)'}",
        f"{s.accuracy.value:.3f}",
        f"{s.dense_accuracy:.3f}",
        f"{s.auroc:.3f}",
        f"{s.f1:.3f}",
        _number(None if s.mediated is None else s.mediated.value),
        _number(s.mediated_by_random),
        f"{sum(singles) / len(singles):.3f}" if singles else "",
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
