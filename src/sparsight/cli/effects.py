"""`sparsight effects`: what latents do to an answer."""

from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli import options


def effects(
    pairs: Annotated[
        Path,
        typer.Argument(
            help='JSON lines: {"clean": TEXT, "corrupted": TEXT, "right": WORD, "wrong": WORD}; corrupted and wrong '
            "may be left out."
        ),
    ],
    dictionary: Annotated[
        list[Path], typer.Option("--dictionary", help="Folder written by `sparsight train`. Repeat for several sites.")
    ],
    model: options.Model = "organism",
    method: Annotated[
        str, typer.Option("--method", help="'exact', 'attribution' or 'integrated_gradients'.")
    ] = "integrated_gradients",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Points of integrated gradients.")] = 10,
    rule: Annotated[str, typer.Option("--rule", help="'midpoint', 'left' or 'gauss'.")] = "midpoint",
    ablation: Annotated[
        str, typer.Option("--ablation", help="'paired': to the corrupted text's values; 'zero'; 'mean'.")
    ] = "paired",
    error: Annotated[
        str, typer.Option("--error", help="At other sites: 'kept', 'held' or 'dropped' (gates are then on the way).")
    ] = "kept",
    joint: Annotated[bool, typer.Option("--joint", help="Change the nodes of all sites together.")] = False,
    no_jumps: Annotated[bool, typer.Option("--no-jumps", help="Do not look for flips of gates.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Latents to list.")] = 10,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for effects.json and effects.safetensors.")] = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure what each latent, and what dictionaries leave out, does to the model's answer.

    Example: sparsight effects pairs.jsonl --dictionary runs/dictionaries/topk-1024-k16 --method exact --top 20
    """
    from sparsight import circuits
    from sparsight.formats import load_dictionary
    from sparsight.models import load_model

    lm = load_model(model, device=device)
    loaded = [load_dictionary(folder).to(lm.device) for folder in dictionary]
    nodes = [circuits.nodes_of(lm, each) for each in loaded]
    placed = {site: at for found in nodes for site, at in found.items()}
    if len(placed) < len(loaded):
        raise ValueError("two dictionaries stand at one site; give one for each")
    read = circuits.read_pairs(pairs, lm)
    found = circuits.latent_effects(
        lm,
        placed,
        read.clean,
        None if ablation == "zero" else read.corrupted,
        read.metric,
        method=method,
        steps=steps,
        rule=rule,
        jumps=not no_jumps,
        ablation=ablation,
        joint=joint,
        error=error,
        progress=not quiet,
    )
    if out is not None:
        found.save(out)
    typer.echo(found.to_json(top) if as_json else found.to_table(top))
