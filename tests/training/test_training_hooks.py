"""What an architecture may ask of training: a schedule before each step, calibration on data it was not trained on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.activations import ActivationStore, ActivationStream, harvest
from sparsight.dictionaries import TopK, TopKDictionary
from sparsight.models import load_model
from sparsight.models.organism import corpus
from sparsight.training import Training, train

SETTINGS = Training(n_tokens=5 * 64, batch_size=64, normalization_tokens=128)


def data() -> Tensor:
    return 3 * torch.randn(250, 8, generator=torch.Generator().manual_seed(0)) + 5


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Give TopK both hooks, and note what they are called with."""
    seen: dict[str, Any] = {"progress": [], "batches": []}

    def calibrate(dictionary: TopKDictionary, batches: Iterable[Tensor]) -> None:
        seen["folded"] = dictionary.normalization is not None
        seen["batches"] = list(batches)
        seen["again"] = list(batches)

    monkeypatch.setattr(TopKDictionary, "schedule_", lambda _, progress: seen["progress"].append(progress))
    monkeypatch.setattr(TopKDictionary, "calibrate_", calibrate)
    monkeypatch.setattr(TopKDictionary, "needs_calibration", True)
    return seen


def test_progress_goes_from_0_to_1_and_the_saved_dictionary_is_that_of_1(seen: dict[str, Any], tmp_path: Path) -> None:
    train(data(), [TopK(16, 2)], SETTINGS, out=tmp_path)
    assert seen["progress"] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_a_tensor_calibrates_on_the_batches_after_the_last_one_and_leaves_the_stream_alone(
    seen: dict[str, Any], tmp_path: Path
) -> None:
    stream, twin = ActivationStream(data(), None, 64, 0), ActivationStream(data(), None, 64, 0)
    [run] = train(stream, [TopK(16, 2)], SETTINGS, out=tmp_path)
    for _ in range(5):
        next(twin)
    assert stream.state() == twin.state()
    normalization = run.dictionary.normalization
    assert normalization is not None
    expected = [normalization.apply(next(twin)) for _ in range(2)]
    assert not seen["folded"]
    assert [batch.tolist() for batch in seen["batches"]] == [batch.tolist() for batch in expected]
    assert [batch.tolist() for batch in seen["again"]] == [batch.tolist() for batch in expected]
    described = "the batches that follow the last one trained on, 128 activations"
    assert run.dictionary.provenance["calibration"] == described


def test_a_store_calibrates_on_its_held_out_documents(seen: dict[str, Any], tmp_path: Path) -> None:
    store = harvest(
        load_model("organism"), corpus(0, 60), ["2.resid_post"], tmp_path / "store", n_tokens=2000, heldout=0.2
    )
    heldout = store.split("heldout")
    [run] = train(ActivationStore(store.path), [TopK(16, 2)], SETTINGS, out=tmp_path / "run")
    normalization = run.dictionary.normalization
    assert normalization is not None
    known = {tuple(row.tolist()) for row in normalization.apply(heldout.rows("2.resid_post", slice(None)))}
    assert len(seen["batches"]) == 2
    assert all(tuple(row.tolist()) in known for batch in seen["batches"] for row in batch)
    assert run.dictionary.provenance["calibration"] == "held-out documents of the store, 128 activations"
