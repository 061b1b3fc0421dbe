"""`sparsight steer`: what clamping a latent does to what a model writes, and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli import options


def steer(
    dictionary: options.DictionaryFolder,
    latent: Annotated[int, typer.Option("--latent", min=0, help="Which latent to clamp.")],
    prompt: Annotated[list[str], typer.Option("--prompt", help="A text to go on from. Repeat for several.")],
    words: Annotated[str, typer.Option("--words", help="Words that show the behaviour, separated by blanks.")],
    against: Annotated[
        str, typer.Option("--against", help="Words that show its opposite; without, any of --words will do.")
    ] = "",
    model: options.Model = "organism",
    strength: Annotated[
        list[float] | None,
        typer.Option(
            "--strength", help="Multiple of the latent's largest value. Repeat for several. Default: -4 to 8."
        ),
    ] = None,
    neutral: Annotated[
        list[Path] | None,
        typer.Option("--text", help="Text file for the side effects. The organism brings its own held-out documents."),
    ] = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Length of the continuations.")] = 12,
    controls: Annotated[int, typer.Option("--controls", min=0, help="Random directions of equal change.")] = 4,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Clamp a latent at several strengths while the model writes: behaviour, loss elsewhere, repetition, divergence.

    Example: sparsight steer runs/dictionaries/topk-1024-k16 --latent 417 --prompt "the cook sees" --words "der die das"
    """
    from sparsight import intervention
    from sparsight.activations import documents_from_files
    from sparsight.formats import load_dictionary
    from sparsight.models import load_model, organism

    lm = load_model(model, device=device)
    if neutral:
        texts = [document.text for document in documents_from_files(neutral)]
    elif model.startswith("organism"):
        texts = [document.text for document in organism.heldout_corpus(seed, 200, triggered=0, near_triggered=0)]
    else:
        raise ValueError("give --text FILE, on which the side effects are measured")
    result = intervention.steer(
        lm,
        load_dictionary(dictionary).to(options.place(device)),
        prompt,
        texts,
        intervention.words_score(words.split(), against.split()),
        *(() if not strength else (strength,)),
        latent=latent,
        max_new_tokens=new_tokens,
        n_controls=controls,
        seed=seed,
        progress=not quiet,
    )
    typer.echo(result.to_json() if as_json else result.to_table())
