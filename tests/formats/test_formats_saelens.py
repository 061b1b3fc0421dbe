"""SAELens files built tensor by tensor: they code by the formulas of that library, or are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsight.dictionaries import (
    Crosscoder,
    Gated,
    MatchingPursuit,
    Matryoshka,
    Pursuit,
    TopK,
    Transcoder,
    WeightedTopK,
)
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary, weights, write_dictionary_as
from sparsight.models import Site
from sparsight.training import Training, train

D, M, D_OUT = 6, 15, 5
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def tensors(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors of a standard dictionary with rows of many norms, and whatever else is asked for."""
    g = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    found = {
        "W_enc": torch.randn(D, M, generator=g),
        "b_enc": 0.3 * torch.randn(M, generator=g),
        "W_dec": torch.randn(M, D, generator=g) * (0.2 + torch.rand(M, 1, generator=g)),
        "b_dec": torch.randn(D, generator=g),
    }
    return {**found, **drawn}


def config(architecture: str, **more: Any) -> dict[str, Any]:
    metadata = {"sae_lens_version": "6.54.12", "model_name": "gpt2-small", "hook_name": "blocks.2.hook_mlp_out"}
    cfg = {"architecture": architecture, "d_in": D, "d_sae": M, "dtype": "float32", "apply_b_dec_to_input": True}
    return {**cfg, "normalize_activations": "none", "metadata": {**metadata, **more.pop("metadata", {})}, **more}


def old_config(**more: Any) -> dict[str, Any]:
    cfg = {"d_in": D, "d_sae": M, "dtype": "torch.float32", "hook_point": "blocks.2.hook_resid_pre"}
    return {**cfg, "model_name": "gpt2-small", "normalize_activations": False, **more}


def folder_of(path: Path, cfg: dict[str, Any], found: dict[str, Tensor]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "cfg.json").write_text(json.dumps(cfg))
    save_file({name: t.contiguous() for name, t in found.items()}, path / "sae_weights.safetensors")
    return path


def inputs(n: int = 32) -> Tensor:
    return 0.5 + torch.randn(n, D, generator=torch.Generator().manual_seed(9))


def pre(t: dict[str, Tensor], x: Tensor, subtracts: bool = True) -> Tensor:
    return (x - t["b_dec"] if subtracts else x) @ t["W_enc"] + t["b_enc"]


def kept(ranked: Tensor, values: Tensor, k: int) -> Tensor:
    columns = ranked.topk(k).indices
    return torch.zeros_like(values).scatter(1, columns, values.gather(1, columns).relu())


def agrees(path: Path, f: Tensor, t: dict[str, Tensor], architecture: str) -> None:
    """The dictionary of a folder gives `f` times the norms, and the reconstruction of `f`."""
    dictionary = load_dictionary(path)
    assert dictionary.config.architecture == architecture
    assert 0.02 < (f > 0).float().mean() < 0.9
    torch.testing.assert_close(dictionary.encode_dense(inputs()), f * t["W_dec"].norm(dim=1), **CLOSE)
    torch.testing.assert_close(dictionary(inputs()), f @ t["W_dec"] + t["b_dec"], **CLOSE)


@pytest.mark.parametrize("subtracts", [True, False])
def test_standard_is_a_rectifier_with_values_that_carry_the_norms(subtracts: bool, tmp_path: Path) -> None:
    t = tensors()
    folder_of(tmp_path, config("standard", apply_b_dec_to_input=subtracts), t)
    agrees(tmp_path, pre(t, inputs(), subtracts).relu(), t, "relu")


