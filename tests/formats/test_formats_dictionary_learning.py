"""dictionary_learning files built tensor by tensor: they code by the formulas of its classes or are refused by name."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import Crosscoder, Gated, Matryoshka, Pursuit, Transcoder
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary, write_dictionary_as
from sparsight.formats.sites import site_of_submodule, submodule_of_site
from sparsight.models import Site

D, M = 6, 15
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def linear(offset: str, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "encoder.weight": torch.randn(M, D, generator=g),
        "encoder.bias": 0.3 * torch.randn(M, generator=g),
        "decoder.weight": torch.randn(D, M, generator=g) * (0.2 + torch.rand(M, generator=g)),
        offset: torch.randn(D, generator=g),
    }


def plain() -> dict[str, Tensor]:
    t = linear("b_dec")
    return {
        "W_enc": t["encoder.weight"].T,
        "b_enc": t["encoder.bias"],
        "W_dec": t["decoder.weight"].T,
        "b_dec": t["b_dec"],
    }


def limits(k: int = 4, threshold: float = 0.8) -> dict[str, Tensor]:
    return {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(threshold)}


def unit(t: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with columns of norm 1, as trainers keep them."""
    name, dim = ("decoder.weight", 0) if "decoder.weight" in t else ("W_dec", 1)
    return {**t, name: torch.nn.functional.normalize(t[name], dim=dim)}


def folder_of(path: Path, found: dict[str, Any], kind: str | None = None, **trainer: Any) -> Path:
    path.mkdir(exist_ok=True)
    torch.save(found, path / "ae.pt")
    if kind is not None:
        config = {
            "trainer": {"dict_class": kind, "activation_dim": D, "dict_size": M, **trainer},
            "buffer": {"io": "out"},
        }
        (path / "config.json").write_text(json.dumps(config))
    return path


def inputs() -> Tensor:
    return 0.5 + torch.randn(32, D, generator=torch.Generator().manual_seed(9))


def agrees(path: Path, f: Tensor, W_dec: Tensor, b_dec: Tensor, architecture: str) -> None:
    dictionary = load_dictionary(path)
    assert dictionary.config.architecture == architecture
    assert 0.02 < (f > 0).float().mean() < 0.9
    torch.testing.assert_close(dictionary.encode_dense(inputs()), f * W_dec.norm(dim=1), **CLOSE)
    torch.testing.assert_close(dictionary(inputs()), f @ W_dec + b_dec, **CLOSE)


