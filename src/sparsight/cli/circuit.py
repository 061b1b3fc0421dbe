"""`sparsight circuit`: the latents that carry a behaviour, and how they act on one another."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsight.cli import options

if TYPE_CHECKING:
    from sparsight.circuits.discovery import Examples
    from sparsight.circuits.nodes import Placed
    from sparsight.models import LanguageModel, Site


def circuit(
    dictionary: Annotated[list[Path], typer.Argument(help="Folders written by `sparsight train`, one for each site.")],
    out: options.Out,
    model: options.Model = "organism",
    task: Annotated[
        str | None, typer.Option("--task", help="Of the organism: 'gender', 'brackets' or 'weekdays'.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            help='JSONL of {"clean", "patch" (optional), "right", "wrong"}; every second line is measured on.',
        ),
    ] = None,
    n_examples: Annotated[
        int, typer.Option("--examples", help="Of a task: to find on, and as many to measure on.")
    ] = 60,
    node_threshold: Annotated[float, typer.Option("--node-threshold", help="Least absolute effect of a node.")] = 0.1,
    edge_threshold: Annotated[float, typer.Option("--edge-threshold", help="Least absolute weight of an edge.")] = 0.01,
    max_nodes: Annotated[int | None, typer.Option("--max-nodes", help="Keep at most so many nodes.")] = None,
    aggregation: Annotated[
        str, typer.Option("--aggregation", help="'sum' over positions, or 'none' for templates of one length.")
    ] = "sum",
    steps: Annotated[int, typer.Option("--steps", help="Midpoints of the path; 0 takes the clean end alone.")] = 4,
    edges: Annotated[bool, typer.Option("--edges/--no-edges", help="Whether to take edges.")] = True,
    act: Annotated[
        int, typer.Option("--act", min=0, help="Ablate each node, and so many of the strongest edges, and compare.")
    ] = 0,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Find a sparse circuit, measure it on other examples beside a random one, and draw it.

    Example: sparsight circuit runs/2/topk-1024-k16 runs/3/topk-1024-k16 --task gender --out runs/circuit
    """
    from sparsight.circuits import discovery
    from sparsight.models import load_model

    if aggregation not in ("sum", "none"):
        raise ValueError(f"--aggregation must be 'sum' or 'none', got {aggregation!r}")
    lm = load_model(model, device=device)
    found_on, measured_on = _examples(lm, task, pairs, n_examples, seed)
    placed = _placed(lm, dictionary)
    found = discovery.find_circuit(
        lm, placed, found_on, node_threshold=node_threshold, edge_threshold=edge_threshold, max_nodes=max_nodes,
        aggregation="sum" if aggregation == "sum" else "none", steps=steps, edges=edges, progress=not quiet,
    )  # fmt: skip
    measured = {
        "faithfulness": discovery.faithfulness(found, lm, placed, measured_on, seed=seed),
        "without errors": discovery.faithfulness(found, lm, placed, measured_on, errors="none", seed=seed),
        "completeness": discovery.completeness(found, lm, placed, measured_on, seed=seed),
        "random": discovery.faithfulness(discovery.random_nodes(found, seed=seed), lm, placed, measured_on, seed=seed),
    }
    found.save(out)
    discovery.write_html(found, out / "circuit.html")
    (out / "circuit.dot").write_text(discovery.to_dot(found), encoding="utf-8")
    facts: dict[str, Any] = {name: share.model_dump() for name, share in measured.items()}
    facts |= {"n_nodes": len(found), "n_errors": found.n_errors, "n_edges": len(found.record.edges)}
    facts["error_share"] = found.error_share()
    acted = {}
    if act:
        acted = {
            "nodes acted on": discovery.act_on_nodes(found, lm, placed, measured_on),
            "edges acted on": discovery.act_on_edges(found, lm, placed, measured_on, strongest=act),
        }
        facts |= {name: one.model_dump() for name, one in acted.items()}
    (out / "measured.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(f"{len(found)} nodes ({found.n_errors} errors), {len(found.record.edges)} edges")
    for name, share in measured.items():
        typer.echo(f"{name}: {share}")
    for name, one in acted.items():
        correlation = "undefined" if one.correlation is None else f"{one.correlation:.3f}"
        typer.echo(f"{len(one.acted)} {name}: correlation {correlation}, relative error {one.relative_error:.3f}")
    typer.echo(f"{out / 'circuit.html'} shows it; circuit.json, circuit.dot and measured.json lie beside it")


def _placed(lm: "LanguageModel", folders: list[Path]) -> "dict[Site, Placed]":
    """Dictionaries as nodes at their sites."""
    from sparsight.circuits import nodes_of
    from sparsight.formats import load_dictionary

    placed: dict[Site, Placed] = {}
    for folder in folders:
        made = load_dictionary(folder).to(lm.device)
        if made.site is None and not made.places:
            raise ValueError(f"{folder} does not know its site; train it from a store")
        for site, nodes in nodes_of(lm, made).items():
            if site in placed:
                raise ValueError(f"two dictionaries stand at {site}, the second is {folder}; give one for each site")
            placed[site] = nodes
    return placed


def _examples(
    lm: "LanguageModel", task: str | None, pairs: Path | None, n: int, seed: int
) -> "tuple[Examples, Examples]":
    """Examples to find on, and others to measure on."""
    from sparsight.circuits.discovery import Examples, organism_task

    if (task is None) == (pairs is None):
        raise ValueError("give one of --task (of the organism) and --pairs FILE")
    if task is not None:
        return organism_task(lm, task, n, seed=seed, part=0), organism_task(lm, task, n, seed=seed, part=1)
    rows = _rows(pairs)
    with_patch = "patch" in rows[0]
    halves = []
    for half in (rows[::2], rows[1::2]):
        clean, right, wrong = ([row[name] for row in half] for name in ("clean", "right", "wrong"))
        patches = [row["patch"] for row in half] if with_patch else None
        halves.append(Examples.of_answers(lm, clean, right, wrong, patches))
    return halves[0], halves[1]


def _rows(path: Path | None) -> list[dict[str, str]]:
    from sparsight.errors import DataError

    if path is None or not path.is_file():
        raise DataError(f"pairs file {path} does not exist; check the path")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"line {number} of {path} is not JSON: {error}") from None
        needed = ("clean", "right", "wrong", *(("patch",) if isinstance(row, dict) and "patch" in row else ()))
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in needed):
            raise DataError(f'line {number} of {path} must hold the texts "clean", "right" and "wrong"')
        rows.append(row)
        if ("patch" in row) != ("patch" in rows[0]):
            raise DataError(f'line {number} of {path} and the first differ in having a "patch"; give it in all or none')
    if len(rows) < 4:
        raise DataError(
            f"{path} holds {len(rows)} examples; at least 4 are needed, half to find on, half to measure on"
        )
    return rows
