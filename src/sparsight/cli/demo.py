"""`sparsight demo`: the main job on the embedded model."""

from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli import options


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("demo"),
    fast: Annotated[bool, typer.Option("--fast", help="Fewer activations and steps: under 45 seconds.")] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Train two dictionaries on the embedded model, measure them on held-out text, and write one HTML page.

    Example: sparsight demo --out demo
    """
    from sparsight.studies.demo import run_demo

    result = run_demo(out, fast=fast, seed=seed, device=device, progress=not quiet)
    typer.echo(result.to_json() if as_json else result.to_table())
