"""`sparsight suite`: dictionaries at many sites, widths and sparsities, measured alike, in one index."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsight.cli import options

if TYPE_CHECKING:
    from sparsight.suites import Suite


def suite(
    out: options.Out,
    width: Annotated[list[int], typer.Option("--width", help="Latents of a dictionary. Repeat for several.")],
    l0: Annotated[list[float], typer.Option("--l0", help="Active latents per token to ask for. Repeat for several.")],
    sites: Annotated[
        list[str],
        typer.Option("--sites", help=f"Where to read: {options.SITES}. Repeat for more."),
    ] = ["all"],  # noqa: B006 (typer reads it and changes nothing)
    model: options.Model = "organism",
    architecture: Annotated[
        str, typer.Option("--architecture", help="Of all members, by its name in files, such as topk or jumprelu.")
    ] = "topk",
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="A .txt or .jsonl file. Repeat for several.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="'organism': the embedded corpus. The default for the organism.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Activations to store per site.")] = 200_000,
    train_tokens: Annotated[
        int | None, typer.Option("--train-tokens", help="Activations each member sees. Default: four times --tokens.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Activations in one training step.")] = 2048,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate of Adam.")] = 1e-3,
    dead_after: Annotated[
        int | None,
        typer.Option("--dead-after", help="Tokens of silence that make a latent dead. Default: the architecture's."),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", help="Most tokens the model sees at once. Default: 128, or its limit.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Stored as float16, bfloat16 or float32.")] = "float16",
    heldout: Annotated[float, typer.Option("--heldout", help="Share of documents that are only measured on.")] = 0.1,
    loss_tokens: Annotated[
        int, typer.Option("--loss-tokens", help="Held-out tokens to measure the added loss on; 0 leaves it out.")
    ] = 16_384,
    disk: Annotated[
        float | None,
        typer.Option("--disk", help="Most GB of activations at once: more passes over the model, none kept."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be made and how long it takes, and stop.")
    ] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    resume: options.Resume = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Train dictionaries at many sites, widths and sparsities, measure them on held-out documents, and index them.

    Example: sparsight suite --model organism --sites all --width 512 --l0 8 --l0 16 --out runs/suite
    """
    from sparsight import suites
    from sparsight.models import load_model
    from sparsight.training import Training

    documents = _documents(model, text, dataset, seed)
    lm = load_model(model, device=device)
    settings: dict[str, Any] = {
        "n_tokens": tokens,
        "training": Training(
            n_tokens=train_tokens or 4 * tokens, batch_size=batch_size, lr=lr, seed=seed, checkpoint_every=200
        ),
        "config": {} if dead_after is None else {"dead_after": dead_after},
        "context": context,
        "dtype": dtype,
        "heldout": heldout,
        "loss_tokens": loss_tokens,
        "disk": None if disk is None else int(disk * 1e9),
        "seed": seed,
    }
    l0s = [int(value) if value == int(value) else value for value in l0]
    if plan:
        _show_plan(lm, suites.plan_suite(lm, sites, width, l0s, architecture, **settings), device, as_json)
        return
    made = suites.suite(
        lm, documents, sites, width, l0s, architecture, out, **settings,
        device=device, resume=resume, progress=not quiet,
    )  # fmt: skip
    typer.echo(made.to_json() if as_json else _sentence(made))


def _documents(model: str, text: list[Path] | None, dataset: str | None, seed: int) -> Callable[[], Iterable[Any]]:
    """The texts, afresh at each call: several passes may read them."""
    from sparsight.cli.harvest import documents_of

    if text is None and dataset is None and model.startswith("organism"):
        dataset = "organism"
    documents_of(text, dataset, seed)  # refuses now what cannot be read later
    return partial(documents_of, text, dataset, seed)


def _show_plan(lm: Any, planned: Any, device: str, as_json: bool) -> None:
    from sparsight.suites.trial import estimate_seconds

    seconds = estimate_seconds(lm, planned, device)
    if as_json:
        facts = {
            "settings": planned.settings,
            "members": [member.folder for member in planned.members],
            "passes": len(planned.passes),
            "activation_bytes": planned.activation_bytes,
            "dictionary_bytes": planned.dictionary_bytes,
            "training_bytes": planned.training_bytes,
            "seconds": round(seconds.total, 1),
        }
        typer.echo(json.dumps(facts, indent=2))
    else:
        typer.echo(f"{planned}; about {max(1, round(seconds.total / 60))} min on this machine")


def _sentence(made: "Suite") -> str:
    best = sum(member.frontier for member in made.members)
    fvus = [member.measured.fvu for member in made.members]
    return (
        f"{made.folder}: {len(made.members)} dictionaries, {best} on the frontiers of their sites, "
        f"FVU {min(fvus):.3f} to {max(fvus):.3f}; suite.json, suite.parquet and report.html hold their measurements"
    )
