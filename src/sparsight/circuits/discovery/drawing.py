"""A circuit as a picture: an interactive page that needs no network, and GraphViz text."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsight.circuits.discovery.circuit import OUTPUT, Circuit
from sparsight.models import Site

RAISES, LOWERS, ERROR = "#0072B2", "#D55E00", "#999999"


def to_dot(circuit: Circuit, labels: Mapping[str, str] | None = None) -> str:
    """The circuit in the language of GraphViz: nodes by site, widths of edges by weight.

    Colours are those of `to_html`: blue where ablation lowers the metric, orange where it raises it.

    Args:
        circuit: What to draw.
        labels: What to write beside the id of a node, by id.
    """
    labels = labels or {}
    lines = ["digraph circuit {", "  rankdir=LR;", "  node [shape=box, style=filled, fontsize=10];"]
    for site in circuit.record.sites:
        names = [node for node in circuit.record.nodes if node.site == site]
        if not names:
            continue
        lines.append(f"  subgraph {_quoted('cluster ' + site)} {{ label={_quoted(site)};")
        for node in names:
            text = "\n".join([node.id, *([labels[node.id]] if node.id in labels else []), f"{node.effect:+.3g}"])
            shape = ", shape=triangle" if node.kind == "error" else ""
            lines.append(
                f'    {_quoted(node.id)} [label={_quoted(text)}, fillcolor="{_colour(node.effect)}40"{shape}];'
            )
        lines.append("  }")
    lines.append(f"  {_quoted(OUTPUT)} [shape=ellipse];")
    largest = max((abs(edge.weight) for edge in circuit.record.edges), default=1.0)
    for edge in circuit.record.edges:
        width = 0.3 + 3 * abs(edge.weight) / largest
        lines.append(
            f"  {_quoted(edge.source)} -> {_quoted(edge.target)} "
            f'[penwidth={width:.2f}, color="{_colour(edge.weight)}", tooltip="{edge.weight:+.4g}"];'
        )
    return "\n".join([*lines, "}"]) + "\n"


def to_figure(circuit: Circuit, labels: Mapping[str, str] | None = None) -> Any:
    """The circuit as a plotly figure: sites from left to right, the strongest nodes in the middle."""
    import plotly.graph_objects as go

    labels = labels or {}
    places = _places(circuit)
    figure = go.Figure()
    largest = max((abs(edge.weight) for edge in circuit.record.edges), default=1.0)
    for edge in reversed(circuit.record.edges):  # the strongest on top
        (x0, y0), (x1, y1) = places[edge.source], places[edge.target]
        figure.add_scatter(
            x=[x0, (x0 + x1) / 2, x1], y=[y0, (y0 + y1) / 2, y1], mode="lines", hoverinfo="text",
            line={"width": 0.4 + 5 * abs(edge.weight) / largest, "color": _colour(edge.weight)}, opacity=0.55,
            text=[html.escape(f"{edge.source} → {edge.target}: {edge.weight:+.4g}")] * 3, showlegend=False,
        )  # fmt: skip
    strongest = max((abs(node.effect) for node in circuit.record.nodes), default=1.0)
    nodes = circuit.record.nodes
    figure.add_scatter(
        x=[places[node.id][0] for node in nodes],
        y=[places[node.id][1] for node in nodes],
        mode="markers",
        hoverinfo="text",
        text=[
            f"{html.escape(node.id)}<br>{html.escape(labels.get(node.id, ''))}<br>effect {node.effect:+.4g}"
            for node in nodes
        ],
        marker={
            "size": [7 + 17 * (abs(node.effect) / strongest) ** 0.5 for node in nodes],
            "color": [_colour(node.effect) for node in nodes],
            "symbol": ["triangle-up" if node.kind == "error" else "circle" for node in nodes],
            "line": {"width": 1, "color": "white"},
        },
        showlegend=False,
    )
    x, y = places[OUTPUT]
    figure.add_scatter(x=[x], y=[y], mode="markers+text", text=["metric"], textposition="middle right",
                       marker={"size": 14, "color": "black", "symbol": "square"}, hoverinfo="skip",
                       showlegend=False)  # fmt: skip
    sites = _columns(circuit)
    figure.update_layout(
        title=f"{circuit.record.model}: {len(nodes)} nodes, {len(circuit.record.edges)} edges. Blue: ablating lowers "
        "the metric; orange: raises it; triangles: what dictionaries leave unexplained",
        xaxis={"tickvals": list(range(len(sites) + 1)), "ticktext": [*sites, "metric"], "showgrid": False},
        yaxis={"visible": False},
        plot_bgcolor="white",
        title_font_size=13,
        hovermode="closest",
    )
    return figure


def write_html(circuit: Circuit, path: str | Path, labels: Mapping[str, str] | None = None) -> None:
    """One page that holds the figure and all it needs, so that it opens without a network."""
    Path(path).write_text(to_figure(circuit, labels).to_html(include_plotlyjs=True, full_html=True), encoding="utf-8")


def _columns(circuit: Circuit) -> list[str]:
    """Sites with a node, in the order of a forward pass."""
    used = {node.site for node in circuit.record.nodes}
    return [str(site) for site in sorted(map(Site.parse, used))]


def _places(circuit: Circuit) -> dict[str, tuple[float, float]]:
    places = {OUTPUT: (float(len(_columns(circuit))), 0.0)}
    for column, site in enumerate(_columns(circuit)):
        nodes = [node for node in circuit.record.nodes if node.site == site]
        for rank, node in enumerate(nodes):
            # Above and below the middle by turns, so that the strongest stand next to it.
            places[node.id] = (float(column), ((rank + 1) // 2) * (1.0 if rank % 2 else -1.0))
    return places


def _colour(effect: float) -> str:
    return RAISES if effect < 0 else LOWERS


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
