"""Files of OpenAI's sparse_autoencoder built tensor by tensor: they code by the formulas of that library."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import CLOSE, D, M, assert_codes, drawn, inputs, keep_largest, uneven
from torch import Tensor

from sparsight.errors import FormatError
from sparsight.formats import load_dictionary, write_dictionary_as
from sparsight.models import Site

K = 4


def tensors() -> dict[str, Any]:
    found = drawn(pre_bias=(D,), latent_bias=(M,), **{"encoder.weight": (M, D)})
    found["decoder.weight"] = uneven(drawn(1, W=(M, D))["W"]).T
    statistics = {"latents_activation_frequency": torch.ones(M), "latents_mean_square": torch.ones(M)}
    return {**found, **statistics, "stats_last_nonzero": torch.zeros(M, dtype=torch.int64)}


def saved(path: Path, found: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    return path


def pre(t: dict[str, Tensor], x: Tensor) -> Tensor:
    return (x - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]


@pytest.mark.parametrize("tied", [False, True])
def test_a_rectifier_takes_activations_as_they_are(tied: bool, tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    W_dec = t["encoder.weight"] if tied else t["decoder.weight"].T
    if tied:
        del t["decoder.weight"]
    dictionary = load_dictionary(saved(tmp_path / "0.pt", t))
    f = pre(t, x).relu()
    assert_codes(dictionary, x, f, W_dec, f @ W_dec + t["pre_bias"])
    assert (dictionary.model, dictionary.site) == (None, None)


@pytest.mark.parametrize("form", ["nested", "both", "flat"])
def test_topk_stands_behind_a_standardisation_of_each_token(form: str, tmp_path: Path) -> None:
    t, x = tensors(), inputs()
    state, flat = {"k": K, "postact_fn": "ReLU"}, {"activation.k": K, "activation.postact_fn": "ReLU"}
    more = {"nested": {"activation_state_dict": state}, "both": {"activation_state_dict": state, **flat}, "flat": flat}
    path = tmp_path / "gpt2-small" / "resid_post_mlp_v5_32k" / "autoencoders" / "5.pt"
    dictionary = load_dictionary(saved(path, {**t, "activation": "TopK", **more[form]}))
    mean = x.mean(dim=1, keepdim=True)
    deviation = x.std(dim=1, keepdim=True) + 1e-5
    f = keep_largest(pre(t, (x - mean) / deviation), K)
    W_dec = t["decoder.weight"].T
    y = (f @ W_dec + t["pre_bias"]) * deviation + mean
    torch.testing.assert_close(dictionary.encode_dense(x), f * W_dec.norm(dim=1) * deviation, **CLOSE)
    torch.testing.assert_close(dictionary(x), y, **CLOSE)
    assert (dictionary.model, dictionary.site) == ("gpt2", Site(5, "resid_post"))
    dictionary.save(tmp_path / "ours")
    assert torch.equal(load_dictionary(tmp_path / "ours")(x), dictionary(x))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "identity": ({"activation": "Identity"}, "key 'activation' is 'Identity'"),
    "no k": ({"activation": "TopK"}, "key 'k' must be a whole number"),
    "k": (
        {"activation": "TopK", "activation_state_dict": {"k": 99}},
        "k must be between 1 and the 15 latents, got k=99",
    ),
    "signed": (
        {"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "Identity"}},
        "key 'postact_fn' is 'Identity'",
    ),
    "state": ({"activation": "TopK", "activation_state_dict": 3}, "must be an object, got int"),
    "unknown tensor": ({"scale": torch.ones(3)}, "tensor 'scale' is not part of"),
    "width": ({"latent_bias": torch.ones(3)}, r"latent_bias must be \[15\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_name(name: str, tmp_path: Path) -> None:
    more, message = REFUSED[name]
    with pytest.raises(FormatError, match=message):
        load_dictionary(saved(tmp_path / "0.pt", {**tensors(), **more}))


def test_another_file_of_tensors_is_named_as_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"has encoder\.weight, latent_bias, pre_bias; this has weights"):
        load_dictionary(saved(tmp_path / "0.pt", {"weights": torch.ones(3)}))


def test_the_format_is_only_read(tmp_path: Path) -> None:
    dictionary = load_dictionary(saved(tmp_path / "0.pt", tensors()))
    with pytest.raises(ValueError, match=r"format must be one of sparsight, saelens.*got 'openai'"):
        write_dictionary_as(dictionary, tmp_path / "out", "openai")


def test_a_standardised_dictionary_fits_no_other_format(tmp_path: Path) -> None:
    t = {**tensors(), "activation": "TopK", "activation_state_dict": {"k": K}}
    dictionary = load_dictionary(saved(tmp_path / "0.pt", t))
    for name in ("saelens", "dictionary_learning", "sparsify", "gemma_scope", "gemma_scope_2", "llama_scope"):
        with pytest.raises(FormatError, match="token_norm_topk"):
            write_dictionary_as(dictionary, tmp_path / "out", name)
