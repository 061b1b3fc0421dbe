"""eai-sparsify itself: what it writes is coded here as there, and what we export is coded there as here."""

from pathlib import Path

import pytest
import torch
from peers import export, run_peer, shaken
from safetensors.torch import load_file

from sparsight.dictionaries import TopK, Transcoder, WeightedTopK
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary
from sparsight.models import Site

pytestmark = pytest.mark.peers

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
D = 12
OURS: dict[str, DictionaryConfig] = {
    "topk": TopK(40, 5),
    "weighted_topk": WeightedTopK(40, 5),
    "transcoder": Transcoder(40, 5),
    "transcoder-skip": Transcoder(40, 5, skip=True),
    "transcoder-weighted": Transcoder(40, 5, weighted=True, skip=True),
}
ARCHITECTURES = {
    "autoencoder": "topk",
    "expanded": "topk",
    "free-norms": "weighted_topk",
    "multi-topk": "topk",
    "skip": "transcoder",
    "bfloat16": "weighted_topk",
    "transcoder": "transcoder",
    "transcoder-skip": "transcoder",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparsify")
    for name, config in OURS.items():
        dictionary = shaken(config.build(D, torch.Generator().manual_seed(0)))
        export(dictionary, folder / "ours" / name, "sparsify")
        dictionary.save(folder / "kept" / name)
    run_peer("sparsify_peer.py", folder)
    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_that_sparsify_wrote_codes_and_reconstructs_as_there(name: str, folder: Path) -> None:
    where = folder / "theirs" / name / "layers.5"
    expected, dictionary = load_file(where / "expected.safetensors"), load_dictionary(where)
    assert dictionary.config.architecture == ARCHITECTURES[name]
    assert 0.01 < (expected["values"] > 0).float().mean() < 0.9
    torch.testing.assert_close(dictionary.encode_dense(expected["x"]), expected["values"], **CLOSE)
    torch.testing.assert_close(dictionary(expected["x"]), expected["y"], **CLOSE)
    assert dictionary.model == "EleutherAI/pythia-70m"
    site = Site(5, "resid_pre") if name.startswith("transcoder") else Site(5, "resid_post")
    assert dictionary.site == site


@pytest.mark.parametrize("name", OURS)
def test_an_export_codes_and_reconstructs_in_sparsify_as_here(name: str, folder: Path) -> None:
    seen = load_file(folder / "ours" / name / "seen.safetensors")
    dictionary = load_dictionary(folder / "kept" / name)
    assert (seen["values"] > 0).any()
    torch.testing.assert_close(seen["values"], dictionary.encode_dense(seen["x"]), **CLOSE)
    torch.testing.assert_close(seen["y"], dictionary(seen["x"]), **CLOSE)


def test_the_largest_of_each_group_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(FormatError, match="key 'activation' is 'groupmax'"):
        load_dictionary(folder / "theirs" / "groupmax" / "layers.5")
