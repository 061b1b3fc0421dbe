"""Run by a Python that has SAELens: its own readers of Gemma Scope and Llama Scope, on files that lie here.

    python scopes_peer.py FOLDER

Reads FOLDER/REPO/NAME as if it came from the hub, for each case of FOLDER/cases.json; writes `seen.safetensors` there.
"""

import json
import sys
from pathlib import Path

import sae_lens.loading.pretrained_sae_loaders as loaders
import torch
from sae_lens.registry import get_sae_class
from safetensors.torch import load_file, save_file

FOLDER = Path(sys.argv[1])


def local(repo_id, filename, subfolder=None, **_):
    path = FOLDER / repo_id / (subfolder or "") / filename
    if not path.is_file():
        raise loaders.EntryNotFoundError(str(path))
    return str(path)


def shapes(repo_id, filename):
    return {name: list(tensor.shape) for name, tensor in load_file(FOLDER / repo_id / filename).items()}


def norm(repo, name):
    """Mean norm of the data: in the configuration of 2024, among the tensors of 2025."""
    if (FOLDER / repo / name / "hyperparams.json").is_file():
        config = json.loads((FOLDER / repo / name / "hyperparams.json").read_text())
        return config["dataset_average_activation_norm"]["in"]
    return load_file(FOLDER / repo / name / "sae_weights.safetensors")["dataset_average_activation_norm.in"].item()


@torch.no_grad()
def seen(repo, name, reader):
    cfg, state, _ = getattr(loaders, reader)(repo, name, "cpu")
    cfg = loaders.handle_config_defaulting(cfg)
    cfg["d_in"], cfg["d_sae"] = state["W_enc"].shape  # the published widths stand in its code
    if "d_out" in cfg:
        cfg["d_out"] = state["W_dec"].shape[1]
    cfg["dtype"] = "float32"
    sae_class, config_class = get_sae_class(cfg["architecture"])
    normalised = cfg.get("normalize_activations") == "expected_average_only_in"
    cfg["normalize_activations"] = "none"
    sae = sae_class(config_class.from_dict(cfg))
    sae.load_state_dict({key: value.float() for key, value in state.items()})
    if normalised:
        sae.fold_activation_norm_scaling_factor(sae.cfg.d_in**0.5 / norm(repo, name))
    sae.turn_off_forward_pass_hook_z_reshaping()
    x = load_file(FOLDER / repo / name / "inputs.safetensors")["x"]
    f = sae.encode(x)
    return {"values": f * sae.W_dec.norm(dim=-1), "y": sae(x)}


if __name__ == "__main__":
    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = local, shapes
    for repo, name, reader in json.loads((FOLDER / "cases.json").read_text()):
        found = {key: value.contiguous() for key, value in seen(repo, name, reader).items()}
        save_file(found, FOLDER / repo / name / "seen.safetensors")
