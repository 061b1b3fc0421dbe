"""`sparsight store`: look at stored activations, check them, put several together."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsight.cli import options

app = typer.Typer(no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="Folder written by `sparsight harvest`.")]


@app.command("info")
def info(
    folder: Folder,
    mixing: Annotated[bool, typer.Option("--mixing", help="Also measure how well shuffled batches are mixed.")] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows in a batch, for --mixing.")] = 4096,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Say what a store holds, where it comes from, and what rounding lost.

    Example: sparsight store info runs/store --mixing
    """
    from sparsight.activations import ActivationStore, ActivationStream, measure_mixing

    store = ActivationStore(folder)
    told = store.info()
    if mixing:
        # Streams of a store that fits into memory mix it whole; what is asked for here is how a large one is mixed.
        stream = ActivationStream(store, store.sites[0], batch_size, seed, memory=0)
        told["mixing"] = {"how": stream.mixing, **measure_mixing(store, stream).to_json()}
    typer.echo(json.dumps(told, indent=2) if as_json else _lines(told))


@app.command("verify")
def verify(folder: Folder, as_json: options.AsJson = False) -> None:
    """Compare every byte with the checksums that were noted when it was written; exit 1 at the first difference.

    Example: sparsight store verify runs/store
    """
    from sparsight.activations import ActivationStore

    store = ActivationStore(folder)
    store.verify()
    told = {"path": str(folder), "shards": len(store.record.shards), "bytes": store.info()["bytes"], "sound": True}
    typer.echo(
        json.dumps(told) if as_json else f"{folder}: {told['shards']} shards, {told['bytes']:,} bytes, all as written"
    )


@app.command("merge")
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Two or more stores of equal settings.")],
    out: options.Out,
    renumber: Annotated[
        bool, typer.Option("--renumber", help="Number documents of each store behind those of the stores before it.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Put stores of the same model, sites and settings into one.

    Example: sparsight store merge runs/store-1 runs/store-2 --out runs/store --renumber
    """
    from sparsight.activations import merge_stores

    told = merge_stores(folders, out, renumber=renumber).info()
    typer.echo(json.dumps(told, indent=2) if as_json else _lines(told))


def _lines(told: dict[str, Any]) -> str:
    lines = [
        f"{told['path']}: {told['rows']:,} rows of {told['model']}, {told['bytes'] / 1e6:,.1f} MB as {told['dtype']}"
    ]
    for site, width in told["sites"].items():
        lost = told["rounding"].get(site)
        lines.append(f"  {site}: {width} wide" + (f", rounding lost {lost['fvu']:.2e} of the variance" if lost else ""))
    around = "special tokens around every " + told["bos"] if told["bos"] != "none" else "no special tokens"
    filled = "packed" if told["packed"] else "padded"
    lines.append(f"  {told['contexts']:,} contexts of at most {told['context']} tokens, {filled}, {around}")
    lines.append(f"  {told['documents']:,} documents, {told['heldout']:.0%} of them held out")
    if told["max_norm"] is not None:
        lines.append(f"  {told['excluded']:,} tokens left out: norm above {told['max_norm']:g} times the median")
    if told["labels"]:
        lines.append(f"  labels: {', '.join(told['labels'])}")
    if mixing := told.get("mixing"):
        lines.append(
            f"  mixing: correlation {mixing['correlation']:.1e} ± {mixing['standard_error']:.1e} of documents within a "
            f"batch, {mixing['documents']:,.0f} documents in each; {mixing['how']}"
        )
    return "\n".join(lines)
