"""An interrupted run ends where an uninterrupted one ends; a folder never mixes two runs."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsight.activations import ActivationStream
from sparsight.dictionaries import BatchTopK, Gated, JumpReLU, Matryoshka, Pursuit, ReLU, TopK
from sparsight.errors import TrainingError
from sparsight.training import Run, Training, train
from sparsight.training.interruption import held_back_interruptions

CONFIGS = [
    TopK(24, 3, dead_after=64, k_aux=4),
    JumpReLU(24, target_l0=3, dead_after=64, k_aux=4),
    Pursuit(24, 3, dead_after=64),
    BatchTopK(24, 3, dead_after=64, k_aux=4, k_start=12, k_anneal=0.7),
    Matryoshka(24, 3, sampled=3, dead_after=64, k_aux=4),
]
SPEED = {"tokens_per_second", "loading_share"}
SETTINGS = Training(n_tokens=40 * 32, batch_size=32, lr=0.01, log_every=4, checkpoint_every=7, normalization_tokens=64)


def data() -> Tensor:
    # 250 rows: the stream goes through several epochs, and a batch straddles two.
    return torch.randn(250, 8, generator=torch.Generator().manual_seed(0))


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.folder / "dictionary.safetensors")


def without_clock(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in SPEED} for line in metrics]


def assert_same(one: list[Run], other: list[Run]) -> None:
    for a, b in zip(one, other, strict=True):
        assert {n: t.tolist() for n, t in weights(a).items()} == {n: t.tolist() for n, t in weights(b).items()}
        assert without_clock(a.metrics) == without_clock(b.metrics)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Press Ctrl-C while the given batch is read, the fitting of the normalisation counted (2 batches)."""
    count = 0
    read = ActivationStream.__next__

    def reads(stream: ActivationStream) -> Any:
        nonlocal count
        count += 1
        if count == batch:
            signal.raise_signal(signal.SIGINT)
        return read(stream)

    monkeypatch.setattr(ActivationStream, "__next__", reads)


# The first; one that is a checkpoint anyway; one between.
@pytest.mark.parametrize("step", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 7)), 23])
def test_an_interrupted_run_resumes_to_the_same_bits(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(data(), CONFIGS, SETTINGS, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2 + step)
        with pytest.raises(KeyboardInterrupt):
            train(data(), CONFIGS, SETTINGS, out=tmp_path / "parts")
    assert not (tmp_path / "parts" / "topk-24-k3" / "dictionary.json").exists()
    resumed = train(data(), CONFIGS, SETTINGS, out=tmp_path / "parts", resume=True)
    assert_same(whole, resumed)
    steps = [line["step"] for line in resumed[0].metrics]
    assert steps == [1, *range(4, 41, 4)]
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()


def test_the_controller_the_average_and_batches_in_parts_resume_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, ema=0.9, accumulate=3, sparsity_warmup=0.05)
    configs = [ReLU(24, target_l0=3, dead_after=64), Gated(24, target_l0=3, dead_after=64), CONFIGS[0]]
    whole = train(data(), configs, settings, out=tmp_path / "whole")
    assert whole[0].metrics[-1]["gain"] != 1
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2 + 23)
        with pytest.raises(KeyboardInterrupt):
            train(data(), configs, settings, out=tmp_path / "parts")
    assert_same(whole, train(data(), configs, settings, out=tmp_path / "parts", resume=True))


