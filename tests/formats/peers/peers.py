"""Other projects, in an environment of their own: one process for each, which reads ours and writes theirs."""

import os
import subprocess
from pathlib import Path

import torch
from safetensors.torch import save_file

from sparsight.dictionaries import AbstractDictionary
from sparsight.formats import write_dictionary_as
from sparsight.models import Site

HERE = Path(__file__).parent
# Seconds for one peer. It takes 20 on an idle machine, most of them for its imports.
PATIENCE = 900


def run_peer(script: str, folder: Path) -> None:
    """Run a script of this folder in the environment of the peers."""
    python = os.environ.get("PEERS_PYTHON", "")
    assert python, "tests marked `peers` need PEERS_PYTHON, a Python that has the other projects: make test-peers"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [python, str(HERE / script), str(folder)],
        env={**environment, **quiet},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def export(dictionary: AbstractDictionary, folder: Path, name: str) -> None:
    """Write a dictionary for a peer, with inputs for it."""
    write_dictionary_as(dictionary, folder, name)
    g = torch.Generator().manual_seed(7)
    save_file({"x": 0.3 + torch.randn(64, dictionary.d_in, generator=g)}, folder / "inputs.safetensors")


def shaken(dictionary: AbstractDictionary, site: str | None = "5.resid_post") -> AbstractDictionary:
    """Parameters away from their start, atoms of norm 1, thresholds where some latents are active."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name in ("log_theta", "log_threshold"):
                parameter.fill_(-0.5)
            elif name in ("selection", "norm"):
                parameter.add_(torch.rand(parameter.shape, generator=g))
            elif name == "residual_limit":
                parameter.fill_(0.5)
            elif name.startswith("anneal"):
                continue
            else:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
        dictionary.normalize_atoms_()
    dictionary.site = None if site is None else Site.parse(site)
    dictionary.model = "gpt2"
    return dictionary.requires_grad_(False)