@pytest.mark.parametrize("subtracts", [True, False])
def test_gated_scales_its_magnitudes_by_exp_r_mag(subtracts: bool, tmp_path: Path) -> None:
    t = tensors(b_gate=(M,), b_mag=(M,), r_mag=(M,))
    del t["b_enc"]
    x = inputs() - t["b_dec"] if subtracts else inputs()
    open_ = x @ t["W_enc"] + t["b_gate"] > 0
    f = open_ * (x @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
    agrees(folder_of(tmp_path, config("gated", apply_b_dec_to_input=subtracts), t), f, t, "gated")


@pytest.mark.parametrize("name", ["threshold", "log_threshold"])
def test_jumprelu_reads_thresholds_and_their_logarithms_of_older_checkpoints(name: str, tmp_path: Path) -> None:
    t = tensors()
    threshold = torch.linspace(0.1, 1.5, M)
    folder_of(tmp_path, config("jumprelu"), {**t, name: threshold if name == "threshold" else threshold.log()})
    a = pre(t, inputs())
    agrees(tmp_path, a * (a > threshold), t, "jumprelu")


def test_thresholds_of_0_and_below_are_those_of_a_rectifier(tmp_path: Path) -> None:
    t = tensors()
    folder_of(tmp_path, config("jumprelu"), {**t, "threshold": torch.linspace(-1, 0, M)})
    agrees(tmp_path, pre(t, inputs()).relu(), t, "jumprelu")


def test_topk_with_rescaling_ranks_by_the_values_here(tmp_path: Path) -> None:
    t = tensors()
    folder_of(tmp_path, config("topk", k=4, rescale_acts_by_decoder_norm=True), t)
    a, norms = pre(t, inputs()), t["W_dec"].norm(dim=1)
    f = kept(a * norms, a * norms, 4) / norms
    agrees(tmp_path, f, t, "topk")


def test_topk_without_rescaling_keeps_its_own_ranking_though_norms_differ(tmp_path: Path) -> None:
    t = tensors()
    a = pre(t, inputs())
    assert not torch.equal(a.topk(4).indices, (a * t["W_dec"].norm(dim=1)).topk(4).indices)
    agrees(folder_of(tmp_path, config("topk", k=4), t), kept(a, a, 4), t, "weighted_topk")


def test_a_bfloat16_file_is_coded_in_float32(tmp_path: Path) -> None:
    t = {name: tensor.bfloat16() for name, tensor in tensors().items()}
    folder_of(tmp_path, config("standard", dtype="bfloat16"), t)
    wide = {name: tensor.float() for name, tensor in t.items()}
    agrees(tmp_path, pre(wide, inputs()).relu(), wide, "relu")


@pytest.mark.parametrize("rescales", [True, False])
def test_a_batchtopk_checkpoint_has_its_one_threshold_in_the_units_it_was_compared_in(
    rescales: bool, tmp_path: Path
) -> None:
    t = tensors()
    cfg = config("batchtopk", k=4.0, rescale_acts_by_decoder_norm=rescales)
    details = {"training_architecture": "batchtopk", "training_architecture_details": {"k": 4.0}}
    cfg["metadata"].update(details)
    folder_of(tmp_path, cfg, {**t, "topk_threshold": torch.tensor(0.9, dtype=torch.float64)})
    a = pre(t, inputs())
    f = a * ((a * t["W_dec"].norm(dim=1) if rescales else a) > 0.9)
    agrees(tmp_path, f, t, "batchtopk" if rescales else "jumprelu")


def test_a_finished_matryoshka_gets_its_prefixes_back(tmp_path: Path) -> None:
    t = tensors()
    t["W_dec"] = torch.nn.functional.normalize(t["W_dec"], dim=1)
    details = {"k": 4.0, "matryoshka_widths": [3, 9, M]}
    metadata = {"training_architecture": "matryoshka_batchtopk", "training_architecture_details": details}
    folder_of(tmp_path, config("jumprelu", metadata=metadata), {**t, "threshold": torch.full((M,), 0.8)})
    a = pre(t, inputs())
    agrees(tmp_path, a * (a > 0.8), t, "matryoshka")
    assert load_dictionary(tmp_path).config.widths == (3, 9, M)


@pytest.mark.parametrize("rescales", [True, False])
def test_the_scale_beside_a_checkpoint_is_folded_into_weights_and_thresholds(rescales: bool, tmp_path: Path) -> None:
    t, s = tensors(), 2.5
    cfg = config(
        "batchtopk", k=4, rescale_acts_by_decoder_norm=rescales, normalize_activations="expected_average_only_in"
    )
    folder_of(tmp_path, cfg, {**t, "topk_threshold": torch.tensor(0.9)})
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": s, "has_whitening": False}))
    a = pre(t, s * inputs())
    f = a * ((a * t["W_dec"].norm(dim=1) if rescales else a) > 0.9)
    dictionary = load_dictionary(tmp_path)
    torch.testing.assert_close(dictionary.encode_dense(inputs()), f * t["W_dec"].norm(dim=1) / s, **CLOSE)
    torch.testing.assert_close(dictionary(inputs()), (f @ t["W_dec"] + t["b_dec"]) / s, **CLOSE)


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("ranked", [True, False])
def test_a_whitening_beside_a_checkpoint_is_folded_and_ranks_stay_those_of_whitened_rows(
    ranked: bool, subtracts: bool, tmp_path: Path
) -> None:
    t, g = tensors(), torch.Generator().manual_seed(5)
    mean, matrix = torch.randn(D, generator=g), torch.eye(D) + 0.3 * torch.randn(D, D, generator=g)
    inverse = torch.linalg.inv(matrix).contiguous()
    more = {"k": 4, "rescale_acts_by_decoder_norm": True} if ranked else {}
    cfg = config("topk" if ranked else "standard", apply_b_dec_to_input=subtracts, **more)
    folder_of(tmp_path, {**cfg, "normalize_activations": "covariance_whitening"}, t)
    save_file(
        {"mean": mean, "matrix": matrix, "inverse_matrix": inverse}, tmp_path / "activation_whitening.safetensors"
    )
    a, norms = pre(t, (inputs() - mean) @ matrix, subtracts), t["W_dec"].norm(dim=1)
    f = kept(a * norms, a, 4) if ranked else a.relu()
    dictionary, close = load_dictionary(tmp_path), {"rtol": 1e-4, "atol": 1e-4}
    written = (t["W_dec"] @ inverse).norm(dim=1)
    torch.testing.assert_close(dictionary.encode_dense(inputs()), f * written, **close)
    torch.testing.assert_close(dictionary(inputs()), (f @ t["W_dec"] + t["b_dec"]) @ inverse + mean, **close)


def test_blocks_of_latents_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, config("standard", apply_b_dec_to_input=False), tensors())
    whole = load_dictionary(tmp_path)
    monkeypatch.setattr(weights, "BLOCK", 4)
    for name, parameter in load_dictionary(tmp_path).named_parameters():
        assert torch.equal(parameter, dict(whole.named_parameters())[name])