@pytest.mark.parametrize("named", [True, False])
def test_autoencoder_has_one_bias_at_both_ends(named: bool, tmp_path: Path) -> None:
    t = linear("bias")
    folder_of(tmp_path, t, "AutoEncoder" if named else None)
    f = ((inputs() - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    agrees(tmp_path, f, t["decoder.weight"].T, t["bias"], "relu")


@pytest.mark.parametrize("named", [True, False])
def test_the_newer_autoencoder_subtracts_nothing(named: bool, tmp_path: Path) -> None:
    t = linear("decoder.bias")
    folder_of(tmp_path, t, "AutoEncoderNew" if named else None)
    f = (inputs() @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    agrees(tmp_path, f, t["decoder.weight"].T, t["decoder.bias"], "relu")


@pytest.mark.parametrize("named", [True, False])
def test_gated_of_dictionary_learning_is_read(named: bool, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(4)
    t = linear("decoder_bias")
    del t["encoder.bias"]
    t |= {name: 0.5 * torch.randn(M, generator=g) for name in ("r_mag", "gate_bias", "mag_bias")}
    folder_of(tmp_path, t, "GatedAutoEncoder" if named else None)
    u = (inputs() - t["decoder_bias"]) @ t["encoder.weight"].T
    f = (u + t["gate_bias"] > 0) * (t["r_mag"].exp() * u + t["mag_bias"]).relu()
    agrees(tmp_path, f, t["decoder.weight"].T, t["decoder_bias"], "gated")


@pytest.mark.parametrize("named", [True, False])
def test_jumprelu_subtracts_nothing_from_its_input(named: bool, tmp_path: Path) -> None:
    t = plain() | {"threshold": torch.linspace(-0.5, 1.5, M)}
    folder_of(tmp_path, t, "JumpReluAutoEncoder" if named else None)
    a = inputs() @ t["W_enc"] + t["b_enc"]
    agrees(tmp_path, (a * (a > t["threshold"])).relu(), t["W_dec"], t["b_dec"], "jumprelu")


@pytest.mark.parametrize("threshold", [0.8, -1.0])
def test_topk_keeps_its_k_whatever_its_threshold_is(threshold: float, tmp_path: Path) -> None:
    t = unit(linear("b_dec"))
    folder_of(tmp_path, t | limits(4, threshold), "AutoEncoderTopK", k=4)
    a = ((inputs() - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    top = a.topk(4)
    f = torch.zeros_like(a).scatter(1, top.indices, top.values)
    agrees(tmp_path, f, t["decoder.weight"].T, t["b_dec"], "topk")


def test_batchtopk_codes_with_its_threshold(tmp_path: Path) -> None:
    t = unit(linear("b_dec"))
    folder_of(tmp_path, t | limits(), "BatchTopKSAE", k=4)
    a = (inputs() - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]
    agrees(tmp_path, a * (a > 0.8), t["decoder.weight"].T, t["b_dec"], "batchtopk")


def test_matryoshka_makes_prefixes_of_its_groups(tmp_path: Path) -> None:
    t = unit(plain())
    folder_of(tmp_path, t | limits() | {"group_sizes": torch.tensor([3, 4, 8])}, "MatryoshkaBatchTopKSAE")
    a = (inputs() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    agrees(tmp_path, a * (a > 0.8), t["W_dec"], t["b_dec"], "matryoshka")
    assert load_dictionary(tmp_path).config.widths == (3, 7, 15)


def test_a_threshold_that_was_never_set_is_refused_for_batchtopk(tmp_path: Path) -> None:
    folder_of(tmp_path, linear("b_dec") | limits(threshold=-1.0), "BatchTopKSAE")
    with pytest.raises(FormatError, match="threshold is -1, which stands for one that was never set"):
        load_dictionary(tmp_path)


def test_a_backup_in_raw_units_is_read_and_one_in_normalised_units_refused(tmp_path: Path) -> None:
    t = linear("bias")
    backup = {"step": 7, "ae": t, "optimizer": {}, "config": {"lr": 1e-3}, "norm_factor": None}
    dictionary = load_dictionary(folder_of(tmp_path, backup, "AutoEncoder"))
    torch.testing.assert_close(dictionary.b_dec.data, t["bias"])
    folder_of(tmp_path, {**backup, "norm_factor": 3.2}, "AutoEncoder")
    with pytest.raises(FormatError, match=r"key 'norm_factor' is 3\.2: a backup made in the course"):
        load_dictionary(tmp_path)


def test_the_file_itself_may_be_named(tmp_path: Path) -> None:
    folder_of(tmp_path, linear("bias"), "AutoEncoder")
    (tmp_path / "checkpoints").mkdir()
    torch.save(linear("bias", seed=5), tmp_path / "checkpoints" / "ae_100.pt")
    torch.testing.assert_close(load_dictionary(tmp_path / "ae.pt").atoms, load_dictionary(tmp_path).atoms)
    checkpoint = load_dictionary(tmp_path / "checkpoints" / "ae_100.pt")
    torch.testing.assert_close(checkpoint.b_dec.data, linear("bias", seed=5)["bias"])


def test_site_and_model_come_from_the_configuration(tmp_path: Path) -> None:
    where = {"lm_name": "EleutherAI/pythia-70m", "layer": 4, "submodule_name": "mlp_out_layer_4"}
    dictionary = load_dictionary(folder_of(tmp_path, linear("bias"), "AutoEncoder", **where))
    assert (dictionary.site, dictionary.model) == (Site(4, "mlp_out"), "EleutherAI/pythia-70m")


@pytest.mark.parametrize(
    ("name", "layer", "io", "site"),
    [
        ("resid_post_layer_3", 3, "out", "3.resid_post"),
        ("resid_post_layer_3", None, None, "3.resid_post"),
        ("attention_out_layer_0", 0, "out", "0.attn_out"),
        ("resid_post_layer_3", 4, "out", None),  # they disagree
        ("resid_post_layer_3", 3, "in", None),  # the other side of the module
        ("my_favourite_place", 3, "out", None),
        (None, 3, "out", None),
    ],
)
def test_only_plain_names_of_submodules_become_sites(
    name: str | None, layer: int | None, io: str | None, site: str | None
) -> None:
    found = site_of_submodule(name, layer, io)
    assert (None if found is None else str(found)) == site


def test_names_of_submodules_are_read_back() -> None:
    for kind in ("resid_pre", "resid_post", "mlp_out", "attn_out"):
        assert site_of_submodule(submodule_of_site(Site(2, kind)), 2, "out") == Site(2, kind)


REFUSED: dict[str, tuple[dict[str, Any], str | None, dict[str, Any], str]] = {
    "either of two": (linear("b_dec") | limits(), None, {}, "may be of AutoEncoderTopK or of BatchTopKSAE"),
    "unknown class": (linear("bias"), "CrossCoder", {}, "'dict_class' is 'CrossCoder', known are AutoEncoder"),
    "wrong class": (linear("bias"), "AutoEncoderNew", {}, r"tensor 'decoder\.bias' is missing"),
    "extra tensor": (linear("bias") | {"extra": torch.ones(2)}, "AutoEncoder", {}, "tensor 'extra' is not part of"),
    "another width": (linear("bias"), "AutoEncoder", {"dict_size": 16}, "says dict_size=16, the tensors have 15"),
    "groups": (
        plain() | limits() | {"group_sizes": torch.tensor([3, 4, 9])},
        "MatryoshkaBatchTopKSAE",
        {},
        "group_sizes must be positive whole numbers that sum to 15",
    ),
    "no k": (linear("b_dec"), "AutoEncoderTopK", {}, "tensor 'k' is missing"),
    "half a latent": (linear("b_dec") | limits() | {"k": torch.tensor(2.5)}, "AutoEncoderTopK", {}, "whole number"),
    "shape": (linear("bias") | {"encoder.bias": torch.zeros(3)}, "AutoEncoder", {}, r"must be \[15\].*got \[3\]"),
    "NaN": (linear("bias") | {"bias": torch.full((D,), torch.inf)}, "AutoEncoder", {}, "bias holds NaN or infinity"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_over_from_ae_pt_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    found, kind, trainer, message = REFUSED[name]
    folder_of(tmp_path, found, kind, **trainer)
    with pytest.raises(FormatError, match=message) as caught:
        load_dictionary(tmp_path)
    assert "\n" not in str(caught.value)
    assert "ae.pt" in str(caught.value)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    folder_of(tmp_path / "run", linear("bias") | {"more": Malicious(tmp_path / "ran")}, "AutoEncoder")
    with pytest.raises(FormatError, match="more than tensors and plain values, which could run code"):
        load_dictionary(tmp_path / "run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a file of torch"])
def test_a_damaged_ae_pt_is_refused(content: bytes, tmp_path: Path) -> None:
    folder_of(tmp_path, linear("bias"), "AutoEncoder")
    (tmp_path / "ae.pt").write_bytes(content)
    with pytest.raises(FormatError, match=r"ae\.pt") as caught:
        load_dictionary(tmp_path)
    assert "\n" not in str(caught.value)


UNWRITABLE: dict[str, DictionaryConfig] = {
    "crosscoder": Crosscoder(M, 3),
    "transcoder": Transcoder(M, 3),
    "pursuit": Pursuit(M, 3),
    "untied": Gated(M, 0.1, untied=True),
    "sampled=3": Matryoshka(M, 3, sampled=3),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_dictionary_learning_cannot_hold_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    dictionary = UNWRITABLE[name].build(D, torch.Generator().manual_seed(0))
    with pytest.raises(FormatError, match=name):
        write_dictionary_as(dictionary, tmp_path / "out", "dictionary_learning")
    assert not (tmp_path / "out").exists()
