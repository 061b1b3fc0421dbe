"""dictionary_learning itself: what its trainers write is coded here as there, and our exports there as here."""

from pathlib import Path

import pytest
import torch
from peers import export, run_peer, shaken
from safetensors.torch import load_file

from sparsight.dictionaries import BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.errors import FormatError
from sparsight.formats import load_dictionary
from sparsight.models import Site

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1000)]

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
D = 12
OURS: dict[str, DictionaryConfig] = {
    "topk": TopK(40, 5),
    "batchtopk": BatchTopK(40, 5),
    "matryoshka": Matryoshka(40, 5, (8, 20)),
    "jumprelu": JumpReLU(40, l0=0.0),
    "relu": ReLU(40, 0.1),
    "relu-free": ReLU(40, 0.1, norms="free"),
    "gated": Gated(40, 0.1),
    "gated-one-offset": Gated(40, 0.1, shared_bias=True, fixed_r_mag=True),
    "gated-no-step": Gated(40, 0.1, heaviside=False),
}
THEIRS = {
    "standard": "relu",
    "standard-raw": "relu",
    "april": "relu",
    "april-raw": "relu",
    "p_anneal": "relu",
    "gated": "gated",
    "gated-raw": "gated",
    "gated_anneal": "gated",
    "top_k": "topk",
    "top_k-raw": "topk",
    "batch_top_k": "batchtopk",
    "batch_top_k-raw": "batchtopk",
    "matryoshka": "matryoshka",
    "jump_relu": "jumprelu",
    "jump_relu-raw": "jumprelu",
    "new": "relu",
    "free-columns": "relu",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dictionary_learning")
    for name, config in OURS.items():
        dictionary = shaken(config.build(D, torch.Generator().manual_seed(0)))
        export(dictionary, folder / "ours" / name, "dictionary_learning")
        dictionary.save(folder / "kept" / name)
    run_peer("dictionary_learning_peer.py", folder)
    return folder


@pytest.mark.parametrize("name", THEIRS)
def test_what_a_trainer_wrote_codes_and_reconstructs_as_there(name: str, folder: Path) -> None:
    expected = load_file(folder / "theirs" / name / "expected.safetensors")
    dictionary = load_dictionary(folder / "theirs" / name)
    assert dictionary.config.architecture == THEIRS[name]
    assert 0.01 < (expected["values"] > 0).float().mean() < 0.95
    torch.testing.assert_close(dictionary.encode_dense(expected["x"]), expected["values"], **CLOSE)
    torch.testing.assert_close(dictionary(expected["x"]), expected["y"], **CLOSE)


@pytest.mark.parametrize("name", OURS)
def test_an_export_codes_and_reconstructs_in_dictionary_learning_as_here(name: str, folder: Path) -> None:
    seen = load_file(folder / "ours" / name / "seen.safetensors")
    dictionary = load_dictionary(folder / "kept" / name)
    assert (seen["values"] > 0).any()
    torch.testing.assert_close(seen["values"], dictionary.encode_dense(seen["x"]), **CLOSE)
    torch.testing.assert_close(seen["y"], dictionary(seen["x"]), **CLOSE)


@pytest.mark.parametrize("name", OURS)
def test_an_export_for_dictionary_learning_read_again_is_the_same(name: str, folder: Path) -> None:
    kept, again = load_dictionary(folder / "kept" / name), load_dictionary(folder / "ours" / name)
    x = load_file(folder / "ours" / name / "inputs.safetensors")["x"]
    torch.testing.assert_close(again.encode_dense(x), kept.encode_dense(x), **CLOSE)
    torch.testing.assert_close(again(x), kept(x), **CLOSE)
    assert (again.site, again.model) == (kept.site, kept.model)


def test_checkpoints_are_read_with_the_configuration_above_them(folder: Path) -> None:
    run = folder / "theirs" / "batch_top_k"
    dictionary = load_dictionary(run / "checkpoints" / "ae_20.pt")
    assert dictionary.config.architecture == "batchtopk"
    assert not torch.equal(dictionary.atoms, load_dictionary(run).atoms)


def test_a_threshold_that_training_never_set_is_refused(folder: Path) -> None:
    with pytest.raises(FormatError, match="threshold is -1, which stands for one that was never set"):
        load_dictionary(folder / "theirs" / "unset_threshold")


def test_site_and_model_of_a_run_come_along(folder: Path) -> None:
    dictionary = load_dictionary(folder / "theirs" / "top_k")
    assert dictionary.site == Site(3, "resid_post")
    assert dictionary.model == "EleutherAI/pythia-70m-deduped"
    assert dictionary.provenance["imported_from"]["config"]["trainer"]["k"] == 6
    assert load_dictionary(folder / "theirs" / "gated_anneal").site is None