def test_a_row_of_norm_0_becomes_a_silent_latent(tmp_path: Path) -> None:
    t = tensors()
    t["W_dec"][7] = 0
    agrees(folder_of(tmp_path, config("standard"), t), pre(t, inputs()).relu(), t, "relu")


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("jump", [True, False])
def test_transcoders_subtract_nothing_and_skip_by_the_transposed_matrix(skip: bool, jump: bool, tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {"W_dec": (M, D_OUT), "b_dec": (D_OUT,)}
    t = tensors(**shapes, **({"W_skip": (D_OUT, D)} if skip else {}))
    threshold = torch.linspace(0.1, 1.5, M)
    name = f"{'jumprelu_' if jump else ''}{'skip_' if skip else ''}transcoder"
    where = {"hook_name": "blocks.4.hook_resid_mid", "hook_name_out": "blocks.4.hook_mlp_out"}
    cfg = config(name, d_out=D_OUT, apply_b_dec_to_input=False, metadata=where)
    folder_of(tmp_path, cfg, {**t, "threshold": threshold} if jump else t)
    a = pre(t, inputs(), subtracts=False)
    f = a * (a > threshold) if jump else a.relu()
    dictionary = load_dictionary(tmp_path)
    torch.testing.assert_close(dictionary.encode_dense(inputs()), f * t["W_dec"].norm(dim=1), **CLOSE)
    y = f @ t["W_dec"] + t["b_dec"] + (inputs() @ t["W_skip"].T if skip else 0)
    torch.testing.assert_close(dictionary(inputs()), y, **CLOSE)
    assert [place.site for place in dictionary.places] == [Site(4, "resid_mid"), Site(4, "mlp_out")]
    assert dictionary.site == Site(4, "resid_mid")


def test_a_matching_pursuit_of_fixed_length_is_read(tmp_path: Path) -> None:
    t = {name: tensor for name, tensor in tensors().items() if name in ("W_dec", "b_dec")}
    t["W_dec"] = torch.nn.functional.normalize(t["W_dec"], dim=1)
    rules = {"max_iterations": 3, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    folder_of(tmp_path, config("matching_pursuit", **rules), t)
    f, residual = torch.zeros(32, M), inputs() - t["b_dec"]
    for _ in range(3):
        best = (residual @ t["W_dec"].T).max(dim=1)
        f[torch.arange(32), best.indices] += best.values.relu()
        residual = residual - best.values.relu()[:, None] * t["W_dec"][best.indices]
    agrees(tmp_path, f, t, "pursuit")


@pytest.mark.parametrize("limit", [0.0, 0.9])
@pytest.mark.parametrize("stops", [True, False])
def test_a_matching_pursuit_over_rows_of_any_norm_stops_where_it_did(stops: bool, limit: float, tmp_path: Path) -> None:
    t = {name: tensor for name, tensor in tensors().items() if name in ("W_dec", "b_dec")}
    t["W_dec"] = torch.nn.functional.normalize(t["W_dec"], dim=1) * torch.linspace(0.7, 1.1, M)[:, None]
    rules = {"max_iterations": 7, "residual_threshold": limit, "stop_on_duplicate_support": stops}
    folder_of(tmp_path, config("matching_pursuit", **rules), t)
    f = torch.zeros(32, M)
    steps = [0] * 32
    for i, (row, code) in enumerate(zip(inputs() - t["b_dec"], f, strict=True)):  # one token after the other
        for _ in range(7):
            scores = row @ t["W_dec"].T
            j = int(scores.argmax())
            again = bool(code[j] > 0) or bool(scores[j] <= 0)
            code[j] += scores[j].relu()
            steps[i] += 1
            row = row - scores[j].relu() * t["W_dec"][j]
            if (stops and again) or row.norm() < limit:
                break
    assert len(set(steps)) > 1 or not (stops or limit)
    agrees(tmp_path, f, t, "matching_pursuit")
    write_dictionary_as(load_dictionary(tmp_path), tmp_path / "again", "saelens")
    agrees(tmp_path / "again", f, t, "matching_pursuit")


@pytest.mark.parametrize(
    "config", [WeightedTopK(12, 3), MatchingPursuit(12, 3), Transcoder(12)], ids=lambda c: c.run_name
)
def test_what_only_holds_published_weights_is_not_trained(config: DictionaryConfig, tmp_path: Path) -> None:
    source = [torch.ones(64, D), torch.ones(64, D)] if isinstance(config, Transcoder) else torch.ones(64, D)
    with pytest.raises(ValueError, match="holds weights that others published and has no training"):
        train(source, [config], Training(n_tokens=64, batch_size=32), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- versions before 6


def test_an_old_flat_configuration_is_read_under_its_old_names(tmp_path: Path) -> None:
    t = tensors()
    folder_of(tmp_path, old_config(activation_fn_str="relu"), {**t, "scaling_factor": torch.ones(M)})
    agrees(tmp_path, pre(t, inputs()).relu(), t, "relu")
    dictionary = load_dictionary(tmp_path)
    assert (dictionary.site, dictionary.model) == (Site(2, "resid_pre"), "gpt2")
    assert dictionary.provenance["prepend_bos"] is True


def test_an_old_topk_says_so_by_its_activation_function(tmp_path: Path) -> None:
    t = tensors()
    folder_of(tmp_path, old_config(activation_fn_str="topk", activation_fn_kwargs={"k": 4}), t)
    a = pre(t, inputs())
    agrees(tmp_path, kept(a, a, 4), t, "weighted_topk")


def test_factors_of_a_finetuned_code_are_carried_over(tmp_path: Path) -> None:
    t, factor = tensors(), torch.linspace(0.5, 1.5, M)
    folder_of(tmp_path, old_config(finetuning_scaling_factor=True), {**t, "scaling_factor": factor})
    agrees(tmp_path, pre(t, inputs()).relu() * factor, t, "relu")


def test_null_means_no_normalisation(tmp_path: Path) -> None:
    t = tensors()
    agrees(folder_of(tmp_path, old_config(normalize_activations=None), t), pre(t, inputs()).relu(), t, "relu")


# ---- refusals

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Tensor], str]] = {
    "layer norm": (
        config("standard", normalize_activations="layer_norm"),
        tensors(),
        "'normalize_activations' is 'lay",
    ),
    "norm of each": (
        config("standard", normalize_activations="constant_norm_rescale"),
        tensors(),
        "'normalize_activations' is 'constant_norm_rescale'",
    ),
    "unknown scale": (
        config("standard", normalize_activations="expected_average_only_in"),
        tensors(),
        r"no activation_scaler\.json",
    ),
    "unknown scale, old": (old_config(normalize_activations=True), tensors(), r"no activation_scaler\.json"),
    "unknown whitening": (
        config("standard", normalize_activations="covariance_whitening"),
        tensors(),
        r"no activation_whitening\.safetensors",
    ),
    "signed": (config("abstopk", k=3), tensors(), "'architecture' is 'abstopk': its values have either sign"),
    "temporal": (config("temporal"), tensors(), "'architecture' is 'temporal': it codes a token from earlier"),
    "later architecture": (config("quantum"), tensors(), "'architecture' is 'quantum': known are standard"),
    "activation": (old_config(activation_fn_str="tanh-relu"), tensors(), "'activation_fn' must be 'relu' or 'topk'"),
    "contradicting factor": (
        old_config(),
        tensors() | {"scaling_factor": torch.full((M,), 2.0)},
        "'finetuning_scaling_factor' is false",
    ),
    "pursuit without steps": (config("matching_pursuit", max_iterations=0), tensors(), "must be at least 1, got 0"),
    "pursuit with a limit below 0": (
        config("matching_pursuit", residual_threshold=-1.0),
        tensors(),
        r"'residual_threshold' must be 0 or a positive number, got -1\.0",
    ),
    "normalised pursuit": (
        config("matching_pursuit", normalize_activations="expected_average_only_in"),
        tensors(),
        "for matching_pursuit only 'none' is known",
    ),
    "no width": ({**config("standard"), "d_sae": None}, tensors(), "key 'd_sae' is missing"),
    "another width": (config("standard", d_sae=M + 1), tensors(), r"must be \[6, 16\].* got \[6, 15\]"),
    "half a latent": (config("topk", k=3.5), tensors(), "key 'k' must be a whole number, got 3.5"),
    "too many": (config("topk", k=600), tensors(), "k must be between 1 and the 15 latents, got k=600"),
    "extra tensor": (config("standard"), tensors(W_more=(3,)), "tensor 'W_more' is not part of standard"),
    "missing tensor": (config("jumprelu"), tensors(), "tensor 'threshold' is missing"),
    "whole numbers": (config("standard"), tensors() | {"b_dec": torch.zeros(D, dtype=torch.int64)}, "b_dec.*int64"),
    "NaN": (config("standard"), tensors() | {"b_dec": torch.full((D,), torch.nan)}, "b_dec holds NaN or infinity"),
    "silent but ranked": (
        config("topk", k=3),
        tensors() | {"W_dec": torch.eye(M)[:, :D].contiguous()},
        "row 6 of W_dec is 0: its rank cannot",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_over_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    cfg, found, message = REFUSED[name]
    folder_of(tmp_path, cfg, found)
    with pytest.raises(FormatError, match=message) as caught:
        load_dictionary(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", '{"metadata": 3, "d_in": 6}', '{"sae_lens_version": "new"}'])
def test_a_configuration_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    folder_of(tmp_path, {}, tensors())
    (tmp_path / "cfg.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match=r"cfg\.json"):
        load_dictionary(tmp_path)


def test_a_hook_without_a_site_is_remembered_and_written_back(tmp_path: Path) -> None:
    hook = "blocks.3.ln2.hook_normalized"
    folder_of(tmp_path / "a", config("standard", metadata={"hook_name": hook}), tensors())
    dictionary = load_dictionary(tmp_path / "a")
    assert dictionary.site is None
    assert dictionary.provenance["hook_name"] == hook
    dictionary.save(tmp_path / "ours")
    write_dictionary_as(load_dictionary(tmp_path / "ours"), tmp_path / "b", "saelens")
    assert json.loads((tmp_path / "b" / "cfg.json").read_text())["metadata"]["hook_name"] == hook


def test_one_head_of_several_is_no_site(tmp_path: Path) -> None:
    head = {"hook_name": "blocks.3.attn.hook_z", "hook_head_index": 2}
    folder_of(tmp_path, config("standard", metadata=head), tensors())
    assert load_dictionary(tmp_path).site is None


def test_a_folder_that_also_holds_our_own_files_is_ours(tmp_path: Path) -> None:
    folder_of(tmp_path, config("standard"), tensors())
    TopK(8, 2).build(4, torch.Generator().manual_seed(0)).save(tmp_path)
    assert load_dictionary(tmp_path).config.architecture == "topk"


UNWRITABLE: dict[str, DictionaryConfig] = {
    "crosscoder": Crosscoder(M, 3),
    "transcoder with k=3": Transcoder(M, 3),
    "untied": Gated(M, 0.1, untied=True),
    "polish": Pursuit(M, 3),
    "sampled=3": Matryoshka(M, 3, sampled=3),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_saelens_cannot_hold_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    dictionary = UNWRITABLE[name].build(D, torch.Generator().manual_seed(0))
    with pytest.raises(FormatError, match=name):
        write_dictionary_as(dictionary, tmp_path / "out", "saelens")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_a_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format must be one of .*saelens.*, got 'onnx'"):
        write_dictionary_as(TopK(8, 2).build(4), tmp_path, "onnx")
