"""Listeners hear the lines of metrics.jsonl, no more and no fewer."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsight.dictionaries import TopK
from sparsight.errors import TrainingError
from sparsight.training import Listener, TensorBoard, Training, WandB, train

SETTINGS = Training(n_tokens=10 * 64, batch_size=64, log_every=2)
X = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))


class Recorder:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def open(self, plan: dict[str, Any]) -> None:
        self.heard.append(sorted(plan))

    def write(self, name: str, line: dict[str, Any]) -> None:
        self.heard.append((name, line))

    def close(self) -> None:
        self.heard.append("closed")


def test_a_listener_hears_every_line_between_opening_and_closing(tmp_path: Path) -> None:
    recorder = Recorder()
    assert isinstance(recorder, Listener)
    runs = train(X, [TopK(16, 2), TopK(16, 3)], SETTINGS, out=tmp_path, listeners=[recorder])
    assert recorder.heard[0] == ["configs", "data", "training"]
    assert recorder.heard[-1] == "closed"
    for run in runs:
        assert [line for name, line in recorder.heard[1:-1] if name == run.folder.name] == run.metrics


def test_a_listener_is_closed_when_the_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr("sparsight.training.loop.metrics_line", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(X, [TopK(16, 2)], SETTINGS, out=tmp_path, listeners=[recorder])
    assert recorder.heard[-1] == "closed"


def test_tensorboard_files_hold_the_numbers_of_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [run] = train(X, [TopK(16, 2)], SETTINGS, out=tmp_path / "run", listeners=[TensorBoard(tmp_path / "events")])
    events = EventAccumulator(str(tmp_path / "events" / "topk-16-k2"))
    events.Reload()
    for tag in ("fvu", "l0", "parts/reconstruction"):
        written = [line["parts"]["reconstruction"] if "/" in tag else line[tag] for line in run.metrics]
        assert [event.step for event in events.Scalars(tag)] == [line["step"] for line in run.metrics]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(written)


def test_weights_and_biases_gets_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Run:
        def log(self, values: dict[str, float]) -> None:
            calls.append(values)

        def finish(self) -> None:
            calls.append("finished")

    class Package:
        @staticmethod
        def init(**options: Any) -> Run:
            calls.append(options["project"])
            return Run()

    monkeypatch.setattr(importlib, "import_module", lambda name: Package if name == "wandb" else None)
    listener = WandB("sparse")
    monkeypatch.undo()
    [run] = train(X, [TopK(16, 2)], SETTINGS, out=tmp_path, listeners=[listener])
    assert calls[0] == "sparse"
    assert calls[-1] == "finished"
    assert [call["topk-16-k2/fvu"] for call in calls[1:-1]] == [line["fvu"] for line in run.metrics]


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(TrainingError, match=r"WandB needs the package wandb .* pip install wandb"):
        WandB("sparse")
