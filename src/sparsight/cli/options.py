"""Flags that read the same in every command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from sparsight.activations import ActivationStore
    from sparsight.evaluation import Approximate
    from sparsight.models import LanguageModel

SITES = "2.resid_post, 0-3.attn_z,mlp_out, all.resid_post, embed, or all (every layer's attn_z, mlp_out and resid_post)"
"""What a flag for several sites takes; `sparsight.models.choose_sites` reads it."""

Model = Annotated[
    str, typer.Option("--model", help="'organism', 'organism-backdoored', a local model folder, or a hub id.")
]
Device = Annotated[str, typer.Option("--device", help="'auto', 'cpu', 'cuda' or 'cuda:N'.")]
Seed = Annotated[int, typer.Option("--seed", help="Every random choice follows from it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for scripts.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off, to the same result.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Activations = Annotated[Path, typer.Option("--activations", help="Folder written by `sparsight harvest`.")]
DictionaryFolder = Annotated[Path, typer.Argument(help="Folder written by `sparsight train`.")]
Search = Annotated[
    str,
    typer.Option(
        "--search",
        help="How pursuits find the best atom: 'exact', or 'approximate', which may choose others; what that did and "
        "cost is recorded.",
    ),
]
Candidates = Annotated[
    int | None,
    typer.Option("--candidates", min=1, help="Atoms kept between scans of all, with --search approximate: 64."),
]


def search_named(name: str, candidates: int | None) -> "Approximate | None":
    """The search that the flags ask for; None is the exact one.

    Raises:
        ValueError: there is no such search, or candidates came without the approximate one.
    """
    from sparsight.evaluation import Approximate

    if name not in ("exact", "approximate"):
        raise ValueError(f"--search must be 'exact' or 'approximate', got {name!r}")
    if name == "exact":
        if candidates is not None:
            raise ValueError("--candidates is for --search approximate; an exact search looks at every atom")
        return None
    return Approximate() if candidates is None else Approximate(candidates)


def model_for(store: "ActivationStore", name: str | None, without: bool, device: str) -> "LanguageModel | None":
    """The model to measure the loss with: the one named, else the one the store was harvested from."""
    if without:
        return None
    from sparsight.errors import ModelError
    from sparsight.models import load_model

    try:
        return load_model(name if name is not None else store.model, device=device)
    except ModelError as error:
        raise ModelError(f"{error} (give --model NAME, or --no-model to leave the loss out)") from error


def place(device: str) -> "torch.device":
    """The device a flag names; CUDA for "auto" where there is one."""
    import torch

    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
