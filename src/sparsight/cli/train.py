"""`sparsight train`: stored activations in, a dictionary out."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsight.cli import options

if TYPE_CHECKING:
    from sparsight.dictionaries import DictionaryConfig


def train(
    activations: options.Activations,
    out: options.Out,
    latents: Annotated[int, typer.Option("--latents", help="Width of the dictionary.")],
    architecture: Annotated[
        str, typer.Option("--architecture", help="'topk', 'jumprelu', 'pursuit', 'relu' or 'gated'.")
    ] = "topk",
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            help="Latents active in a token: exactly (topk), at most (pursuit), or on average (jumprelu, relu, gated).",
        ),
    ] = None,
    l1: Annotated[
        float | None,
        typer.Option("--l1", help="Weight of the penalty (relu, gated), in place of --k; 0.03 to 0.3 are usual."),
    ] = None,
    site: Annotated[str | None, typer.Option("--site", help="Which site, when the store holds several.")] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", help="Activations to train on, repeats counted. Default: four times the store's."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Activations in one step.")] = 2048,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate of Adam. Default: the architecture's.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    resume: options.Resume = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a dictionary on the training documents of a store.

    Example: sparsight train --activations runs/store --architecture topk --latents 1024 --k 16 --out runs/dictionaries
    """
    from sparsight import training
    from sparsight.activations import ActivationStore

    store = ActivationStore(activations)
    store.verify()
    config = _config(architecture, latents, k, l1)
    n_tokens = tokens if tokens is not None else 4 * len(store)
    given: dict[str, Any] = {} if lr is None else {"lr": lr}
    settings = training.Training(n_tokens=n_tokens, batch_size=batch_size, seed=seed, **given)
    [run] = training.train(
        store, [config], settings, out=out, site=site, resume=resume, device=device, progress=not quiet
    )
    last = run.metrics[-1]
    if as_json:
        typer.echo(json.dumps({"folder": str(run.folder), **last}, indent=2))
    else:
        typer.echo(
            f"{run.folder}: FVU {last['fvu']:.4f}, L0 {last['l0']:.1f}, dead {last['dead']:.1%} "
            f"in the last batch of {last['tokens']:,} training tokens"
        )


def _config(architecture: str, latents: int, k: int | None, l1: float | None) -> "DictionaryConfig":
    from sparsight.dictionaries import Gated, JumpReLU, Pursuit, ReLU, TopK

    if architecture in ("relu", "gated"):
        if (k is None) == (l1 is None):
            raise ValueError(
                f"--architecture {architecture} needs either --k, the mean number of active latents to reach, "
                "or --l1, the weight of the penalty"
            )
        target = None if k is None else float(k)
        return (ReLU if architecture == "relu" else Gated)(latents, l1, target_l0=target)
    if l1 is not None:
        raise ValueError(f"--l1 is a setting of relu and gated, got --architecture {architecture}; give --k")
    if k is None:
        raise ValueError(f"--architecture {architecture} needs --k, the latents active in a token; 16 to 64 are usual")
    if architecture == "topk":
        return TopK(latents, k)
    if architecture == "jumprelu":
        return JumpReLU(latents, target_l0=float(k))
    if architecture == "pursuit":
        return Pursuit(latents, k)
    raise ValueError(f"--architecture must be 'topk', 'jumprelu', 'pursuit', 'relu' or 'gated', got {architecture!r}")
