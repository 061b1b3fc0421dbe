"""`sparsight evaluate`: a dictionary and stored activations in, measurements out."""

from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli import options


def evaluate(
    dictionary: options.DictionaryFolder,
    activations: Annotated[
        list[Path],
        typer.Option(
            "--activations", help="Folder written by `sparsight harvest`. For a crosscoder of models, one for each."
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="For the loss added: name or folder. Default: the store's own model.")
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Do not load a model: leave the loss out.")] = False,
    coder: Annotated[
        str | None, typer.Option("--coder", help="Code with 'gradient_pursuit' in place of the dictionary's own rule.")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", help="Latents per token, with --coder.")] = None,
    search: options.Search = "exact",
    candidates: options.Candidates = None,
    split: Annotated[str, typer.Option("--split", help="'heldout' or 'train' documents.")] = "heldout",
    shrinkage_tokens: Annotated[
        int,
        typer.Option("--shrinkage-tokens", min=0, help="Say where shrinkage is, on about so many tokens; 0: do not."),
    ] = 0,
    report: Annotated[
        Path | None, typer.Option("--report", help="Also write a page of measurements and latents.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure even if made for another site or model.")] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure a dictionary on held-out documents.

    Example: sparsight evaluate runs/dictionaries/topk-1024-k16 --activations runs/store
    """
    from sparsight import evaluation
    from sparsight.activations import ActivationStore
    from sparsight.formats import load_dictionary

    measured = load_dictionary(dictionary).to(options.place(device))
    stores = [ActivationStore(folder) for folder in activations]
    for store in stores:
        store.verify()
    store = stores[0]
    lm = options.model_for(store, model, no_model or len(stores) > 1, device)
    result = evaluation.evaluate(
        measured,
        store if len(stores) == 1 else stores,
        model=lm,
        coder=coder,
        k=k,
        search=options.search_named(search, candidates),
        split=split,
        shrinkage_tokens=shrinkage_tokens,
        seed=seed,
        force=force,
        progress=not quiet,
    )
    if report is not None:
        if measured.places:
            raise ValueError("--report shows dictionaries of one site; leave it out for a transcoder or a crosscoder")
        from sparsight.interpretation import write_dictionary_report

        write_dictionary_report(report, measured, store, lm, result, seed=seed, progress=not quiet)
    typer.echo(result.to_json() if as_json else result.to_table())
