"""Flags that read the same in every command."""

import random
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", help="'organism', 'organism-backdoored', a local model folder, or a hub id.")
]
Device = Annotated[str, typer.Option("--device", help="'auto', 'cpu', 'cuda' or 'cuda:N'.")]
Seed = Annotated[int, typer.Option("--seed", help="Every random choice follows from it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for scripts.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off, to the same result.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Activations = Annotated[Path, typer.Option("--activations", help="Folder written by `sparsight harvest`.")]
DictionaryFolder = Annotated[Path, typer.Argument(help="Folder written by `sparsight train`.")]


def set_seed(seed: int) -> None:
    """Seed the generators that other libraries use; our own code takes the seed as an argument."""
    import torch

    random.seed(seed)
    torch.manual_seed(seed)
