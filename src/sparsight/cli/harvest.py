"""`sparsight harvest`: a model and a text in, stored activations out."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsight.cli import options


def harvest(
    out: options.Out,
    tokens: Annotated[
        int, typer.Option("--tokens", help="Activations to store: tokens that are neither padding nor special.")
    ],
    site: Annotated[list[str], typer.Option("--site", help="Where to read, e.g. 2.resid_post. Repeat for several.")],
    model: options.Model = "organism",
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="A .txt or .jsonl file. Repeat for several.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="'organism': the embedded corpus, with labels.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", help="Longest piece of text the model sees, in tokens. Default: 128, or its limit."),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Stored as float16, bfloat16 or float32.")] = "float16",
    heldout: Annotated[float, typer.Option("--heldout", help="Share of documents kept out of training.")] = 0.1,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Contexts in one forward pass.")] = 32,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    resume: options.Resume = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Run a model over text and store what it computes at the chosen sites.

    Example: sparsight harvest --model organism --dataset organism --site 2.resid_post --tokens 200000 --out runs/store
    """
    from sparsight import activations
    from sparsight.models import load_model

    documents = documents_of(text, dataset, seed)
    lm = load_model(model, device=device)
    store = activations.harvest(
        lm,
        documents,
        site,
        out,
        n_tokens=tokens,
        context=min(128, lm.max_context) if context is None else context,
        dtype=dtype,
        heldout=heldout,
        batch_size=batch_size,
        resume=resume,
        progress=not quiet,
        notify=lambda message: typer.echo(message, err=True),
    )
    info = store.info()
    typer.echo(json.dumps(info, indent=2) if as_json else _sentence(info))


def documents_of(text: list[Path] | None, dataset: str | None, seed: int) -> Iterable[Any]:
    """The documents that `--text` and `--dataset` name, read as they are asked for.

    Raises:
        ValueError: not exactly one of the two is given, or the data set is unknown.
    """
    if (text is None) == (dataset is None):
        raise ValueError("say where the text comes from: --text FILE or --dataset organism, one of the two")
    if text is not None:
        from sparsight.activations import documents_from_files

        return documents_from_files(text)
    if dataset != "organism":
        raise ValueError(f"--dataset must be 'organism', got {dataset!r}; give other text as files with --text")
    from sparsight.models.organism import corpus

    return corpus(seed, 10**9)  # written as they are asked for; the harvest stops when it has its tokens


def _sentence(info: dict[str, Any]) -> str:
    sites = ", ".join(f"{site} ({width} wide)" for site, width in info["sites"].items())
    return (
        f"{info['path']}: {info['rows']:,} activations of {info['model']} at {sites}, "
        f"from {info['documents']:,} documents, {info['bytes'] / 1e6:.1f} MB in {info['dtype']}"
    )
