"""`sparsight features`: labelled tokens in, features with their representations and latents out."""

from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli import options


def features(
    activations: options.Activations,
    dictionary: Annotated[
        list[Path] | None,
        typer.Option("--dictionary", help="Folder written by `sparsight train`, searched for latents. Repeat."),
    ] = None,
    feature: Annotated[
        list[str] | None, typer.Option("--feature", help="Only this feature of the labels. Repeat for several.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="JSON file of labels by document or row, in place of the store's own."),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", help=f"Only here: {options.SITES}. Repeat for more. Default: all that is stored."),
    ] = None,
    given: Annotated[
        str | None,
        typer.Option("--given", help="Feature to hold fixed for shapes of ordered features and for interventions."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="For interventions: name or folder. Default: the store's own model.")
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not load a model: no interventions.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for features.json, features.txt and features.html.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on though made for another site or model.")] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Say of each labelled feature whether, where and how a model represents it, and which latents recover it.

    Example: sparsight features --activations runs/store --dictionary runs/dictionaries/topk-1024-k16 --given language
    """
    from sparsight.activations import ActivationStore
    from sparsight.evaluation.features import read_labels, report
    from sparsight.formats import load_dictionary

    store = ActivationStore(activations)
    store.verify()
    named = {folder.name: load_dictionary(folder).to(options.place(device)) for folder in dictionary or []}
    if len(named) < len(dictionary or []):
        raise ValueError("dictionaries are told apart by their folders' names, got one name twice; rename a folder")
    given_labels, meanings = read_labels(labels, store) if labels is not None else (None, None)
    wanted: object = feature
    if given_labels is not None:
        unknown = sorted(set(feature or ()) - set(given_labels))
        if unknown:
            raise ValueError(f"{labels} has no feature {unknown[0]!r}; it has {', '.join(given_labels)}")
        wanted = {name: given_labels[name] for name in feature or given_labels}
    result = report(
        options.model_for(store, model, no_model, device),
        store,
        wanted,  # type: ignore[arg-type]  # names of the store's features, or labels by name
        site,
        named,
        meanings=meanings,
        given=given,
        seed=seed,
        force=force,
        progress=not quiet,
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "features.json").write_text(result.to_json(), encoding="utf-8")
        (out / "features.txt").write_text(result.to_table() + "\n", encoding="utf-8")
        (out / "features.html").write_text(result.to_html(), encoding="utf-8")
    typer.echo(result.to_json() if as_json else result.to_table())
