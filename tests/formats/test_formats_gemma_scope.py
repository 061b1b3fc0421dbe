"""Gemma Scope files built tensor by tensor, in folders named as they were published."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import D, M, assert_codes, assert_same, drawn, inputs, shaken, uneven, write_files
from torch import Tensor

from sparsight.dictionaries import BatchTopK, Gated, JumpReLU, Matryoshka, Place, ReLU, TopK, Transcoder
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary, write_dictionary_as
from sparsight.models import Site

REPO = "models--google--gemma-scope-2b-pt-res/snapshots/0123abc"


def tensors(n: int = M, d: int = D, d_out: int = D, **more: tuple[int, ...]) -> dict[str, Tensor]:
    found = drawn(W_enc=(d, n), b_enc=(n,), W_dec=(n, d_out), b_dec=(d_out,), threshold=(n,), **more)
    return {**found, "W_dec": uneven(found["W_dec"]), "threshold": found["threshold"].abs()}


def npz(folder: Path, found: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: t.numpy() for name, t in found.items()})
    return folder


def jump(t: dict[str, Tensor], x: Tensor) -> Tensor:
    pre = x @ t["W_enc"] + t["b_enc"]
    return torch.where(pre > t["threshold"], pre, 0.0).relu()


@pytest.mark.parametrize("prefix", ["W_", "w_"])
def test_nothing_is_subtracted_and_thresholds_are_of_the_pre_activation(prefix: str, tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    renamed = {name.replace("W_", prefix): tensor for name, tensor in t.items()}
    renamed["scaling_factor"] = torch.ones(M)
    dictionary = load_dictionary(npz(tmp_path / REPO / "layer_12" / "average_l0_82", renamed))
    f = jump(t, x)
    assert_codes(dictionary, x, f, t["W_dec"], f @ t["W_dec"] + t["b_dec"])
    assert (dictionary.model, dictionary.site) == ("google/gemma-2-2b", Site(12, "resid_post"))
    assert dictionary.provenance["prepend_bos"] is True
    assert dictionary.provenance["imported_from"]["average_l0"] == "82"


@pytest.mark.parametrize(
    ("folder", "model", "site"),
    [
        ("gemma-scope-9b-it-res/layer_9/width_16k/average_l0_88", "google/gemma-2-9b-it", "9.resid_post"),
        ("gemma-scope-27b-pt-res/layer_22/width_16k/average_l0_1", "google/gemma-2-27b", "22.resid_post"),
        ("gemma-scope-2b-pt-mlp/layer_0/width_16k/average_l0_71", "google/gemma-2-2b", "0.mlp_out"),
        ("gemma-scope-9b-pt-att/layer_3/width_16k/average_l0_5", "google/gemma-2-9b", "3.attn_z"),
        ("somewhere/layer_3/width_16k/average_l0_5", None, None),
    ],
)
def test_names_of_folders_give_model_and_site(folder: str, model: str | None, site: str | None, tmp_path: Path) -> None:
    dictionary = load_dictionary(npz(tmp_path / folder, tensors(n=16384, d=2, d_out=2)))
    assert dictionary.model == model
    assert dictionary.site == (None if site is None else Site.parse(site))


def test_a_transcoder_reads_a_norm_without_its_weights_which_is_no_site(tmp_path: Path) -> None:
    t, x = tensors(d_out=D - 1), inputs()
    dictionary = load_dictionary(npz(tmp_path / "gemma-scope-2b-pt-transcoders/layer_7/average_l0_36", t))
    f = jump(t, x)
    assert_codes(dictionary, x, f, t["W_dec"], f @ t["W_dec"] + t["b_dec"])
    assert [place.site for place in dictionary.places] == [None, Site(7, "mlp_out")]
    assert dictionary.provenance["hook_name"] == "blocks.7.ln2.hook_normalized"


def test_embeddings_get_the_factor_that_the_model_puts_on_them(tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    dictionary = load_dictionary(npz(tmp_path / "gemma-scope-2b-pt-res/embedding/average_l0_6", t))
    f, root = jump(t, x / D**0.5), D**0.5
    assert_codes(dictionary, x, f, t["W_dec"] * root, (f @ t["W_dec"] + t["b_dec"]) * root)
    assert dictionary.site == Site(None, "embed")


def test_a_file_of_another_width_than_its_folder_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="15 latents in a folder of width 16k"):
        load_dictionary(npz(tmp_path / "layer_1" / "width_16k", tensors()))


@pytest.mark.parametrize(
    ("label", "n"), [("4k", 4096), ("16k", 16384), ("32k", 32768), ("65k", 65536), ("131k", 131072), ("1m", 1048576)]
)
def test_labels_of_widths_are_powers_of_two(label: str, n: int, tmp_path: Path) -> None:
    from sparsight.formats.gemma_scope import _check_width

    _check_width(n, label, tmp_path)
    with pytest.raises(FormatError, match=f"folder of width {label}"):
        _check_width(n + 1, label, tmp_path)


def test_a_factor_that_is_not_1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"params\.npz: scaling_factor is not 1"):
        load_dictionary(npz(tmp_path / "x", {**tensors(), "scaling_factor": torch.full((M,), 2.0)}))


SECOND = ("config.json", "params.safetensors")


def second(**more: Any) -> dict[str, Any]:
    name = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"}
    return {**name, "hf_hook_point_in": "model.layers.7.output", **more}


def lower(t: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("W_", "w_"): tensor for name, tensor in t.items()}


def test_the_second_version_says_its_site_in_its_configuration(tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    dictionary = load_dictionary(write_files(tmp_path / "any", second(), lower(t), SECOND))
    f = jump(t, x)
    assert_codes(dictionary, x, f, t["W_dec"], f @ t["W_dec"] + t["b_dec"])
    assert (dictionary.model, dictionary.site) == ("google/gemma-3-1b-pt", Site(7, "resid_post"))


def test_an_affine_skip_is_stored_with_inputs_as_rows(tmp_path: Path) -> None:
    t, x = tensors(affine_skip_connection=(D, D)), inputs()
    hooks = {
        key: f"model.layers.7.{name}_feedforward_layernorm.output"
        for key, name in (("hf_hook_point_in", "pre"), ("hf_hook_point_out", "post"))
    }
    cfg = second(affine_connection=True, **hooks)
    dictionary = load_dictionary(write_files(tmp_path / "any", cfg, lower(t), SECOND))
    f = jump(t, x)
    assert_codes(dictionary, x, f, t["W_dec"], f @ t["W_dec"] + t["b_dec"] + x @ t["affine_skip_connection"])
    assert [str(place.site) for place in dictionary.places] == ["7.mlp_in", "7.mlp_out"]


@pytest.mark.parametrize(
    ("folder", "sites"),
    [
        ("resid_post/layer_7_width_16k_l0_small", ["7.resid_post"]),
        ("attn_out_all/layer_7_width_16k_l0_big_seed_1", ["7.attn_z"]),
        ("mlp_out/layer_7_width_16k_l0_medium", ["7.mlp_out"]),
        ("transcoder_all/layer_7_width_16k_l0_small_affine", ["7.mlp_in", "7.mlp_out"]),
    ],
)
def test_without_a_configuration_the_folder_says_it(folder: str, sites: list[str], tmp_path: Path) -> None:
    more = {"affine_skip_connection": (2, 2)} if "affine" in folder else {}
    path = tmp_path / "gemma-scope-2-270m-pt" / folder
    write_files(path, {}, lower(tensors(n=16384, d=2, d_out=2, **more)), SECOND)
    (path / "config.json").unlink()
    dictionary = load_dictionary(path)
    assert dictionary.model == "google/gemma-3-270m"
    assert [str(place.site) for place in dictionary.places] == (sites if len(sites) > 1 else [])
    assert str(dictionary.site) == sites[0]


def test_another_architecture_and_a_missing_skip_are_refused(tmp_path: Path) -> None:
    for name, cfg, message in (
        ("a", {"architecture": "topk"}, "key 'architecture' is 'topk'"),
        ("b", {"affine_connection": True}, "no tensor 'affine_skip_connection'"),
    ):
        with pytest.raises(FormatError, match=message):
            load_dictionary(write_files(tmp_path / name, second(**cfg), lower(tensors()), SECOND))


WRITTEN: dict[str, DictionaryConfig] = {
    "jumprelu": JumpReLU(M, l0=0.0),
    "batchtopk": BatchTopK(M, 4),
    "matryoshka": Matryoshka(M, 4, (5,)),
    "relu": ReLU(M, 0.1, norms="free"),
    "gated": Gated(M, 0.1),
    "transcoder": Transcoder(M, jump=True),
    "transcoder-relu": Transcoder(M),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("version", ["gemma_scope", "gemma_scope_2"])
def test_what_is_written_reads_back_the_same(name: str, version: str, tmp_path: Path) -> None:
    dictionary = shaken(WRITTEN[name].build(D, torch.Generator().manual_seed(1)))
    dictionary.model, dictionary.site = "google/gemma-2-2b", Site(4, "resid_post")
    repo = "transcoders" if dictionary.places else "res"
    if dictionary.places:
        dictionary.places = tuple(Place(D, Site(4, kind), "google/gemma-2-2b") for kind in ("mlp_in", "mlp_out"))
    out = tmp_path / f"gemma-scope-2b-pt-{repo}" / "layer_4" / "x"
    write_dictionary_as(dictionary, out, version)
    again = assert_same(out, dictionary)
    assert again.model == "google/gemma-2-2b"
    if version == "gemma_scope_2":
        assert again.places == dictionary.places
    if not dictionary.places:
        assert again.site == Site(4, "resid_post")


def test_what_gemma_scope_cannot_hold_is_refused(tmp_path: Path) -> None:
    skip = shaken(Transcoder(M, jump=True, skip=True).build(D))
    cases = (
        (TopK(M, 4).build(D), "gemma_scope", tmp_path, "codes like topk"),
        (Transcoder(M, 4).build(D), "gemma_scope_2", tmp_path, "transcoder with k=4"),
        (Transcoder(M).build(D), "gemma_scope", tmp_path, "by the names of its folders"),
        (
            JumpReLU(M, l0=0.0).build(D),
            "gemma_scope",
            tmp_path / "gemma-scope-2b-pt-transcoders",
            "names of its folders",
        ),
        (skip, "gemma_scope", tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_1", "params.npz has none"),
        (Gated(M, 0.1, untied=True).build(D), "gemma_scope_2", tmp_path, "untied"),
        (skip, "gemma_scope_2", tmp_path, "output's site has no name"),
    )
    for dictionary, version, path, message in cases:
        with pytest.raises(FormatError, match=message):
            write_dictionary_as(dictionary, path, version)
    assert not list(tmp_path.rglob("params*"))


def test_the_second_version_keeps_its_skip(tmp_path: Path) -> None:
    dictionary = shaken(Transcoder(M, jump=True, skip=True).build(D, torch.Generator().manual_seed(1)))
    dictionary.places = tuple(Place(D, Site(4, kind), "google/gemma-3-1b-pt") for kind in ("mlp_in", "mlp_out"))
    write_dictionary_as(dictionary, tmp_path, "gemma_scope_2")
    assert json.loads((tmp_path / "config.json").read_text())["affine_connection"] is True
    assert_same(tmp_path, dictionary)
