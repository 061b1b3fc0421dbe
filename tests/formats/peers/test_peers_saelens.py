"""SAELens itself: what it writes is coded here as there, and what we export is coded there as here."""

import json
from pathlib import Path

import pytest
import torch
from peers import export, run_peer, shaken
from safetensors.torch import load_file

from sparsight.dictionaries import (
    BatchTopK,
    Gated,
    JumpReLU,
    MatchingPursuit,
    Matryoshka,
    Pursuit,
    ReLU,
    TopK,
    Transcoder,
    WeightedTopK,
)
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary
from sparsight.models import Site

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1000)]

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
D = 12
OURS: dict[str, DictionaryConfig] = {
    "topk": TopK(40, 5),
    "weighted_topk": WeightedTopK(40, 5),
    "batchtopk": BatchTopK(40, 5),
    "matryoshka": Matryoshka(40, 5, (8, 20)),
    "jumprelu": JumpReLU(40, l0=0.0),
    "relu": ReLU(40, 0.1),
    "relu-free": ReLU(40, 0.1, norms="free"),
    "gated": Gated(40, 0.1),
    "gated-one-offset": Gated(40, 0.1, shared_bias=True, fixed_r_mag=True),
    "gated-no-step": Gated(40, 0.1, heaviside=False),
    "matching_pursuit": MatchingPursuit(40, 7),
    "pursuit": Pursuit(40, 5, coder="matching_pursuit", polish=False),
    "transcoder": Transcoder(40),
    "transcoder-skip": Transcoder(40, skip=True),
    "transcoder-jump": Transcoder(40, jump=True),
    "transcoder-jump-skip": Transcoder(40, jump=True, skip=True),
}
ARCHITECTURES = {
    "standard": "relu",
    "standard-no-input-offset": "relu",
    "gated": "gated",
    "gated-no-input-offset": "gated",
    "jumprelu": "jumprelu",
    "jumprelu-no-input-offset": "jumprelu",
    "topk": "topk",
    "topk-ranked-without-norms": "weighted_topk",
    "topk-bfloat16": "weighted_topk",
    "topk-no-input-offset": "weighted_topk",
    "heads": "relu",
    "trained-standard": "relu",
    "trained-gated": "gated",
    "trained-jumprelu": "jumprelu",
    "trained-topk": "topk",
    "trained-batchtopk": "batchtopk",
    "trained-matryoshka_batchtopk": "matryoshka",
    "checkpoint-standard": "relu",
    "checkpoint-gated": "gated",
    "checkpoint-jumprelu": "jumprelu",
    "checkpoint-topk": "topk",
    "checkpoint-batchtopk": "batchtopk",
    "checkpoint-whitened-standard": "relu",
    "checkpoint-whitened-gated": "gated",
    "checkpoint-whitened-topk": "weighted_topk",
    "transcoder": "transcoder",
    "skip_transcoder": "transcoder",
    "jumprelu_transcoder": "transcoder",
    "jumprelu_skip_transcoder": "transcoder",
    "matching-pursuit": "pursuit",
    "matching-pursuit-default": "matching_pursuit",
    "matching-pursuit-limited": "matching_pursuit",
}
REFUSED = {
    "abstopk": "key 'architecture' is 'abstopk'",
    "layer_norm": "key 'normalize_activations' is 'layer_norm'",
    "constant_norm_rescale": "key 'normalize_activations' is 'constant_norm_rescale'",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saelens")
    for name, config in OURS.items():
        widths = [D, 10] if isinstance(config, Transcoder) else D
        dictionary = shaken(config.build(widths, torch.Generator().manual_seed(0)))
        export(dictionary, folder / "ours" / name, "saelens")
        dictionary.save(folder / "kept" / name)
    run_peer("saelens_peer.py", folder)
    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_that_saelens_wrote_codes_and_reconstructs_as_there(name: str, folder: Path) -> None:
    expected = load_file(folder / "theirs" / name / "expected.safetensors")
    dictionary = load_dictionary(folder / "theirs" / name)
    assert dictionary.config.architecture == ARCHITECTURES[name]
    assert 0.01 < (expected["values"] > 0).float().mean() < 0.9
    torch.testing.assert_close(dictionary.encode_dense(expected["x"]), expected["values"], **CLOSE)
    torch.testing.assert_close(dictionary(expected["x"]), expected["y"], **CLOSE)


@pytest.mark.parametrize("name", OURS)
def test_an_export_codes_and_reconstructs_in_saelens_as_here(name: str, folder: Path) -> None:
    seen = load_file(folder / "ours" / name / "seen.safetensors")
    dictionary = load_dictionary(folder / "kept" / name)
    assert (seen["values"] > 0).any()
    torch.testing.assert_close(seen["values"], dictionary.encode_dense(seen["x"]), **CLOSE)
    torch.testing.assert_close(seen["y"], dictionary(seen["x"]), **CLOSE)


@pytest.mark.parametrize("name", OURS)
def test_an_export_read_again_is_the_same_dictionary(name: str, folder: Path) -> None:
    kept, again = load_dictionary(folder / "kept" / name), load_dictionary(folder / "ours" / name)
    x = load_file(folder / "ours" / name / "inputs.safetensors")["x"]
    torch.testing.assert_close(again.encode_dense(x), kept.encode_dense(x), **CLOSE)
    torch.testing.assert_close(again(x), kept(x), **CLOSE)
    assert again.site == kept.site
    assert again.model == kept.model


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_name(name: str, folder: Path) -> None:
    with pytest.raises(FormatError, match=REFUSED[name]):
        load_dictionary(folder / "theirs" / name)


def test_site_model_and_policy_come_along(folder: Path) -> None:
    dictionary = load_dictionary(folder / "theirs" / "jumprelu")
    assert dictionary.site == Site(5, "resid_post")
    assert dictionary.model == "gpt2"
    assert dictionary.provenance["prepend_bos"] is False
    assert load_dictionary(folder / "theirs" / "heads").site == Site(3, "attn_z")
    places = load_dictionary(folder / "theirs" / "skip_transcoder").places
    assert [str(place) for place in places] == ["5.resid_post of gpt2", "5.mlp_out of gpt2"]
    written = json.loads((folder / "ours" / "topk" / "cfg.json").read_text())
    assert written["metadata"]["hook_name"] == "blocks.5.hook_resid_post"
