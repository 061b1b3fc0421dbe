"""`sparsight code`: a dictionary and stored activations in, their sparse codes out."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli import options


def code(
    dictionary: options.DictionaryFolder,
    activations: options.Activations,
    out: Annotated[Path, typer.Option("--out", help="File to write, e.g. codes.safetensors.")],
    coder: Annotated[
        str | None, typer.Option("--coder", help="'gradient_pursuit', ...; the dictionary's own rule when absent.")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", help="Latents per row, with --coder.")] = None,
    search: options.Search = "exact",
    candidates: options.Candidates = None,
    split: Annotated[str, typer.Option("--split", help="'all', 'train' or 'heldout' documents.")] = "all",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows coded at once.")] = 4096,
    force: Annotated[bool, typer.Option("--force", help="Code even if made for another site or model.")] = False,
    device: options.Device = "auto",
    resume: options.Resume = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the sparse codes of stored activations to one file.

    Example: sparsight code runs/dictionaries/topk-1024-k16 --activations runs/store --coder gradient_pursuit --k 16
    --out runs/codes.safetensors
    """
    from sparsight.activations import ActivationStore
    from sparsight.evaluation import SearchRecord
    from sparsight.evaluation.code_file import write_codes
    from sparsight.formats import load_dictionary

    store = ActivationStore(activations)
    store.verify()
    file = write_codes(
        load_dictionary(dictionary).to(options.place(device)),
        store,
        out,
        coder=coder,
        k=k,
        search=options.search_named(search, candidates),
        split=split,
        batch_size=batch_size,
        resume=resume,
        force=force,
        progress=not quiet,
    )
    mean_l0 = int(file.row_ends[-1]) / max(1, len(file))
    if as_json:
        typer.echo(json.dumps({"file": str(file.path), "mean_l0": mean_l0, **file.metadata}, indent=2))
    else:
        typer.echo(f"{file.path}: {len(file):,} codes, mean L0 {mean_l0:.2f}")
        if (searched := file.metadata.get("search_record")) is not None:
            typer.echo(str(SearchRecord(**searched)))
