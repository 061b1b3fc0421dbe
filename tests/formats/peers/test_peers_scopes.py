"""Gemma Scope and Llama Scope files built tensor by tensor: SAELens's readers of them and ours give the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peers import run_peer
from safetensors.torch import load_file, save_file

from sparsight.formats import load_dictionary

pytestmark = pytest.mark.peers

D, M = 12, 16384
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
GEMMA = {
    "res": ("google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82"),
    "mlp": ("google/gemma-scope-9b-pt-mlp", "layer_3/width_16k/average_l0_20"),
    "att": ("google/gemma-scope-2b-pt-att", "layer_3/width_16k/average_l0_20"),
}
TRANSCODER = ("google/gemma-scope-2b-pt-transcoders", "layer_3/width_16k/average_l0_20")
GEMMA_2 = {
    "resid": ("google/gemma-scope-2-1b-pt", "resid_post/layer_7_width_16k_l0_small"),
    "attn": ("google/gemma-scope-2-1b-pt", "attn_out/layer_7_width_16k_l0_small"),
    "unsaid": ("google/gemma-scope-2-270m-pt", "mlp_out_all/layer_3_width_16k_l0_big"),
    "transcoder": ("google/gemma-scope-2-1b-pt", "transcoder/layer_7_width_16k_l0_small"),
    "skip": ("google/gemma-scope-2-1b-pt", "transcoder/layer_7_width_16k_l0_small_affine"),
}
HOOKS_2 = {
    "resid": {"hf_hook_point_in": "model.layers.7.output"},
    "attn": {"hf_hook_point_in": "model.layers.7.self_attn.o_proj.input"},
    "transcoder": {
        "hf_hook_point_in": "model.layers.7.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.7.post_feedforward_layernorm.output",
    },
}
LLAMA = ("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x")
DISTILLED = ("fnlp/Llama-Scope-R1-Distill", "400M-Slimpajama-400M-OpenR1-Math-220k/L15R")
ALL = [*GEMMA.values(), TRANSCODER, *GEMMA_2.values(), LLAMA, DISTILLED]


def drawn(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=g) / shape[0] ** 0.5 for name, shape in shapes.items()}


def write_gemma_2(folder: Path, kind: str, t: dict[str, torch.Tensor]) -> None:
    """Lower-case names, and a configuration with the names of modules; the one that is "unsaid" has none."""
    tensors = {name.replace("W_", "w_"): tensor for name, tensor in t.items()}
    if kind == "skip":
        tensors["affine_skip_connection"] = drawn(skip=(D, D))["skip"]
    save_file(tensors, folder / "params.safetensors")
    if kind != "unsaid":
        hooks = HOOKS_2["transcoder" if kind == "skip" else kind]
        cfg = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", **hooks}
        cfg |= {"affine_connection": kind == "skip"} if len(hooks) == 2 else {}
        (folder / "config.json").write_text(json.dumps(cfg))


def write_distilled(folder: Path, linear: dict[str, torch.Tensor]) -> None:
    """The linear layers, a threshold for each latent, and the norms of the data beside them."""
    norms = {f"dataset_average_activation_norm.{side}": torch.tensor(D**0.5 / 1.7) for side in ("in", "out")}
    threshold = {"log_jumprelu_threshold": drawn(log_jumprelu_threshold=(8 * D,))["log_jumprelu_threshold"]}
    folder.mkdir(parents=True)
    save_file({**linear, **norms, **threshold}, folder / "sae_weights.safetensors")
    cfg = {"d_model": D, "expansion_factor": 8, "hook_point_in": "blocks.15.hook_resid_post", "act_fn": "jumprelu"}
    (folder / "config.json").write_text(json.dumps({**cfg, "hook_point_out": cfg["hook_point_in"]}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scopes")
    t = drawn(W_enc=(D, M), b_enc=(M,), W_dec=(M, D), b_dec=(D,), threshold=(M,))
    t["threshold"] = 1 + 100 * t["threshold"].abs()
    cases = []
    for repo, name in [*GEMMA.values(), TRANSCODER]:
        (folder / repo / name).mkdir(parents=True)
        np.savez(folder / repo / name / "params.npz", **{key: tensor.numpy() for key, tensor in t.items()})
        kind = "gemma_2_transcoder" if "transcoders" in repo else "gemma_2_sae"
        cases.append((repo, name, f"{kind}_huggingface_loader"))
    for kind, (repo, name) in GEMMA_2.items():
        (folder / repo / name).mkdir(parents=True)
        write_gemma_2(folder / repo / name, kind, t)
        cases.append((repo, name, "gemma_3_sae_huggingface_loader"))
    repo, name = LLAMA
    (folder / repo / name / "checkpoints").mkdir(parents=True)
    m = 8 * D
    linear = drawn(**{"encoder.weight": (m, D), "encoder.bias": (m,), "decoder.weight": (D, m), "decoder.bias": (D,)})
    rounded = {key: tensor.bfloat16() for key, tensor in linear.items()}
    save_file(rounded, folder / repo / name / "checkpoints" / "final.safetensors")
    # A scale of 2, so that SAELens, which rounds the threshold to bfloat16, loses nothing.
    norms = {"in": D**0.5 / 2, "out": D**0.5 / 2}
    cfg = {"d_model": D, "d_sae": m, "hook_point_in": "blocks.15.hook_resid_post", "jump_relu_threshold": 0.25}
    cfg = {**cfg, "hook_point_out": cfg["hook_point_in"], "dataset_average_activation_norm": norms}
    (folder / repo / name / "hyperparams.json").write_text(json.dumps(cfg))
    cases.append((repo, name, "llama_scope_sae_huggingface_loader"))
    write_distilled(folder / DISTILLED[0] / DISTILLED[1], linear)
    cases.append((*DISTILLED, "llama_scope_r1_distill_sae_huggingface_loader"))
    (folder / "cases.json").write_text(json.dumps(cases))
    x = 0.5 + torch.randn(32, D, generator=torch.Generator().manual_seed(9))
    for repo, name, _ in cases:
        save_file({"x": x}, folder / repo / name / "inputs.safetensors")
    run_peer("scopes_peer.py", folder)
    return folder


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case[0].split('/')[1]}/{case[1].split('/')[0]}")
def test_the_readers_of_saelens_and_ours_give_the_same(case: tuple[str, str], folder: Path) -> None:
    where = folder / case[0] / case[1]
    x, seen = load_file(where / "inputs.safetensors")["x"], load_file(where / "seen.safetensors")
    dictionary = load_dictionary(where)
    assert 0 < (seen["values"] > 0).float().mean() < 0.9
    torch.testing.assert_close(dictionary.encode_dense(x), seen["values"], **CLOSE)
    torch.testing.assert_close(dictionary(x), seen["y"], **CLOSE)
