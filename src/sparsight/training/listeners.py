"""Whoever wants the lines of `metrics.jsonl` while they are written: TensorBoard, Weights & Biases, or your own."""

import importlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sparsight.errors import TrainingError


@runtime_checkable
class Listener(Protocol):
    """Hears of every line of a run, in order; of those written before an interruption it heard then."""

    def open(self, plan: dict[str, Any]) -> None:
        """The run begins or goes on; `plan` is the content of `training.json`."""

    def write(self, name: str, line: dict[str, Any]) -> None:
        """A line of `<name>/metrics.jsonl`."""

    def close(self) -> None:
        """The run has ended, or was interrupted."""


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line by name; the terms of the loss as `parts/<term>`."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            found |= {f"{key}/{term}": float(number) for term, number in value.items()}
        elif isinstance(value, int | float) and key != "step":
            found[key] = float(value)
    return found


class TensorBoard:
    """Event files for TensorBoard, one folder for each dictionary.

    Args:
        folder: Where they go, e.g. `runs/tensorboard`.
    Raises:
        TrainingError: the package `tensorboard` is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                f"TensorBoard needs the package tensorboard ({error}); pip install tensorboard"
            ) from error
        self._writer_class: Any = SummaryWriter
        self.folder = Path(folder)
        self._writers: dict[str, Any] = {}

    def open(self, plan: dict[str, Any]) -> None:
        self._writers = {name: self._writer_class(str(self.folder / name)) for name in plan["configs"]}

    def write(self, name: str, line: dict[str, Any]) -> None:
        for tag, number in numbers(line).items():
            self._writers[name].add_scalar(tag, number, global_step=line["step"])
        for text in line.get("warnings", []):
            self._writers[name].add_text("warnings", text, global_step=line["step"])

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandB:
    """A run of Weights & Biases; metrics are named `<dictionary>/<metric>`.

    Args:
        project: Name of the project there.
        **options: Passed on to `wandb.init`, e.g. `mode="offline"`.
    Raises:
        TrainingError: the package `wandb` is not installed.
    """

    def __init__(self, project: str, **options: Any) -> None:
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise TrainingError(f"WandB needs the package wandb ({error}); pip install wandb") from error
        self._init = wandb.init
        self.project, self.options = project, options
        self._run: Any = None

    def open(self, plan: dict[str, Any]) -> None:
        self._run = self._init(project=self.project, config=plan, **self.options)

    def write(self, name: str, line: dict[str, Any]) -> None:
        self._run.log({f"{name}/{tag}": number for tag, number in numbers(line).items()} | {"step": line["step"]})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
