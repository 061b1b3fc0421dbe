"""Files of Llama Scope and of Llamascopium built tensor by tensor: each layout codes by its own formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import D, M, assert_codes, assert_same, drawn, inputs, keep_largest, shaken, uneven, write_files
from torch import Tensor

from sparsight.dictionaries import BatchTopK, Gated, JumpReLU, Place, Pursuit, ReLU, TopK, Transcoder, WeightedTopK
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary, write_dictionary_as
from sparsight.models import Site

OLD = ("hyperparams.json", "checkpoints/final.safetensors")
NEW = ("config.json", "sae_weights.safetensors")
HOOK, HOOK_IN, HOOK_OUT = "blocks.15.hook_resid_post", "blocks.15.hook_resid_mid", "blocks.15.hook_mlp_out"
NORM_IN, NORM_OUT = 4.0, 1.5
S_IN, S_OUT = D**0.5 / NORM_IN, D**0.5 / NORM_OUT


def linear(**more: tuple[int, ...]) -> dict[str, Tensor]:
    """As published: linear layers in bfloat16."""
    found = drawn(**{"encoder.weight": (M, D), "encoder.bias": (M,), "decoder.bias": (D,)}, **more)
    found["decoder.weight"] = uneven(drawn(1, W=(M, D))["W"]).T
    return {name: tensor.bfloat16() for name, tensor in found.items()}


def hyperparams(out: str = HOOK, **more: Any) -> dict[str, Any]:
    norms = {"in": NORM_IN, "out": NORM_OUT if out != HOOK else NORM_IN}
    cfg = {"d_model": D, "d_sae": M, "hook_point_in": HOOK if out == HOOK else HOOK_IN, "hook_point_out": out}
    return {**cfg, "jump_relu_threshold": 0.4, "dataset_average_activation_norm": norms, "top_k": 50, **more}


def floats(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in found.items()}


def test_llama_scope_scales_its_one_threshold_with_its_input(tmp_path: Path) -> None:
    found, x = linear(), inputs()
    dictionary = load_dictionary(write_files(tmp_path / "L15R-8x", hyperparams(), found, OLD))
    t = floats(found)
    pre = S_IN * x @ t["encoder.weight"].T + t["encoder.bias"]
    f = torch.where(pre > 0.4 * S_IN, pre, 0.0)
    W_dec = t["decoder.weight"].T / S_IN
    assert_codes(dictionary, x, f, W_dec, f @ W_dec + t["decoder.bias"] / S_IN)
    assert (dictionary.model, dictionary.site) == ("meta-llama/Llama-3.1-8B", Site(15, "resid_post"))
    assert dictionary.provenance["prepend_bos"] is True


def test_its_transcoders_have_a_scale_for_each_side(tmp_path: Path) -> None:
    found, x = linear(), inputs()
    dictionary = load_dictionary(write_files(tmp_path / "L15TC-8x", hyperparams(HOOK_OUT), found, OLD))
    t = floats(found)
    pre = S_IN * x @ t["encoder.weight"].T + t["encoder.bias"]
    f = torch.where(pre > 0.4 * S_IN, pre, 0.0)
    W_dec = t["decoder.weight"].T / S_OUT
    assert_codes(dictionary, x, f, W_dec, f @ W_dec + t["decoder.bias"] / S_OUT)
    assert [str(place.site) for place in dictionary.places] == ["15.resid_mid", "15.mlp_out"]


@pytest.mark.parametrize("by_norm", [False, True])
def test_the_distilled_ones_have_a_threshold_for_each_latent(by_norm: bool, tmp_path: Path) -> None:
    found, x = linear(log_jumprelu_threshold=(M,)), inputs()
    found[f"dataset_average_activation_norm.{'in' if by_norm else HOOK}"] = torch.tensor(NORM_IN)
    if by_norm:
        found["dataset_average_activation_norm.out"] = torch.tensor(NORM_IN)
    cfg = {"d_model": D, "expansion_factor": M / D, "hook_point_in": HOOK, "sparsity_include_decoder_norm": by_norm}
    folder = tmp_path / "Llama-Scope-R1-Distill" / "L15R"
    dictionary = load_dictionary(write_files(folder, cfg, found, NEW))
    t = floats(found)
    pre = S_IN * x @ t["encoder.weight"].T + t["encoder.bias"]
    compared = pre * t["decoder.weight"].norm(dim=0) if by_norm else pre
    f = torch.where(compared > t["log_jumprelu_threshold"].exp(), pre, 0.0)
    W_dec = t["decoder.weight"].T / S_IN
    assert_codes(dictionary, x, f, W_dec, f @ W_dec + t["decoder.bias"] / S_IN)
    assert dictionary.model == "meta-llama/Llama-3.1-8B"


def framework(**more: tuple[int, ...]) -> dict[str, Tensor]:
    found = drawn(W_E=(D, M), b_E=(M,), W_D=(M, D), b_D=(D,), **more)
    found["W_D"] = uneven(found["W_D"])
    norms = {
        f"dataset_average_activation_norm.{HOOK_IN}": NORM_IN,
        f"dataset_average_activation_norm.{HOOK_OUT}": NORM_OUT,
    }
    return {**found, **{name: torch.tensor(norm) for name, norm in norms.items()}}


def config(**more: Any) -> dict[str, Any]:
    cfg = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": M / D,
        "act_fn": "relu",
        "norm_activation": "dataset-wise",
    }
    return {**cfg, "top_k": 4, "hook_point_in": HOOK_IN, "hook_point_out": HOOK_OUT, **more}


THRESHOLD = "activation_function.log_jumprelu_threshold"


@pytest.mark.parametrize("act", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("mode", ["dataset-wise", "inference"])
def test_the_framework_codes_normalised_activations_and_may_compare_by_norm(
    act: str, by_norm: bool, mode: str, tmp_path: Path
) -> None:
    t, x = framework(**({THRESHOLD: (M,)} if act == "jumprelu" else {})), inputs()
    cfg = config(act_fn=act, sparsity_include_decoder_norm=by_norm, norm_activation=mode)
    if mode == "inference":  # norms that nobody set
        t[f"dataset_average_activation_norm.{HOOK_IN}"] = torch.tensor(float("nan"))
    dictionary = load_dictionary(write_files(tmp_path, cfg, t, NEW))
    s_in, s_out = (S_IN, S_OUT) if mode == "dataset-wise" else (1.0, 1.0)
    pre = s_in * x @ t["W_E"] + t["b_E"]
    compared = pre * t["W_D"].norm(dim=1) if by_norm else pre
    if act == "relu":
        f = pre.relu()
    elif act == "topk":
        f = keep_largest(pre, 4, compared)
    else:
        f = torch.where(compared > t[THRESHOLD].exp(), pre, 0.0)
    W_dec = t["W_D"] / s_out
    assert_codes(dictionary, x, f, W_dec, f @ W_dec + t["b_D"] / s_out)
    assert dictionary.model is None


def test_an_autoencoder_of_the_framework_may_lack_an_offset(tmp_path: Path) -> None:
    t = {name: tensor for name, tensor in framework().items() if name in ("W_E", "b_E", "W_D")}
    cfg = config(use_decoder_bias=False, norm_activation="inference", hook_point_in=HOOK, hook_point_out=HOOK)
    dictionary, x = load_dictionary(write_files(tmp_path, cfg, t, NEW)), inputs()
    f = (x @ t["W_E"] + t["b_E"]).relu()
    assert_codes(dictionary, x, f, t["W_D"], f @ t["W_D"])
    assert dictionary.site == Site(15, "resid_post")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "clt": ({"sae_type": "clt"}, r"config\.json: key 'sae_type' is 'clt'"),
    "lorsa": ({"sae_type": "lorsa"}, "key 'sae_type' is 'lorsa'"),
    "glu": ({"use_glu_encoder": True}, "key 'use_glu_encoder' is true"),
    "batchtopk": ({"act_fn": "batchtopk"}, "key 'act_fn' is 'batchtopk': a token's code depends on its batch"),
    "token-wise": ({"norm_activation": "token-wise"}, "key 'norm_activation' is 'token-wise': it divides each token"),
    "batch-wise": ({"norm_activation": "batch-wise"}, "key 'norm_activation' is 'batch-wise'"),
    "width": ({"d_model": 7}, "key 'd_model' is 7, the tensors have 6"),
    "latents": ({"expansion_factor": 2}, "key 'd_sae' is 12, the tensors have 15"),
    "threshold": ({"act_fn": "jumprelu"}, "tensor 'activation_function.log_jumprelu_threshold' is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_name(name: str, tmp_path: Path) -> None:
    cfg, message = REFUSED[name]
    with pytest.raises(FormatError, match=message):
        load_dictionary(write_files(tmp_path, config(**cfg), framework(), NEW))


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_a_norm_that_is_no_positive_number_is_refused(norm: float, tmp_path: Path) -> None:
    t = {**framework(), f"dataset_average_activation_norm.{HOOK_IN}": torch.tensor(norm)}
    with pytest.raises(FormatError, match=r"dataset_average_activation_norm\.blocks\.15\.hook_resid_mid must be"):
        load_dictionary(write_files(tmp_path, config(), t, NEW))
    cfg = hyperparams(dataset_average_activation_norm={"in": norm})
    with pytest.raises(FormatError, match=r"must be a positive number|not JSON"):
        load_dictionary(write_files(tmp_path / "old", cfg, linear(), OLD))


WRITTEN: dict[str, DictionaryConfig] = {
    "topk": TopK(M, 4),
    "weighted": WeightedTopK(M, 4),
    "batchtopk": BatchTopK(M, 4),
    "jumprelu": JumpReLU(M, l0=0.0),
    "relu": ReLU(M, 0.1, norms="free"),
    "gated": Gated(M, 0.1),
    "transcoder": Transcoder(M),
    "transcoder-k": Transcoder(M, 4),
    "transcoder-weighted": Transcoder(M, 4, weighted=True),
    "transcoder-jump": Transcoder(M, jump=True),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_reads_back_the_same(name: str, tmp_path: Path) -> None:
    dictionary = shaken(WRITTEN[name].build(D, torch.Generator().manual_seed(1)))
    dictionary.model, dictionary.site = "gpt2", Site(4, "resid_mid")
    if dictionary.places:
        dictionary.places = tuple(Place(D, Site(4, kind), "gpt2") for kind in ("resid_mid", "mlp_out"))
    write_dictionary_as(dictionary, tmp_path, "llama_scope")
    again = assert_same(tmp_path, dictionary)
    assert (again.model, again.site, again.places) == ("gpt2", dictionary.site, dictionary.places)


def test_what_llamascopium_cannot_hold_is_refused(tmp_path: Path) -> None:
    cases = (
        (Pursuit(M, 4).build(D), "codes like pursuit"),
        (Transcoder(M, skip=True).build(D), "transcoder with a skip"),
        (Transcoder(M).build([D, 5]), "widths 6 and 5"),
        (Transcoder(M).build(D), "sites are not known"),
        (Gated(M, 0.1, untied=True).build(D), "untied"),
    )
    for dictionary, message in cases:
        with pytest.raises(FormatError, match=message):
            write_dictionary_as(dictionary, tmp_path / "out", "llama_scope")
    assert not (tmp_path / "out").exists()
