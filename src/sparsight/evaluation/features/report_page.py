"""A feature report as one HTML page, complete in itself: three columns of features, representations and latents."""

from collections.abc import Mapping

from markupsafe import Markup

from sparsight.evaluation.features.report_record import FeatureReport, RepresentationRecord
from sparsight.evaluation.features.report_table import home_score, linear_or_not
from sparsight.evaluation.features.site_map import SiteScore
from sparsight.models import Site

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--line:#d5dae0;--soft:#f4f6f8;--mark:#1f5fa8}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--paper:#14171a;--line:#353b42;--soft:#1c2126;--mark:#78b0ee}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
body{max-width:1180px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em}h2{font-size:1.15em;margin:2em 0 .4em;border-top:1px solid var(--line);padding-top:1em}
h3{font-size:.8em;text-transform:uppercase;letter-spacing:.06em;margin:0 0 .4em;opacity:.7}
.three{display:grid;grid-template-columns:1fr 1.7fr 1.3fr;gap:1.5em}
@media(max-width:800px){.three{grid-template-columns:1fr}}
.three>section{min-width:0}dl{margin:0}dt{opacity:.7;font-size:.85em}dd{margin:0 0 .4em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9em}
th,td{text-align:right;padding:.15em .5em;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
.wide{overflow-x:auto}svg text{font:11px system-ui,sans-serif;fill:var(--ink)}.cell{stroke:var(--paper)}
svg .ring{fill:none;stroke:var(--line)}svg .dot{fill:var(--mark)}nav a{margin-right:.8em;white-space:nowrap}
"""

_SIZE = 26


def report_page(report: FeatureReport) -> str:
    """The page."""
    head = Markup(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>{0}</title><style>{1}</style><h1>{0}</h1>'
    )
    page = head.format(f"Features in {report.model}", Markup(_STYLE))
    page += Markup(
        "<p>{} features looked for at {} sites, in {} tokens of {} documents. Three things are kept apart: a "
        "<b>feature</b> is a property of the text; a <b>representation</b> is what the model does with it; a "
        "<b>latent</b> is a coordinate of a dictionary. What ties them is measured. All numbers are of held-out "
        "documents, with {:.0%} intervals over documents.</p>"
    ).format(len(report.features), len(report.sites), f"{report.n_tokens:,}", f"{report.n_documents:,}", report.level)
    for note in [*report.notes, *(f"left out: {name}: {why}" for name, why in report.left_out.items())]:
        page += Markup("<p><em>{}</em></p>").format(note)
    page += Markup("<nav>")
    for r in report.representations:
        page += Markup('<a href="#{0}">{0}</a>').format(r.feature)
    page += Markup("</nav><h2>Where: accuracy of a linear probe</h2>") + _overview(report)
    for r in report.representations:
        page += _section(report, r)
    return str(page + Markup("</html>\n"))


def _overview(report: FeatureReport) -> Markup:
    """One row for each feature, one cell for each site."""
    left, top = 130, 92
    columns = [s.site for s in report.representations[0].sites]
    drawn = Markup("")
    for i, site in enumerate(columns):
        x = left + 20 * i + 14
        drawn += Markup('<text x="{0}" y="{1}" transform="rotate(-60 {0} {1})">{2}</text>').format(x, top - 6, site)
    for row, r in enumerate(report.representations):
        y = top + 18 * row
        drawn += Markup('<text x="0" y="{}">{}</text>').format(y + 13, r.feature)
        for i, s in enumerate(r.sites):
            drawn += _cell(left + 20 * i, y, 20, 18, s, r)
    width, height = left + 20 * len(columns) + 40, top + 18 * len(report.representations) + 4
    return Markup(
        '<div class="wide"><svg width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" '
        'aria-label="Accuracy of a linear probe, by feature and site">{2}</svg></div>'
    ).format(width, height, drawn)


def site_map_figure(r: RepresentationRecord) -> Markup:
    """Layers across, kinds of site down; darker is better told; the home site is framed."""
    sites = [(Site.parse(s.site), s) for s in r.sites]
    kinds = list(dict.fromkeys(site.kind for site, _ in sites))
    layers = sorted({site.layer for site, _ in sites if site.layer is not None})
    at = {layer: i + 1 for i, layer in enumerate(layers)}
    left, drawn = 74, Markup("")
    for layer, i in at.items():
        drawn += Markup('<text x="{}" y="11">{}</text>').format(left + _SIZE * i + 9, layer)
    for row, kind in enumerate(kinds):
        drawn += Markup('<text x="0" y="{}">{}</text>').format(16 + _SIZE * row + 17, kind)
    for site, s in sites:
        column = at[site.layer] if site.layer is not None else 0
        drawn += _cell(left + _SIZE * column, 16 + _SIZE * kinds.index(site.kind), _SIZE, _SIZE, s, r)
    width, height = left + _SIZE * (len(layers) + 1) + 2, 18 + _SIZE * len(kinds)
    return Markup(
        '<svg width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" aria-label="Map of {2}: layers across, '
        'kinds of site down">{3}</svg>'
    ).format(width, height, r.feature, drawn)


def _cell(x: int, y: int, width: int, height: int, s: SiteScore, r: RepresentationRecord) -> Markup:
    tip = f"{r.feature} at {s.site}: {s.accuracy}"
    if s.selectivity is not None:
        tip += f"; control {s.control:.3f}, selectivity {s.selectivity}"
    opacity = max(0.04, min(1.0, s.accuracy.value) ** 2)
    frame = Markup(' style="stroke:var(--ink);stroke-width:1.5"') if s.site == r.home else Markup("")
    return Markup(
        '<rect class="cell" x="{}" y="{}" width="{}" height="{}" fill="var(--mark)" fill-opacity="{:.2f}"{}>'
        "<title>{}</title></rect>"
    ).format(x + 1, y + 1, width - 2, height - 2, opacity, frame, tip)


def circle_figure(name: str, points: list[tuple[str, float, float]], period: float) -> Markup:
    """Held-out class means in the plane of their circle; on the ring they would be as far out as in training."""
    size, middle = 230.0, 115.0
    reach = max([1.0, *(abs(v) for _, x, y in points for v in (x, y))])
    scale = 85 / reach
    drawn = Markup('<circle class="ring" cx="{0}" cy="{0}" r="{1:.1f}"/>').format(middle, scale)
    for label, x, y in points:
        px, py = middle + scale * x, middle - scale * y
        drawn += Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>').format(
            px, py, label
        )
        drawn += Markup('<text x="{:.1f}" y="{:.1f}">{}</text>').format(px + 5, py + 4, label[:3])
    return Markup(
        '<svg width="{0}" height="{0}" viewBox="0 0 {0} {0}" role="img" aria-label="{1} on a circle of period {2:g}">'
        "{3}</svg>"
    ).format(size, name, period, drawn)


def _section(report: FeatureReport, r: RepresentationRecord) -> Markup:
    f = next(f for f in report.features if f.name == r.feature)
    feature = _pairs(
        {
            "what": f.description or "-",
            "kind": f"{f.kind}, {len(f.classes)} classes",
            "judged on": f"{f.n_judge:,} tokens of {f.n_documents:,} documents, {f.n_token_types:,} token types",
            "token alone": f"{f.token_identity:.3f}",
            **{f"left out: {name}": why for name, why in f.left_out.items()},
        }
    )
    return Markup(
        '<h2 id="{}">{}</h2><div class="three"><section><h3>Feature</h3>{}</section><section><h3>Representation</h3>{}'
        "</section><section><h3>Latents</h3>{}</section></div>"
    ).format(r.feature, r.feature, feature, _representation(report, r), _latents(report, r.feature))


def _representation(report: FeatureReport, r: RepresentationRecord) -> Markup:
    g, d, m, t = r.geometry, r.dimension, r.mediation, r.rotation
    said = {
        "represented": f"{'yes' if r.represented else 'no'}: {r.because}",
        "home": f"{r.home}, accuracy {home_score(r).accuracy}",
        "dimensions": f"{'-' if d.participation is None else f'{d.participation:.2f}'} by spread, {d.leace_rank} by "
        f"erasure, {'-' if d.mediated_rank is None else d.mediated_rank} carry 90 % of the effect",
    }
    if r.linearity is not None:
        said["linear"] = f"{linear_or_not(r)}: {r.linearity.because}"
    if r.heldout_types is not None:
        said["token types never seen"] = f"{r.heldout_types.accuracy} of {r.heldout_types.n_types} types"
    if g is not None:
        periods = f" of period {', '.join(f'{p:g}' for p in g.periods)}" if g.periods else ""
        within = (
            f", within each {g.given} (arrangement shared: {g.shared:.2f})" if g.given and g.shared is not None else ""
        )
        said["shape"] = f"{g.family}{periods}{within}"
    if m is not None:
        curve = ", ".join(f"{k.fraction.value:.2f} in {k.rank}" for k in m.ranks)
        said["exchanged at one token"] = (
            f"{m.full} nats; {curve}; all else {m.complement.value:.2f}; random {m.random:.2f}"
        )
    if t is not None:
        said["turned"] = (
            f"{t.moved} of answers move as many steps ({t.n_prompts} prompts, circles of "
            f"{', '.join(f'{p:g}' for p in t.periods)}); random planes {t.random:.3f}; circles of another order, "
            f"in that order, {t.shuffled:.3f}; with 1, 2, ... circles {', '.join(f'{v:.2f}' for v in t.by_circles)}"
        )
    for name, moved in (("moved", r.moves), ("moved within", r.moves_within)):
        if moved is not None:
            said[name] = (
                f"{moved.moved} of next tokens speak of the class moved to along {moved.rank} directions "
                f"({moved.family}, {moved.n_prompts} texts); all means {moved.by_means:.3f}, random {moved.random:.3f}"
                + "".join(f"; {d.times:g} times as far {d.moved:.3f}, random {d.random:.3f}" for d in moved.doses)
            )
    said |= {f"no {name}": why for name, why in r.not_measured.items()}
    drawn = _pairs(said) + site_map_figure(r)
    if r.feature in report.points and g is not None:
        circle = next(f for f in g.families if f.family == "circle")
        drawn += circle_figure(r.feature, report.points[r.feature], circle.periods[0])
    if g is not None and g.families:
        drawn += Markup("<table><tr><th>shape<th>R²<th>share<th>periods")
        for family in g.families:
            drawn += Markup("<tr><td>{}<td>{}<td>{}<td>{}").format(
                family.family,
                "" if family.r2 is None else f"{family.r2.value:.3f}",
                "" if family.share is None else f"{family.share:.3f}",
                ", ".join(f"{p:g}" for p in family.periods),
            )
        drawn += Markup("</table>")
    drawn += _kinds(r)
    drawn += Markup("<table><tr><th>probe<th>accuracy<th>selectivity")
    for p in r.probes:
        name = p.probe if p.k is None else f"{p.probe}, k={p.k}"
        drawn += Markup("<tr><td>{}<td>{:.3f}<td>{}").format(
            name, p.accuracy.value, "" if p.selectivity is None else f"{p.selectivity.value:.3f}"
        )
    return drawn + Markup("</table>")


def _kinds(r: RepresentationRecord) -> Markup:
    """Where a feature is not linear: the probes within each class of the other feature, and at other sites."""
    if r.linearity is None or r.linearity.verdict == "linear":
        return Markup("")
    drawn, within = Markup(""), r.linearity.within
    if within is not None:
        shared = "" if within.shared is None else f" (arrangement shared: {within.shared:.2f})"
        drawn += Markup("<table><tr><th>{}{}<th>one linear probe<th>one for each<th>MLP").format(within.given, shared)
        for k in within.kinds:
            row = "<tr><td>{}<td>{:.3f}<td>{:.3f}<td>{:.3f}"
            drawn += Markup(row).format(k.kind, k.pooled, k.within, k.mlp)
        drawn += Markup("</table>")
    drawn += Markup("<table><tr><th>site<th>linear<th>MLP<th>MLP adds<th>verdict")
    for s in (r.linearity.home, *r.linearity.elsewhere):
        row = "<tr><td>{}<td>{:.3f}<td>{:.3f}<td>{}<td>{}"
        drawn += Markup(row).format(s.site, s.linear.value, s.mlp.value, s.gain, s.verdict)
    return drawn + Markup("</table>")


def _latents(report: FeatureReport, feature: str) -> Markup:
    drawn = Markup("")
    for s in report.latent_sets:
        if s.feature != feature:
            continue
        drawn += _pairs(
            {
                f"{s.dictionary} at {s.site}": ", ".join(map(str, s.latents)) + ("" if s.enough else " (not enough)"),
                "accuracy, AUROC, F1": f"{s.accuracy}, {s.auroc:.3f}, {s.f1:.3f}; activations {s.dense_accuracy:.3f}",
                "mediated": s.no_mediation if s.mediated is None else f"{s.mediated}; random {s.mediated_by_random}",
            }
        )
    singles = [x for x in report.latents if x.feature == feature]
    if singles:
        drawn += Markup("<table><tr><th>class<th>latent<th>AUROC<th>F1")
        for x in singles:
            drawn += Markup("<tr><td>{}<td>{}<td>{:.3f}<td>{:.3f}").format(x.label, x.latent, x.auroc, x.f1)
        drawn += Markup("</table>")
    links = [link for link in report.links if link.source.split(" ")[1] == feature]
    if links:
        drawn += Markup("<h3>Measured links</h3><table><tr><th>from<th>to<th>measure<th>value")
        for link in links:
            drawn += Markup("<tr><td>{}<td>{}<td>{}<td>{:.3f}").format(
                link.source, link.target, link.measure, link.value
            )
        drawn += Markup("</table>")
    return drawn or Markup("<p>No dictionary was given.</p>")


def _pairs(said: Mapping[str, object]) -> Markup:
    body = Markup("").join(Markup("<dt>{}<dd>{}").format(name, value) for name, value in said.items())
    return Markup("<dl>{}</dl>").format(body)
