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
LLAMA = ("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x")


def drawn(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=g) / shape[0] ** 0.5 for name, shape in shapes.items()}


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
    (folder / "cases.json").write_text(json.dumps(cases))
    x = 0.5 + torch.randn(32, D, generator=torch.Generator().manual_seed(9))
    for repo, name, _ in cases:
        save_file({"x": x}, folder / repo / name / "inputs.safetensors")
    run_peer("scopes_peer.py", folder)
    return folder


@pytest.mark.parametrize("case", [*GEMMA.values(), TRANSCODER, LLAMA], ids=lambda case: case[0].split("/")[1])
def test_the_readers_of_saelens_and_ours_give_the_same(case: tuple[str, str], folder: Path) -> None:
    where = folder / case[0] / case[1]
    x, seen = load_file(where / "inputs.safetensors")["x"], load_file(where / "seen.safetensors")
    dictionary = load_dictionary(where)
    assert 0 < (seen["values"] > 0).float().mean() < 0.9
    torch.testing.assert_close(dictionary.encode_dense(x), seen["values"], **CLOSE)
    torch.testing.assert_close(dictionary(x), seen["y"], **CLOSE)
