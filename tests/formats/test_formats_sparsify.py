"""sparsify files built tensor by tensor: they code by the formulas of that library, or are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import D, M, assert_codes, assert_same, drawn, inputs, keep_largest, shaken, uneven, write_files
from torch import Tensor

from sparsight.dictionaries import JumpReLU, Place, TopK, Transcoder, WeightedTopK
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary, write_dictionary_as
from sparsight.models import Site

NAMES = ("cfg.json", "sae.safetensors")
K = 4


def tensors(**more: tuple[int, ...]) -> dict[str, Tensor]:
    found = drawn(**{"encoder.weight": (M, D), "encoder.bias": (M,), "W_dec": (M, D), "b_dec": (D,)}, **more)
    return {**found, "W_dec": uneven(found["W_dec"])}


def config(**more: Any) -> dict[str, Any]:
    return {"activation": "topk", "num_latents": M, "k": K, "d_in": D, "expansion_factor": 32, **more}


def run_folder(tmp_path: Path, module: str = "layers.5") -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m", "ctx_len": 2048}))
    return tmp_path / module


def test_an_autoencoder_subtracts_its_offset_and_ranks_without_norms(tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    dictionary = load_dictionary(write_files(run_folder(tmp_path), config(normalize_decoder=True), t, NAMES))
    f = keep_largest((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], K)
    assert_codes(dictionary, x, f, t["W_dec"], f @ t["W_dec"] + t["b_dec"])
    assert dictionary.site == Site(5, "resid_post")
    assert dictionary.model == "EleutherAI/pythia-70m"
    assert dictionary.provenance["context_size"] == 2048


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_subtracts_nothing_and_its_skip_sees_the_input(skip: bool, tmp_path: Path) -> None:
    t, x = tensors(**({"W_skip": (D, D)} if skip else {})), inputs()
    cfg = config(transcode=True, skip_connection=skip)
    dictionary = load_dictionary(write_files(run_folder(tmp_path, "layers.2.mlp"), cfg, t, NAMES))
    f = keep_largest(x @ t["encoder.weight"].T + t["encoder.bias"], K)
    y = f @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if skip else 0)
    assert_codes(dictionary, x, f, t["W_dec"], y)
    assert [str(place.site) for place in dictionary.places] == ["2.mlp_in", "2.mlp_out"]


def test_a_skip_of_an_autoencoder_is_a_transcoder_from_a_site_to_itself(tmp_path: Path) -> None:
    t, x = tensors(W_skip=(D, D)), inputs()
    dictionary = load_dictionary(write_files(run_folder(tmp_path), config(skip_connection=True), t, NAMES))
    f = keep_largest((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], K)
    assert_codes(dictionary, x, f, t["W_dec"], f @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T)
    assert {place.site for place in dictionary.places} == {Site(5, "resid_post")}
    write_dictionary_as(dictionary, tmp_path / "again", "sparsify")
    assert load_dictionary(tmp_path / "again").places == dictionary.places
    assert_same(tmp_path / "again", dictionary)


def test_no_number_of_latents_means_a_multiple_of_the_width(tmp_path: Path) -> None:
    n = 3 * D
    t = drawn(**{"encoder.weight": (n, D), "encoder.bias": (n,), "W_dec": (n, D), "b_dec": (D,)})
    cfg = config(num_latents=0, expansion_factor=3)
    assert load_dictionary(write_files(tmp_path / "h.1", cfg, t, NAMES)).n_latents == n


def test_old_names_of_tensors_and_missing_offsets_are_understood(tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    old = {"W_enc": t["encoder.weight"].T, "decoder.weight": t["W_dec"].T}
    cfg = {key: value for key, value in config(signed=False).items() if key != "activation"}
    dictionary = load_dictionary(write_files(tmp_path / "h.1", cfg, old, NAMES))
    f = keep_largest(x @ old["W_enc"], K)
    assert_codes(dictionary, x, f, t["W_dec"], f @ t["W_dec"])


def test_several_seeds_have_a_folder_each_below_the_module(tmp_path: Path) -> None:
    dictionary = load_dictionary(write_files(run_folder(tmp_path) / "seed3", config(), tensors(), NAMES))
    assert (dictionary.site, dictionary.model) == (Site(5, "resid_post"), "EleutherAI/pythia-70m")


@pytest.mark.parametrize(
    ("module", "model", "site"),
    [
        ("h.3", "gpt2", "3.resid_post"),
        ("layers.3.mlp", "EleutherAI/pythia-70m", "3.mlp_out"),
        ("layers.3.self_attn", "meta-llama/Llama-3.1-8B", "3.attn_out"),
        ("embed_tokens", "meta-llama/Llama-3.1-8B", "embed"),
        ("layers.3.mlp", "google/gemma-2-2b", None),
        ("embed_tokens", "google/gemma-2-2b", None),
        ("layers.3.mlp.act", "gpt2", None),
    ],
)
def test_modules_are_sites_where_their_output_is_one(module: str, model: str, site: str | None, tmp_path: Path) -> None:
    folder = write_files(tmp_path / module, config(), tensors(), NAMES)
    (tmp_path / "config.json").write_text(json.dumps({"model": model}))
    found = load_dictionary(folder).site
    assert found == (None if site is None else Site.parse(site))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], str]] = {
    "groupmax": ({"activation": "groupmax"}, {}, r"cfg\.json: key 'activation' is 'groupmax'"),
    "signed": ({"signed": True}, {}, "key 'signed' is true"),
    "k": ({"k": M + 1}, {}, "k must be between 1 and the 15 latents"),
    "width": ({"d_in": 7}, {}, r"must be \[7\]|must be \[15, 7\]"),
    "latents": ({"num_latents": 14}, {}, r"must be \[14"),
    "flag": ({"transcode": "yes"}, {}, "key 'transcode' must be true or false"),
    "skip that nobody asked for": ({}, {"W_skip": (D, D)}, "tensor 'W_skip' is not part of an autoencoder"),
    "fraction": ({"k": 3.5}, {}, "key 'k' must be a whole number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_name(name: str, tmp_path: Path) -> None:
    cfg, more, message = REFUSED[name]
    with pytest.raises(FormatError, match=message):
        load_dictionary(write_files(tmp_path / "layers.5", config(**cfg), tensors(**more), NAMES))


WRITTEN: dict[str, DictionaryConfig] = {
    "topk": TopK(M, K),
    "weighted": WeightedTopK(M, K),
    "transcoder": Transcoder(M, K),
    "skip": Transcoder(M, K, skip=True),
    "weighted transcoder": Transcoder(M, K, weighted=True, skip=True),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_reads_back_the_same_with_site_model_and_policy(name: str, tmp_path: Path) -> None:
    dictionary = shaken(WRITTEN[name].build(D, torch.Generator().manual_seed(1)))
    dictionary.model, dictionary.site = "gpt2", Site(4, "mlp_out")
    if dictionary.places:
        dictionary.site = Site(4, "mlp_in")
        dictionary.places = tuple(Place(D, Site(4, kind), "gpt2") for kind in ("mlp_in", "mlp_out"))
    dictionary.provenance = {"prepend_bos": False, "context_size": 128}
    write_dictionary_as(dictionary, tmp_path, "sparsify")
    again = assert_same(tmp_path, dictionary)
    assert (again.site, again.model, again.places) == (dictionary.site, "gpt2", dictionary.places)
    assert (again.provenance["prepend_bos"], again.provenance["context_size"]) == (False, 128)


def test_what_sparsify_cannot_hold_is_refused(tmp_path: Path) -> None:
    for cfg, message in (
        (JumpReLU(M, l0=0.0), "codes like jumprelu"),
        (Transcoder(M), "transcoder without k"),
    ):
        with pytest.raises(FormatError, match=message):
            write_dictionary_as(cfg.build(D), tmp_path / "out", "sparsify")
    with pytest.raises(FormatError, match="from width 6 to width 5"):
        write_dictionary_as(Transcoder(M, K).build([6, 5]), tmp_path / "out", "sparsify")
    assert not (tmp_path / "out").exists()
