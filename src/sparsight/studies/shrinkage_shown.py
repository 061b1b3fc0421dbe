"""How the study of shrinkage shows what it measured: tables, panels, and the explanation in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsight.studies.deciding import mean_effect
from sparsight.studies.record import Cell, Line, Panel, Table
from sparsight.studies.shrinkage_measured import MEASURES

Found = Sequence[Mapping[str, Any]]

CAPTION = (
    "The first formula against the right one, with every ReLU dictionary and the others; what each measure says of "
    "projections, which no scalar improves; r and the norm ratio of each architecture and of each coder at equal L0; "
    "by how much refitting raises ReLU's values, in ranges of the value; r by the norm of the activation. Whiskers "
    "are 95 % intervals over seeds."
)

WHY_IT_LOOKED_RIGHT = [
    "Why the wrong formula looked right. Let a = E|x|^2, h = E|x_hat|^2, c = E<x, x_hat>, m = E|x - x_hat|^2 = a + h "
    "- 2c. The scale that repairs x_hat is 1 / r with r = h / c. At that scale the loss is l = a - c^2 / h, so r = "
    "sqrt(h / (a - l)) as well. The first version wrote the plain loss m where the repaired loss l belongs. Since a "
    "- m = 2c - h, what came out is sqrt(r / (2 - r)): a function of r alone, rising with it, 1 where r is 1, and of "
    "slope 1 there. It exceeds r by (1 - r)^2 / 2 and terms of higher order: by 0.0012 where r = 0.95, and by 0.08 "
    "where r = 0.5. A figure drawn with it shows the right dictionaries as shrunk, in the right order, and those "
    "that are not shrunk at exactly 1.",
    "The two one-sided scales, c / h for the output and c / a for the input, are reciprocal only where x_hat is a "
    "multiple of x: their product is rho^2. Scaling x towards x_hat is no measure of shrinkage: the nearest multiple "
    "of x is small whenever x_hat points elsewhere.",
    "Why r is 1 without an L1 penalty on values. Doubling encoder weights and offsets (for Gated: magnitudes alone; "
    "for JumpReLU: thresholds too) doubles all values and leaves every gate as it is. Where that costs nothing but "
    "reconstruction, training rests where no scalar helps: c = h. Under a penalty l1 on values it rests where c - h "
    "= l1 E sum f / 2, so 1 - r = l1 E sum f / (2 c). A lasso over given atoms, of objective |x - x_hat|^2 / 2 + "
    "penalty sum f, has c - h = penalty E sum f exactly. Matching pursuit, which never revises a value, may "
    "overshoot: r above 1.",
]

LIMITS = [
    "One model and one site; short training. r of an architecture depends on L0: the ladder gives ReLU's at others.",
    "r says whether one scalar helps. A code may be wrong in many ways and have r = 1.",
    "Refitted values are taken as what values should be; where active atoms are nearly dependent they are noisy, "
    "which lowers what an amount or a factor can account for.",
    "The figure of the first version was drawn from other models; here it is redrawn for this one.",
]


def method(seeds: int, n_trained: int, n_measured: int, k: int, margin: float) -> list[str]:
    """What was done, and the rules."""
    return [
        f"Five architectures of equal width and L0 = {k}, trained together on {n_trained:,} activations for each of "
        f"{seeds} seeds; measured on {n_measured:,} held-out activations, about b_dec. ReLU and Gated reach L0 by a "
        "controller of their penalty, JumpReLU by its target, TopK and BatchTopK by construction.",
        "Planted: 64 random unit atoms in 32 dimensions, 4 active with values 0.2 + Exp(1), noise 0.05; values of "
        "latents that found a true atom (cosine above 0.9) against the true ones, where both are active.",
        "Coders write held-out activations in the atoms of the TopK dictionaries; the lasso's penalty is bisected to "
        "the same L0 on training documents.",
        "The minimiser is found by search on E|x_hat / g - x|^2, for which no formula is used.",
        "Decided by, fixed before the full run and after a pilot of one seed: shrunk means that the whole interval "
        f"of 1 - r is above {margin}, not shrunk that it is within {margin}; a figure reads differently where the "
        f"formulas differ by {margin}; a penalty's price explains shrinkage if predicted / measured is within 0.8 to "
        "1.25; a kind of shrinkage is the one that accounts for more of the squared error of values; scales make up "
        "a loss if they make up more than half. Intervals are Student's, over seeds.",
    ]


def tables(
    cases: Found, exact: Mapping[str, float], planted: Found, found: Found, ladder: Mapping[str, Any]
) -> list[Table]:
    """Everything the verdicts rest on."""
    return [_cases(cases), _trained(found), _where(found), _kind(found, planted), _ladder(ladder), _coders(found),
            Table(title="Identities: largest deviation over 50 random pairs, in double precision",
                  columns=["identity", "deviation"], rows=[[k, v] for k, v in exact.items()])]  # fmt: skip


def panels(cases: Found, found: Found, ladder: Mapping[str, Any]) -> list[Panel]:
    """The drawing."""
    return [_formulas(found, ladder), _projections(cases), _architectures(found), _coder_panel(found), _raised(found),
            _norms(found)]  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _said(values: Sequence[float]) -> str:
    return str(mean_effect(list(values), "", ""))


def _of(found: Found, name: str) -> list[Mapping[str, Any]]:
    return [s["dictionaries"][name] for s in found]


def _cases(cases: Found) -> Table:
    rows: list[list[Cell]] = []
    for name in cases[0]:
        numbers = [[c[name][m] for c in cases] for m in (*MEASURES, "minimiser")]
        rows.append([name, *(_mean(n) if None not in n else "undefined" for n in numbers)])
    return Table(
        title=f"Constructed reconstructions: mean over {len(cases)} draws",
        columns=["reconstruction", "r", "first formula", "nu", "beta", "token norm ratio", "token beta", "minimiser"],
        rows=rows,
        note="rank n: projection on n random directions of 32. Known: r is 1 for every projection, 1/2 in the first "
        "row, nu in the third, 0.8 in the fourth; beta is rho^2 / r.",
    )


def _trained(found: Found) -> Table:
    rows: list[list[Cell]] = []
    for name in found[0]["dictionaries"]:
        ds = _of(found, name)
        rows.append([name, _mean([d["l0"] for d in ds]), *(_said([d["fvu"][c] for d in ds]) for c in
                     ("own", "one scale", "joint scales", "refit")),
                     *(_said([d["measures"][m] for d in ds]) for m in ("r", "gamma_v1", "nu", "beta")),
                     _said([d["raw r"] for d in ds])])  # fmt: skip
    return Table(
        title=f"Dictionaries of the model, {len(found)} seeds, about b_dec",
        columns=["architecture", "L0", "FVU", "FVU, one scale", "FVU, joint scales", "FVU, refit", "r", "first formula",
                 "nu", "beta", "r about 0"],
        rows=rows,
        note="Scales are fitted on training documents, one for all latents or one for each, jointly.",
    )  # fmt: skip


def _where(found: Found) -> Table:
    rows: list[list[Cell]] = []
    for name in found[0]["dictionaries"]:
        for what in ("by_norm", "by_position"):
            per_seed = [[g["family"]["r"] for g in d["panel"][what] if g["family"]] for d in _of(found, name)]
            n = min(len(groups) for groups in per_seed)
            means = [_mean([groups[i] for groups in per_seed]) for i in range(n)]
            label = "norm, ten ranges" if what == "by_norm" else "position, 1, 2-3, 4-7 ..."
            rows.append([name, label, " ".join(f"{m:.3f}" for m in means)])
    return Table(title="r in groups of tokens, mean over seeds", columns=["architecture", "groups", "r, in order"],
                 rows=rows)  # fmt: skip


def _kind(found: Found, planted: Found) -> Table:
    rows: list[list[Cell]] = []
    for name in planted[0]:
        ps = [p[name] for p in planted]
        numbers = [_said([p[k] for p in ps]) for k in ("r", "slope", "intercept", "by factor", "by amount")]
        rows.append([name, "planted, own on true values", *numbers, _mean([p["found"] for p in ps])])
    for name in found[0]["dictionaries"]:
        ds = _of(found, name)
        if any(d["panel"]["slope"] is None or d["panel"]["explained_by_factor"] is None for d in ds):
            continue
        panel = [_said([d["panel"][k] for d in ds]) for k in
                 ("slope", "intercept", "explained_by_factor", "explained_by_amount")]  # fmt: skip
        scale = "; ".join(f"{_mean([d['panel']['joint_scale'][k] for d in ds]):.3f}" for k in ("p5", "median", "p95"))
        rows.append([name, "model, refitted on own values", _said([d["measures"]["r"] for d in ds]), *panel, scale])
    return Table(
        title="By a factor or by an amount",
        columns=["architecture", "line of", "r", "slope", "intercept", "error by a factor", "error by an amount",
                 "share found; joint scales, 5 %, median, 95 %"],
        rows=rows,
        note="An amount t taken off gives the line (1, -t) on true values, and (1, t) of refitted on own ones.",
    )  # fmt: skip


def _ladder(ladder: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = [
        [int(k), d["l0"], d["fvu"]["own"], d["measures"]["r"], d["measures"]["gamma_v1"], d["price"]["measured"],
         d["price"]["predicted"]]
        for k, d in ladder.items()
    ]  # fmt: skip
    return Table(title="ReLU at other L0, one seed", rows=rows,
                 columns=["L0 asked for", "L0", "FVU", "r", "first formula", "1 - r, training documents",
                          "predicted by the penalty"])  # fmt: skip


def _coders(found: Found) -> Table:
    rows: list[list[Cell]] = [
        [name, *(_said([s["coders"]["coders"][name][k] for s in found]) for k in ("l0", "fvu", "r", "nu"))]
        for name in found[0]["coders"]["coders"]
    ]
    worst = max(abs(s["coders"]["closed form"]["r"]) for s in found)
    return Table(
        title="Coders over the atoms of the TopK dictionaries",
        columns=["coder", "L0", "FVU", "r", "nu"],
        rows=rows,
        note="Known: r of any least-squares values on their own support is 1; of the lasso h / (h + penalty E sum "
        f"f), which holds here to {worst:.1g}.",
    )


def _formulas(found: Found, ladder: Mapping[str, Any]) -> Panel:
    xs = [0.80 + 0.01 * i for i in range(23)]
    relu = [d["measures"] for d in [*_of(found, "ReLU"), *ladder.values()]]
    rest = [d["measures"] for name in found[0]["dictionaries"] if name != "ReLU" for d in _of(found, name)]
    return Panel(
        title="why it looked right", x_label="right: r = h / c", y_label="first: sqrt(h / (a - m))",
        lines=[
            Line(name="ReLU, L0 4 to 32", x=[m["r"] for m in relu], y=[m["gamma_v1"] for m in relu], style="points"),
            Line(name="all others", x=[m["r"] for m in rest], y=[m["gamma_v1"] for m in rest], style="points"),
            Line(name="sqrt(r / (2 - r))", x=list(xs), y=[(r / (2 - r)) ** 0.5 for r in xs], style="dashed"),
            Line(name="equal", x=[0.80, 1.02], y=[0.80, 1.02]),
        ],
    )  # fmt: skip


def _projections(cases: Found) -> Panel:
    ranks = [name for name in cases[0] if name.startswith("rank")]
    lines = [
        Line(name=m, x=[int(r.split()[1]) / 32 for r in ranks], y=[_mean([c[r][m] for c in cases]) for r in ranks])
        for m in ("r", "nu", "beta", "token norm ratio")
    ]
    return Panel(
        title="projections: nothing to repair", x_label="share of dimensions kept", y_label="measure", lines=lines
    )


def _bars(name: str, groups: Mapping[str, Sequence[float]]) -> Line:
    effects = [mean_effect(list(v), "", "") for v in groups.values()]
    return Line(name=name, x=list(groups), y=[1 - e.value for e in effects],
                low=[1 - (e.high if e.high is not None else e.value) for e in effects],
                high=[1 - (e.low if e.low is not None else e.value) for e in effects], style="bars")  # fmt: skip


def _architectures(found: Found) -> Panel:
    names = list(found[0]["dictionaries"])
    lines = [_bars(f"1 - {m}", {n: [d["measures"][m] for d in _of(found, n)] for n in names}) for m in ("r", "nu")]
    return Panel(title="architectures at equal L0", x_label="", y_label="", lines=lines)


def _coder_panel(found: Found) -> Panel:
    names = {"encoder": "encoder", "encoder, refit": "refit", "matching pursuit": "MP", "gradient pursuit": "GP",
             "orthogonal matching pursuit": "OMP", "lasso": "lasso", "lasso, debiased": "debiased"}  # fmt: skip
    lines = [
        _bars(f"1 - {m}", {short: [s["coders"]["coders"][n][m] for s in found] for n, short in names.items()})
        for m in ("r", "nu")
    ]
    return Panel(title="coders over TopK's atoms", x_label="", y_label="", lines=lines)


def _raised(found: Found) -> Panel:
    """By how much refitting raises values, over their size; one factor would be a line through 0, an amount a level."""
    lines = []
    for name in ("ReLU", "Gated", "TopK"):
        bins = [[b for b in d["panel"]["by_value"] if b["n_values"]] for d in _of(found, name)]
        n = min(len(b) for b in bins)
        lines.append(Line(name=name, x=[_mean([b[i]["value"] for b in bins]) for i in range(n)],
                          y=[-_mean([b[i]["difference"] for b in bins]) for i in range(n)]))  # fmt: skip
    return Panel(
        title="refitting raises values by", x_label="value", y_label="refitted - value", lines=lines, x_log=True
    )


def _norms(found: Found) -> Panel:
    lines = []
    for name in found[0]["dictionaries"]:
        groups = [[g["family"]["r"] for g in d["panel"]["by_norm"] if g["family"]] for d in _of(found, name)]
        n = min(len(g) for g in groups)
        lines.append(
            Line(name=name, x=[float(i + 1) for i in range(n)], y=[_mean([g[i] for g in groups]) for i in range(n)])
        )
    return Panel(title="by norm", x_label="tenth of the activations, by norm", y_label="r", lines=lines)
