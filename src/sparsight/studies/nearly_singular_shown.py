"""Tables and panels of the study of nearly singular models."""

from typing import Any

from sparsight.studies.nearly_singular_measured import (
    GAUSSIAN_BETAS,
    KNOWN,
    POINTS,
    SHARES,
    TANH_BETAS,
    WIDTHS,
)
from sparsight.studies.record import Cell, Line, Panel, Table
from sparsight.theory.learning_coefficient import reduced_rank

Rows = list[dict[str, Any]]


def shown(row: dict[str, Any]) -> str:
    """The value with its 95 % interval, and a mark where a diagnostic speaks against it."""
    half = 1.96 * row["standard_error"]
    mark = " (not valid)" if row["problems"] else ""
    return f"{row['value']:.3f} [{row['value'] - half:.3f}, {row['value'] + half:.3f}]{mark}"


def near_table(curves: dict[tuple[float, str], Rows]) -> Table:
    slopes = sorted({slope for slope, _ in curves}, reverse=True)
    rows: list[list[Cell]] = []
    for slope in slopes:
        for i, share in enumerate(SHARES):
            corrected, plain = curves[slope, "mala"][i], curves[slope, "sgld"][i]
            rows.append(
                [slope, f"{corrected['n_beta']:.0e}", share, corrected["exact"], shown(corrected), shown(plain)]
            )
    return Table(
        title="K = a w^2 + w^4: learning coefficient 1/2 for every a, and what is read",
        columns=["a", "n beta", "a^2 n beta", "exact", "MALA", "SGLD"],
        rows=rows,
        note="Exact: quadrature at the same temperature and localisation. w^4 alone has 1/4.",
    )


def crossing_table(curves: dict[str, Rows]) -> Table:
    rows: list[list[Cell]] = [
        [f"{a['n_beta']:.0e}", a["exact"], shown(a), shown(b)]
        for a, b in zip(curves["mala"], curves["sgld"], strict=True)
    ]
    return Table(
        title="K = (w1 w2)^2: learning coefficient 1/2 with multiplicity 2, and what is read",
        columns=["n beta", "exact", "MALA", "SGLD"],
        rows=rows,
        note="The budget of steps is the same at each temperature.",
    )


