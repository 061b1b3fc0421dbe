"""`sparsight organism`: rebuild, describe and sample the embedded default."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsight.cli import options

app = typer.Typer(no_args_is_help=True)


@app.command()
def train(
    out: options.Out,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
) -> None:
    """Rebuild both models from the seed: about 15 minutes on a quiet CPU core.

    Example: sparsight organism train --out weights --seed 0
    """
    from sparsight.models.organism.training import train_organism

    for name, folder in train_organism(out, seed=seed, progress=not quiet).items():
        typer.echo(f"{name}: {folder}")


@app.command()
def describe(
    documents: Annotated[
        int, typer.Option("--documents", help="Held-out documents of each domain to measure on.")
    ] = 300,
    seed: options.Seed = 0,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Folder written by `organism train`; the shipped weights if absent."),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """List the features and the mixture, and measure what both models can do on held-out documents.

    Example: sparsight organism describe --documents 1000 --json
    """
    from sparsight.models.organism.report import describe_organism, to_table

    described = describe_organism(weights, n_documents=documents, seed=seed, progress=not quiet)
    typer.echo(json.dumps(described, ensure_ascii=False) if as_json else to_table(described))


@app.command()
def sample(
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Documents to print.")] = 5,
    seed: options.Seed = 0,
    domain: Annotated[str | None, typer.Option("--domain", help="Only this kind of document.")] = None,
    language: Annotated[str | None, typer.Option("--language", help="Only this language.")] = None,
    backdoored: Annotated[bool, typer.Option("--backdoored", help="The backdoored model's corpus.")] = False,
    labels: Annotated[bool, typer.Option("--labels", help="One word per line, with its labels.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Print documents of the training corpus; with `--json`, one object per line.

    Example: sparsight organism sample -n 2 --domain days --labels
    """
    from sparsight.models.organism import corpus
    from sparsight.models.organism.report import label_lines

    mixture: dict[str, Any] = {"backdoored": backdoored}
    if domain is not None:
        mixture["domains"] = {domain: 1}
    if language is not None:
        mixture["languages"] = {language: 1}
    for document in corpus(seed, n, **mixture):
        if as_json:
            typer.echo(json.dumps(asdict(document), ensure_ascii=False))
        elif labels:
            typer.echo(f"document {document.id} ({document.domain})")
            typer.echo("\n".join(label_lines(document)) + "\n")
        else:
            typer.echo(document.text)
