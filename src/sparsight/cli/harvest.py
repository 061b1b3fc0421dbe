"""`sparsight harvest`: a model and a text in, stored activations out."""

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsight.cli import options


def harvest(
    out: options.Out,
    tokens: Annotated[
        int, typer.Option("--tokens", help="Activations to store: tokens that are neither padding nor special.")
    ],
    site: Annotated[list[str], typer.Option("--site", help=f"Where to read: {options.SITES}. Repeat for more.")],
    model: options.Model = "organism",
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="A .txt, .jsonl or .parquet file. Repeat for several.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", help="'organism', the embedded corpus with labels; or a Hugging Face data set, streamed."
        ),
    ] = None,
    field: Annotated[str, typer.Option("--field", help="Where the text is: name in JSONL, column otherwise.")] = "text",
    dataset_split: Annotated[str, typer.Option("--dataset-split", help="Part of a Hugging Face data set.")] = "train",
    dataset_config: Annotated[str | None, typer.Option("--dataset-config", help="Its configuration.")] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", help="Longest piece of text the model sees, in tokens. Default: 128, or its limit."),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Stored as float16, bfloat16, float32 or int8.")] = "float16",
    heldout: Annotated[float, typer.Option("--heldout", help="Share of documents kept out of training.")] = 0.1,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Contexts in one forward pass.")] = 32,
    packed: Annotated[
        bool, typer.Option("--packed/--padded", help="Fill contexts with several documents, or give each its own.")
    ] = False,
    bos: Annotated[
        str, typer.Option("--bos", help="Special tokens around every 'context', every 'document', or 'none'.")
    ] = "context",
    special_rows: Annotated[
        bool, typer.Option("--special-rows", help="Store activations of special tokens too.")
    ] = False,
    max_norm: Annotated[
        float | None, typer.Option("--max-norm", help="Leave out tokens whose norm is this many times the median.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Run the model in workers on Ray: 'local', or the address of a cluster."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes with a model each, for --ray.")] = 2,
    resume: options.Resume = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Run a model over text and store what it computes at the chosen sites.

    Example: sparsight harvest --model organism --dataset organism --site 2.resid_post --tokens 200000 --out runs/store
    """
    from sparsight import activations
    from sparsight.models import load_model

    documents = documents_of(text, dataset, seed, field=field, split=dataset_split, config=dataset_config)
    lm = load_model(model, device=device)
    with _readers(ray, workers, model, device) as readers:
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
            packed=packed,
            bos=bos,
            special_rows=special_rows,
            max_norm=max_norm,
            readers=readers,
            resume=resume,
            progress=not quiet,
            notify=lambda message: typer.echo(message, err=True),
        )
    info = store.info()
    typer.echo(json.dumps(info, indent=2) if as_json else _sentence(info))


def _readers(ray: str | None, workers: int, model: str, device: str) -> AbstractContextManager[Any]:
    """Workers on Ray when asked for; None otherwise, and this process runs the model."""
    if ray is None:
        return nullcontext()
    import torch

    from sparsight.activations import RayReaders
    from sparsight.models import load_model

    gpus = 1.0 if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()) else 0.0
    load = partial(load_model, model, device=device)
    return RayReaders(load, workers, address=None if ray == "local" else ray, gpus=gpus)


def documents_of(
    text: list[Path] | None,
    dataset: str | None,
    seed: int,
    *,
    field: str = "text",
    split: str = "train",
    config: str | None = None,
) -> Iterable[Any]:
    """The documents that `--text` and `--dataset` name, read as they are asked for.

    Raises:
        ValueError: not exactly one of the two is given.
        DataError: a file or data set is not there, or has no such field.
    """
    if (text is None) == (dataset is None):
        raise ValueError("say where the text comes from: --text FILE or --dataset organism, one of the two")
    from sparsight.activations import documents_from_dataset, documents_from_files

    if text is not None:
        return documents_from_files(text, field=field)
    assert dataset is not None
    if dataset != "organism":
        return documents_from_dataset(dataset, field=field, split=split, config=config)
    from sparsight.models.organism import corpus

    return corpus(seed, 10**9)  # written as they are asked for; the harvest stops when it has its tokens


def _sentence(info: dict[str, Any]) -> str:
    sites = ", ".join(f"{site} ({width} wide)" for site, width in info["sites"].items())
    lost = max((lost["fvu"] for lost in info["rounding"].values()), default=0.0)
    return (
        f"{info['path']}: {info['rows']:,} activations of {info['model']} at {sites}, "
        f"from {info['documents']:,} documents, {info['bytes'] / 1e6:.1f} MB in {info['dtype']}, "
        f"which lost {lost:.1e} of the variance"
    )
