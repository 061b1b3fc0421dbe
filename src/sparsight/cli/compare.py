"""`sparsight compare`: coders of one dictionary, side by side at equal L0."""

from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli import options


def compare(
    dictionary: options.DictionaryFolder,
    activations: options.Activations,
    k: Annotated[list[int], typer.Option("--k", help="Latents per token. Repeat for several.")],
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", help="A coder, or 'all'. Repeat for several. Default: encoder, topk, refit, pursuit."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="For the loss added: name or folder. Default: the store's own model.")
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not load a model: leave the loss out.")] = False,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Held-out tokens to code, spread evenly.")] = 32_768,
    loss_tokens: Annotated[int, typer.Option("--loss-tokens", min=1, help="The same for the loss added.")] = 8_192,
    search: options.Search = "exact",
    candidates: options.Candidates = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for comparison.json, comparison.txt and the figure as .svg and .png."),
    ] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Write FVU against L0 as an HTML figure.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare even if made for another site or model.")] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare ways of coding with the same atoms: the encoder, refitted weights, pursuit.

    Example: sparsight compare runs/dictionaries/topk-1024-k16 --activations runs/store --k 8 --k 16 --out runs/compared
    """
    from sparsight import evaluation
    from sparsight.activations import ActivationStore
    from sparsight.formats import load_dictionary

    measured = load_dictionary(dictionary).to(options.place(device))
    store = ActivationStore(activations)
    store.verify()
    lm = options.model_for(store, model, no_model, device)
    arms = list(evaluation.ARMS) if arm == ["all"] else arm
    result = evaluation.compare_coders(
        measured,
        store,
        k,
        arms,
        model=lm,
        search=options.search_named(search, candidates),
        n_tokens=tokens,
        loss_tokens=loss_tokens,
        seed=seed,
        force=force,
        progress=not quiet,
    )
    if out is not None:
        result.save(out)
    if figure is not None:
        figure.parent.mkdir(parents=True, exist_ok=True)
        result.to_figure().write_html(figure, include_plotlyjs=True)
    typer.echo(result.to_json() if as_json else result.to_table())
