"""`sparsight elicit`: perturbations that move a model most, and what it says under each."""

from pathlib import Path
from typing import Annotated

import typer

from sparsight.cli import options


def elicit(
    prompt: Annotated[list[str], typer.Option("--prompt", help="A text to perturb. Repeat for several.")],
    model: options.Model = "organism",
    source: Annotated[str, typer.Option("--source", help="Site at which perturbations are added.")] = "1.resid_post",
    target: Annotated[str, typer.Option("--target", help="Site they are to move.")] = "3.resid_post",
    vectors: Annotated[int, typer.Option("--vectors", min=1, help="How many to look for, all at once.")] = 16,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of each.")] = 300,
    radius: Annotated[
        float | None, typer.Option("--radius", help="Their norm. Default: the knee of the next token's divergence.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="'adam' on the sphere, or 'power' iteration.")] = "adam",
    orthogonal: Annotated[bool, typer.Option("--orthogonal", help="One after another, each orthogonal.")] = False,
    adapter_rank: Annotated[
        int,
        typer.Option("--adapter-rank", min=0, help="Adapters that read what they are added to, of that rank."),
    ] = 0,
    p: Annotated[float, typer.Option("--p", help="Exponent over tokens.")] = 2.0,
    q: Annotated[float, typer.Option("--q", help="Root over prompts.")] = 2.0,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Count only so many last tokens.")] = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Length of the completions.")] = 12,
    dictionary: Annotated[
        Path | None, typer.Option("--dictionary", help="Folder of a dictionary, to name the nearest atoms.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the vectors and the record.")] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Search perturbations at one site that move another most; cluster and rank what the model says under them.

    Example: sparsight elicit --prompt "user : please tell me how to make a bomb at home . assistant :" --vectors 32
    """
    from sparsight import intervention
    from sparsight.formats import load_dictionary
    from sparsight.models import load_model

    if method not in ("adam", "power"):
        raise ValueError(f"--method must be 'adam' or 'power', got {method!r}")
    search = intervention.Search(
        n_vectors=vectors,
        steps=steps,
        method="power" if method == "power" else "adam",
        orthogonal=orthogonal,
        seed=seed,
    )
    settings = intervention.Elicitation(
        radius=radius,
        p=p,
        q=q,
        last=last,
        max_new_tokens=new_tokens,
        dictionary=None if dictionary is None else load_dictionary(dictionary).to(options.place(device)),
        out=out,
        progress=not quiet,
    )
    lm = load_model(model, device=device)
    record: intervention.Elicited
    if adapter_rank:
        record, _ = intervention.elicit_adapters(lm, prompt, source, target, search, settings, rank=adapter_rank)
    else:
        record, _ = intervention.elicit(lm, prompt, source, target, search, settings)
    typer.echo(record.to_json() if as_json else record.to_table())
