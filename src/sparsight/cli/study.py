"""`sparsight study`: an open question, answered with effect sizes and intervals."""

from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli import options


def study(
    name: Annotated[str | None, typer.Argument(help="Which study; see --list.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write. Default: studies/NAME.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Fewer data: under a minute.")] = False,
    model: options.Model = "organism",
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="Text file to read, for another model. Repeat for several.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the studies and stop.")] = False,
    publish: Annotated[
        Path | None, typer.Option("--publish", help="Also copy page, record and figure into this docs folder.")
    ] = None,
    resume: options.Resume = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Answer an open question: verdict, effects with intervals, figure and page.

    Example: sparsight study pursuit-selects-better --out studies/pursuit
    """
    from sparsight.studies import registry

    if listed:
        width = max((len(n) for n in registry.STUDIES), default=0)
        for found in registry.STUDIES.values():
            typer.echo(f"{found.name:<{width}}  {found.question} ({found.source})")
        return
    if name is None:
        raise ValueError(f"name a study; there are: {', '.join(registry.STUDIES)}")
    chosen = registry.find_study(name)
    from sparsight import studies

    wanted = studies.Options(fast=fast, seed=seed, model=model, texts=tuple(text or ()), device=device)
    folder = out if out is not None else Path("studies") / chosen.name
    result = studies.run_study(chosen.name, folder, wanted, resume=resume, progress=not quiet)
    if publish is not None:
        studies.publish(result.folder, publish)
    if as_json:
        typer.echo(result.record.to_json())
        return
    typer.echo(result.record.to_table())
    if result.found:
        typer.echo("This folder held the finished study with these settings; nothing was computed anew.")
    typer.echo(f"The page: {result.folder / 'page.md'}")
