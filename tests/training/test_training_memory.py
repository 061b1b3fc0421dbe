"""A run that cannot fit is refused with the number; NaN in a store is found."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsight.activations import ActivationStore, harvest
from sparsight.dictionaries import JumpReLU, TopK
from sparsight.errors import TrainingError
from sparsight.models import load_model
from sparsight.models.organism import corpus
from sparsight.training import Training, train
from sparsight.training.memory import available_bytes, estimated_bytes

CPU = torch.device("cpu")


def test_parameters_gradients_and_averages_are_counted_in_bytes() -> None:
    settings = Training(n_tokens=1, batch_size=2048, ema=0.9)
    topk = estimated_bytes(TopK(65_536, 32), [768], settings, CPU)
    assert topk["parameters"] == pytest.approx(4 * 65_536 * 2 * 768, rel=0.01)
    assert topk["Adam"] == 2 * topk["gradients"] == 2 * topk["average"] == 2 * topk["parameters"]
    dense = estimated_bytes(JumpReLU(65_536, target_l0=32), [768], settings, CPU)
    assert dense["batch"] > 4 * 4 * 2048 * 65_536 > 10 * topk["batch"]
    cut = estimated_bytes(JumpReLU(65_536, target_l0=32), [768], Training(n_tokens=1, accumulate=8), CPU)
    assert cut["batch"] < dense["batch"] / 7


def test_the_compiled_step_keeps_gradients_of_latents_that_are_active_often() -> None:
    """At k = 8, 2,048 tokens have eight slots for each of 2,048 latents."""
    pytest.importorskip("numba")
    settings = Training(n_tokens=1, batch_size=2048, step="sparse")
    rare, often = (estimated_bytes(TopK(2048, k), [768], settings, CPU) for k in (8, 9))
    assert rare["gradients"] == 0
    assert often["gradients"] == 4 * 2 * 2048 * 768
    assert rare["screening"] == often["screening"] == 4 * 2048 * 768


def test_a_width_that_cannot_fit_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    free = available_bytes(CPU)
    assert free is not None
    with pytest.raises(TrainingError, match=r"training needs about \d+\.\d GiB \(parameters .*\), but .* free on cpu"):
        train(torch.randn(64, 1024), [TopK(10**9, 4)], Training(n_tokens=64, batch_size=64), out=tmp_path)


def test_the_refusal_can_be_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsight.training.memory.available_bytes", lambda _: 10)
    settings = Training(n_tokens=64, batch_size=64)
    with pytest.raises(TrainingError, match="check_memory=False"):
        train(torch.randn(64, 8), [TopK(16, 2)], settings, out=tmp_path / "refused")
    train(torch.randn(64, 8), [TopK(16, 2)], settings, out=tmp_path / "forced", check_memory=False)


def overwrite(path: Path, name: str, row: int, values: torch.Tensor) -> None:
    """Replace the beginning of a row of a stored tensor, byte for byte."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    entry = json.loads(content[8 : 8 + length])[name]
    begin = 8 + length + entry["data_offsets"][0] + row * entry["shape"][1] * values.element_size()
    values = values[: entry["shape"][1]]
    content[begin : begin + values.nbytes] = values.view(torch.uint8).numpy().tobytes()
    path.write_bytes(bytes(content))


def test_nan_in_a_store_names_the_shard_and_the_row(tmp_path: Path) -> None:
    site = "2.resid_post"
    store = harvest(load_model("organism"), corpus(0, 60), [site], tmp_path / "store", n_tokens=1500)
    row = len(store.split("train")) // 2
    file, at = store.split("train").locate(row)
    overwrite(store.path / file, f"activations/{site}", at, torch.full((128,), float("nan"), dtype=store.dtype))
    with pytest.raises(TrainingError, match=rf"row {at} of {site} in shard .*{file} holds NaN"):
        train(ActivationStore(store.path), [TopK(16, 2)], Training(n_tokens=3000, batch_size=64), out=tmp_path / "run")


def test_locating_a_row_finds_the_shard_that_holds_it(tmp_path: Path) -> None:
    site = "2.resid_post"
    store = harvest(load_model("organism"), corpus(0, 60), [site], tmp_path / "store", n_tokens=1500)
    view = store.split("heldout")
    for row in (0, len(view) // 2, len(view) - 1):
        file, at = view.locate(row)
        stored = load_file(store.path / file)[f"activations/{site}"][at].float()
        assert torch.equal(stored, view.rows(site, slice(row, row + 1))[0])
    with pytest.raises(IndexError):
        view.locate(len(view))