def test_a_crash_resumes_from_the_last_checkpoint_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(data(), CONFIGS, SETTINGS, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("sparsight.training.loop._finish", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            train(data(), CONFIGS, SETTINGS, out=tmp_path / "parts")
    log = tmp_path / "parts" / "topk-24-k3" / "metrics.jsonl"
    log.write_text(log.read_text()[:-5])  # and its last line only half on the disk
    assert_same(whole, train(data(), CONFIGS, SETTINGS, out=tmp_path / "parts", resume=True))


@pytest.mark.slow
def test_a_run_that_crashed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    whole = train(data(), CONFIGS, SETTINGS, out=tmp_path / "whole")
    broken = train(data(), CONFIGS, SETTINGS, out=tmp_path / "parts")
    (broken[1].folder / "dictionary.json").unlink()
    assert_same(whole, train(data(), CONFIGS, SETTINGS, out=tmp_path / "parts", resume=True))


def test_resuming_a_finished_run_returns_it_as_it_is(tmp_path: Path) -> None:
    first = train(data(), CONFIGS, SETTINGS, out=tmp_path)
    before = (tmp_path / "topk-24-k3" / "dictionary.safetensors").stat().st_mtime_ns
    again = train(data(), CONFIGS, SETTINGS, out=tmp_path, resume=True)
    assert_same(first, again)
    assert (tmp_path / "topk-24-k3" / "dictionary.safetensors").stat().st_mtime_ns == before
    assert torch.equal(first[0].dictionary(data()), again[0].dictionary(data()))


def test_a_folder_with_a_run_is_not_trained_into_again(tmp_path: Path) -> None:
    train(data(), CONFIGS[:1], SETTINGS, out=tmp_path)
    with pytest.raises(TrainingError, match=r"already holds a run; resume it .* or choose another folder"):
        train(data(), CONFIGS[:1], SETTINGS, out=tmp_path)


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"settings": replace(SETTINGS, lr=0.02)}, r"training\.lr: 0\.01 -> 0\.02"),
        ({"configs": [replace(CONFIGS[0], aux=0.5)]}, r"configs\.topk-24-k3\.aux: 0\.03125 -> 0\.5"),
        ({"configs": [TopK(24, 4)]}, r"configs\.topk-24-k3: \(present\) -> \"\(absent\)\"; configs\.topk-24-k4"),
        ({"x": torch.randn(99, 8)}, r"data\.n_rows: 250 -> 99"),
    ],
)
def test_resuming_with_other_settings_is_refused_and_shows_the_difference(
    changed: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    train(data(), CONFIGS[:1], SETTINGS, out=tmp_path)
    x, configs = changed.get("x", data()), changed.get("configs", CONFIGS[:1])
    with pytest.raises(TrainingError, match=difference):
        train(x, configs, changed.get("settings", SETTINGS), out=tmp_path, resume=True)


def test_a_damaged_checkpoint_is_an_error_not_a_fresh_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        with pytest.raises(KeyboardInterrupt):
            train(data(), CONFIGS[:1], SETTINGS, out=tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors is damaged"):
        train(data(), CONFIGS[:1], SETTINGS, out=tmp_path, resume=True)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        with pytest.raises(KeyboardInterrupt):
            train(data(), CONFIGS[:1], SETTINGS, out=tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("sparsight.training.checkpoint.save_file", full)
        with pytest.raises(TrainingError, match=r"cannot write .*checkpoint.*No space left"):
            train(data(), CONFIGS[:1], SETTINGS, out=tmp_path, resume=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*partial"))


def test_the_second_ctrl_c_interrupts_at_once_and_the_handler_is_put_back(tmp_path: Path) -> None:
    # A shell starts background jobs with SIGINT ignored: the test sets the handler it speaks of.
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with held_back_interruptions() as interrupted:
            signal.raise_signal(signal.SIGINT)
            assert interrupted.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outer)


def test_metrics_are_json_lines_with_the_names_that_the_documentation_lists(tmp_path: Path) -> None:
    run = train(data(), CONFIGS[1:], SETTINGS, out=tmp_path)[0]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.metrics
    names = {"step", "tokens", "loss", "fvu", "l0", "dead", "parts", "lr", *SPEED}
    assert all(set(line) == names for line in lines)
    assert lines[-1]["tokens"] == 40 * 32
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert all(f"`{name}`" in page for name in names)
