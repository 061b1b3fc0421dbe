"""`sparsight convert` and `sparsight push`: dictionaries between projects, and to the hub."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli import options


def convert(
    source: Annotated[str, typer.Argument(help="Folder or file of any format, or a reference: hf:owner/name/path.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="'sparsight', 'saelens', 'dictionary_learning', 'sparsify', 'gemma_scope[_2]' or 'llama_scope'.",
        ),
    ],
    activations: Annotated[
        Path | None,
        typer.Option("--activations", help="Check on held-out rows of this store, not on random ones."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="Activations to check on.", min=1)] = 512,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Write a dictionary in another project's format, read it back, and say how far both agree.

    Example: sparsight convert runs/dictionaries/topk-1024-k16 runs/for-saelens --to saelens
    """
    from sparsight import formats

    x = None
    if activations is not None:
        from sparsight.activations import ActivationStore

        store = ActivationStore(activations).split("heldout")
        site = formats.load_dictionary(source).site
        if site is None or site not in store.sites:
            raise ValueError(
                f"{activations} has no activations of the dictionary's site {site}; leave --activations out"
            )
        x = store.rows(site, slice(0, rows))
    conversion = formats.convert(source, out, to, x=x, n_rows=rows, seed=seed)
    typer.echo(json.dumps(conversion.to_record(), indent=2) if as_json else conversion.to_text())


def push(
    folder: options.DictionaryFolder,
    repo: Annotated[str, typer.Argument(help="Repository on the Hugging Face hub, OWNER/NAME.")],
    path: Annotated[str, typer.Option("--path", help="Folder in the repository. Default: its top.")] = "",
    metrics: Annotated[
        Path | None, typer.Option("--metrics", help="What `sparsight evaluate --json` printed, for the card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made: only you see it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded, and stop.")] = False,
) -> None:
    """Upload a dictionary with a card that says what it is and how to load it.

    Example: sparsight push runs/for-saelens someone/dictionaries --path layer_5 --dry-run
    """
    from sparsight import formats

    upload = formats.prepare(folder, repo, path=path, metrics=metrics)
    if dry_run:
        for name, file in upload.files.items():
            typer.echo(f"{name}  {file.stat().st_size:,} bytes")
        typer.echo(f"README.md:\n{upload.card}")
        return
    typer.echo(formats.push(upload, private=private))
    typer.echo(f"load it with sparsight.load_dictionary({str(upload.reference)!r})")
