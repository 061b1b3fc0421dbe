"""`metrics.jsonl`: one JSON object per line, whole lines only."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsight.errors import TrainingError
from sparsight.training.checks import Warnings, show_warning
from sparsight.training.folder import METRICS_FILE
from sparsight.training.listeners import Listener
from sparsight.training.member import Member
from sparsight.training.objectives import Objective


def metrics_line(
    step: int, tokens: int, member: Member, objective: Objective, lr: float, speed: dict[str, float]
) -> dict[str, Any]:
    """What a step's batch showed, as one line of the log.

    Args:
        speed: What depends on the machine: tokens per second, and the share of the time that batches took to come.
    """
    line = {
        "step": step,
        "tokens": tokens,
        "loss": float(objective.loss.detach()),
        "fvu": float(objective.parts["reconstruction"]),
        "l0": float(objective.l0),
        "dead": member.dead_share(),
        "parts": {name: float(part) for name, part in objective.parts.items()},
        "lr": lr,
        **speed,
    }
    if member.controller is not None:
        line["gain"] = member.controller.gain
    return line


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file, in order; a last line cut short by a crash is left out.

    Raises:
        TrainingError: a line in the middle is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except json.JSONDecodeError as error:
        raise TrainingError(f"{path} is damaged ({error}); remove it to train again from the start") from error


class MetricsLog:
    """Appends lines, each flushed when written, to a file that ends at a given step.

    Args:
        path: The file; its folder exists.
        last_step: Lines after this step are dropped: a resumed run writes them again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= last_step]
        self.said = {text for line in kept for text in line.get("warnings", [])}
        self._file = path.open("w", encoding="utf-8")
        for line in kept:
            self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class RunLog:
    """The metrics of all dictionaries of a run; listeners hear of the same lines.

    A warning is written to the first line at which it holds, under `warnings`, and not again.

    Args:
        out: Folder of the run.
        names: The dictionaries whose lines are written; empty where another process writes.
        listeners: Given every new line.
        last_step: Lines after this step are dropped.
    """

    def __init__(self, out: Path, names: Sequence[str], listeners: Sequence[Listener], last_step: int) -> None:
        self._logs = {name: MetricsLog(out / name / METRICS_FILE, last_step) for name in names}
        self._warnings = {name: Warnings(log.said) for name, log in self._logs.items()}
        self._listeners = listeners
        self._shown: set[str] = set()

    def write(self, name: str, line: dict[str, Any], found: Sequence[str]) -> None:
        """Write a line, with those of the warnings that are new."""
        if name not in self._logs:
            return
        if fresh := self._warnings[name].new(found):
            line = {**line, "warnings": fresh}
        for text in fresh:
            if text not in self._shown:  # what is wrong with the data is wrong for every dictionary
                self._shown.add(text)
                show_warning(f"{name}, step {line['step']}: {text}")
        self._logs[name].write(line)
        for listener in self._listeners:
            listener.write(name, line)

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
