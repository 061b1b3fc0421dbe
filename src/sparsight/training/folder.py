"""The folder of a run: which run it holds, and whether it is finished.

out/
  training.json            what is trained, on what, how; written first
  checkpoint.safetensors   while the run is unfinished
  <run name>/              one per configuration
    metrics.jsonl
    dictionary.safetensors, dictionary.json
"""

import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sparsight.dictionaries.files import readable_os_errors, temporary
from sparsight.dictionaries.record import RECORD_FILE
from sparsight.errors import FormatError, TrainingError
from sparsight.training.starting_point import StartingPoint

PLAN_FILE = "training.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
METRICS_FILE = "metrics.jsonl"


def software_version() -> str:
    return version("sparsight")


def run_names(starts: Sequence[StartingPoint]) -> list[str]:
    """Folder names: what each configuration calls itself; the second of one name gets `-2`, and so on.

    Raises:
        ValueError: there is no configuration, or two are equal.
    """
    if not starts:
        raise ValueError("configs must name at least one dictionary to train, got none")
    for i, start in enumerate(starts):
        if start in starts[:i]:
            raise ValueError(f"configs {starts.index(start)} and {i} are equal ({start.config}); drop one")
    names: list[str] = []
    for start in starts:
        earlier = sum(other.run_name == start.run_name for other in starts[: len(names)])
        names.append(start.run_name if earlier == 0 else f"{start.run_name}-{earlier + 1}")
    return names


def claim_folder(out: Path, plan: dict[str, Any], names: list[str], *, resume: bool) -> bool:
    """Make sure that `out` is ours to write; tell whether the run in it is already finished.

    Raises:
        TrainingError: the folder holds another run, or this one and `resume` is off, or it cannot be written.
    """
    plan = json.loads(json.dumps(plan))  # as it reads back: tuples are lists
    path = out / PLAN_FILE
    if path.exists():
        if not resume:
            raise TrainingError(
                f"{out} already holds a run; resume it (resume=True, --resume) or choose another folder"
            )
        if differences := _differences(_read_plan(path), plan):
            raise TrainingError(
                f"{out} holds a run with other settings: {'; '.join(differences)}; resume with the old ones or choose "
                "another folder"
            )
        return all((out / name / RECORD_FILE).exists() for name in names)
    try:
        with readable_os_errors(out):
            for name in names:
                (out / name).mkdir(parents=True, exist_ok=True)
            with temporary(path) as partial:
                partial.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
                os.replace(partial, path)
    except FormatError as error:
        raise TrainingError(str(error)) from error
    return False


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); choose another folder") from error


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two plans differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [
            line
            for k in keys
            for line in _differences(old.get(k, "(absent)"), new.get(k, "(absent)"), f"{key}.{k}".lstrip("."))
        ]
    return [] if old == new else [f"{key}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    return "(present)" if isinstance(value, dict) else json.dumps(value)