def tanh_table(points: dict[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for name, found in points.items():
        rows.append(
            [
                name,
                found["half_rank"],
                POINTS[name][1],
                2.0,
                *(shown(row) for row in found["curve"]),
                shown(found["plain"]),
            ]
        )
    return Table(
        title="Two tanh units at four points",
        columns=["point", "rank(H)/2", "known", "d/2 (BIC)", *(f"n beta {t:.0e}" for t in TANH_BETAS),
                 f"SGLD, 8 chains, n beta {TANH_BETAS[-1]:.0e}"],
        rows=rows,
        note="Known: by expanding K at the point. Adapted MALA, localisation 100, but for the last column, which runs "
        "2,000 plain steps.",
    )  # fmt: skip


def regression_table(curves: dict[tuple[int, int, int, int], Rows]) -> Table:
    rows: list[list[Cell]] = []
    for (inputs, outputs, hidden, rank), found in curves.items():
        known = reduced_rank(inputs, outputs, hidden, rank)
        half = (inputs + outputs) * hidden / 2
        for row in found:
            rows.append([f"{inputs}, {outputs}, {hidden}, {rank}", known.value, known.multiplicity, half,
                         f"{row['n_beta']:.0e}", row["exact"], shown(row)])  # fmt: skip
    return Table(
        title="Reduced-rank regression, y = B A x",
        columns=["inputs, outputs, hidden, rank", "known", "multiplicity", "d/2 (BIC)", "n beta", "exact", "MALA"],
        rows=rows,
        note="Known: Aoyagi & Watanabe 2005. Exact at a temperature: an integral over Wishart eigenvalues, for rank 0.",
    )


def strength_table(curves: dict[float, Rows]) -> Table:
    rows: list[list[Cell]] = []
    for rows_of in zip(*curves.values(), strict=True):
        rows.append([f"{rows_of[0]['n_beta']:.0e}", rows_of[0]["exact"], *(shown(row) for row in rows_of)])
    return Table(
        title=f"A network of rank one ({WIDTHS[0]} inputs, {WIDTHS[1]} outputs) whose truth is weak",
        columns=["n beta", "exact for truth 0", *(f"truth {strength:g}" for strength in curves)],
        rows=rows,
        note="Learning coefficient 2 where the truth is 0, 4.5 for any other, however weak.",
    )


def gaussian_table(found: Rows) -> Table:
    return Table(
        title="Gaussians in the place of the posterior",
        columns=["K", "n beta", "rank(H)/2", "learning coefficient", "d/2 (BIC)", "exact slope of the evidence",
                 "Laplace: n beta E[K]", "Laplace: KL, nats", "mean field: n beta E[K]", "mean field: KL, nats"],
        rows=[[r["name"], f"{r['n_beta']:.0e}", r["half_rank"], r["coefficient"], r["half_dimension"], r["exact"],
               r["laplace"], r["laplace_divergence"], r["field"], r["field_divergence"]] for r in found],
        note="Standard normal prior. KL: divergence of the Gaussian from the posterior. All by quadrature.",
    )  # fmt: skip


def panels(measured: dict[str, Any]) -> list[Panel]:
    """Five panels: the line, the crossing, the weak network, the units, the Gaussians."""
    return [
        _near_panel(measured["near"]),
        _crossing_panel(measured["crossing"]),
        _strength_panel(measured["strengths"]),
        _tanh_panel(measured["tanh"]),
        _gaussian_panel(measured["gaussian"]),
    ]


def _line(name: str, x: list[float], rows: Rows) -> Line:
    half = [1.96 * row["standard_error"] for row in rows]
    y = [row["value"] for row in rows]
    return Line(name=name, x=list(x), y=y, low=[v - h for v, h in zip(y, half, strict=True)],
                high=[v + h for v, h in zip(y, half, strict=True)], style="points")  # fmt: skip


def _near_panel(curves: dict[tuple[float, str], Rows]) -> Panel:
    lines = [_line(f"a = {slope:g}", [row["n_beta"] for row in rows], rows)
             for (slope, sampler), rows in curves.items() if sampler == "mala"]  # fmt: skip
    for i, ((_, sampler), rows) in enumerate(curves.items()):
        if sampler == "mala":
            lines.append(Line(name="exact" if i == 0 else "", x=[row["n_beta"] for row in rows],
                              y=[row["exact"] for row in rows], style="dashed"))  # fmt: skip
    return Panel(title="a w² + w⁴: 1/2 for every a", x_label="n beta", y_label="estimate", lines=lines, x_log=True)


def _crossing_panel(curves: dict[str, Rows]) -> Panel:
    x = [row["n_beta"] for row in curves["mala"]]
    lines = [_line(name, x, curves[key]) for name, key in (("MALA", "mala"), ("SGLD", "sgld"))]
    lines.append(Line(name="exact", x=list(x), y=[row["exact"] for row in curves["mala"]], style="dashed"))
    lines.append(Line(name="", x=[x[0], x[-1]], y=[0.5, 0.5], style="dashed"))
    return Panel(title="(w1 w2)²: 1/2, never read", x_label="n beta", y_label="estimate", lines=lines, x_log=True)


def _strength_panel(curves: dict[float, Rows]) -> Panel:
    lines = [_line(f"truth {strength:g}", [row["n_beta"] for row in rows], rows) for strength, rows in curves.items()]
    ends = [lines[0].x[0], lines[0].x[-1]]
    lines += [Line(name="known" if level == 2 else "", x=list(ends), y=[level, level], style="dashed")
              for level in (2.0, 4.5)]  # fmt: skip
    return Panel(title="network of rank one", x_label="n beta", y_label="estimate", lines=lines, x_log=True)


def _tanh_panel(points: dict[str, Any]) -> Panel:
    x = [name.replace("generic, units ", "") for name in points]
    last = [found["curve"][-1] for found in points.values()]
    return Panel(
        title="two tanh units: d/2 = 2",
        x_label="",
        y_label="coefficient",
        lines=[
            Line(name="rank(H)/2", x=list(x), y=[found["half_rank"] for found in points.values()], style="bars"),
            Line(name="estimate", x=list(x), y=[row["value"] for row in last], style="bars"),
            Line(name="known", x=list(x), y=[POINTS[name][1] for name in points], style="dashed"),
        ],
    )


def _gaussian_panel(found: Rows) -> Panel:
    lines = []
    for name in KNOWN:
        if name == "w^2":
            continue  # both are exact there
        rows = [row for row in found if row["name"] == name]
        lines += [
            Line(name=f"{kind}, {name}", x=list(GAUSSIAN_BETAS), y=[max(row[key], 1e-5) for row in rows])
            for kind, key in (("Laplace", "laplace_divergence"), ("mean field", "field_divergence"))
            if (kind, name) != ("mean field", "0.01 w^2 + w^4")  # small throughout; in the table
        ]
    return Panel(title="Gaussians' divergence from the posterior", x_label="n beta", y_label="KL, nats", lines=lines,
                 x_log=True, y_log=True)  # fmt: skip
