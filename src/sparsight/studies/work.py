"""The folder of a study while it is at work: its settings, its finished parts, its scratch space."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sparsight.errors import DataError

SETTINGS_FILE, RECORD_FILE, PARTS_FOLDER, SCRATCH_FOLDER = "settings.json", "study.json", "parts", "scratch"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a caller may choose about a study.

    Attributes:
        fast: Fewer data, under a minute; intervals are wider, and answers may be missed.
        seed: Every random choice follows from it.
        model: "organism", or any model for which `texts` are given.
        texts: Plain text files to read activations from; the organism brings its own corpus.
        device: "auto", "cpu", "cuda" ...
    """

    fast: bool = False
    seed: int = 0
    model: str = "organism"
    texts: tuple[Path, ...] = ()
    device: str = "auto"

    def settings(self, study: str) -> dict[str, Any]:
        """All that the result depends on, texts by their content."""
        return {
            "study": study,
            "fast": self.fast,
            "seed": self.seed,
            "model": self.model,
            "texts": {path.name: _digest(path) for path in self.texts},
            "sparsight": version("sparsight"),
        }

    def command(self, study: str) -> str:
        """What to type for the same result."""
        words = ["sparsight study", study, *(["--fast"] if self.fast else []), f"--seed {self.seed}"]
        if self.model != "organism":
            words.append(f"--model {self.model}")
        return " ".join([*words, *(f"--text {path.name}" for path in self.texts)])


class Work:
    """Hands a study its options and keeps what it has finished.

    Attributes:
        folder: Where everything is written.
        options: What the caller chose.
        progress: Whether to report on stderr.
        seconds: Time each finished part took, in this call or an earlier one.
    """

    def __init__(self, folder: Path, options: Options, *, progress: bool = False) -> None:
        self.folder, self.options, self.progress = folder, options, progress
        self.seconds: dict[str, float] = {}

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of `compute()`, computed once: a later call, and a resumed study, read it from `parts/NAME.json`.

        Args:
            name: Letters, digits, dots and hyphens; unlike the names of the study's other parts.
            compute: Returns what JSON can hold, with finite numbers only.
        Returns:
            The result as JSON gives it back (tuples are lists, keys are text), so that a resumed study sees the same.
        Raises:
            DataError: the part's file is damaged.
            ValueError: the name is not usable, or the result is not JSON.
        """
        if not name or not all(c.isalnum() or c in "-." for c in name) or name.startswith("."):
            raise ValueError(f"a part's name must be letters, digits, dots and hyphens, got {name!r}")
        path = self.folder / PARTS_FOLDER / f"{name}.json"
        if path.is_file():
            found = _read(path)
            if not isinstance(found, dict) or found.keys() != {"seconds", "value"}:
                raise DataError(f"{path} is damaged: it is not a part of a study; remove it to compute it again")
        else:
            self.say(name)
            began = time.perf_counter()
            value = compute()
            found = {"seconds": round(time.perf_counter() - began, 2), "value": value}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(found, allow_nan=False, indent=1))
            found = _read(path)
        self.seconds[name] = float(found["seconds"])
        return found["value"]

    def scratch(self, name: str) -> Path:
        """A path for data that are large and not JSON (stores, dictionaries); kept for a resumed study."""
        folder = self.folder / SCRATCH_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def say(self, what: str) -> None:
        """One line of progress on stderr."""
        if self.progress:
            from rich.console import Console

            Console(stderr=True, highlight=False).print(f"[bold]{what}[/]")


def claim(folder: Path, settings: dict[str, Any], *, resume: bool) -> bool:
    """Make `folder` ours for these settings; True if it holds the finished study already.

    Raises:
        DataError: it holds something else, or an unfinished study and `resume` was not asked for.
    """
    mine = folder / SETTINGS_FILE
    if mine.is_file():
        if (found := _read(mine)) != settings:
            raise DataError(
                f"{folder} holds a study with other settings ({_changes(found, settings)}); name another folder"
            )
        if (folder / RECORD_FILE).is_file():
            return True
        if not resume:
            raise DataError(f"{folder} holds an unfinished study; go on with --resume, or name another folder")
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not empty and holds no study; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(mine, json.dumps(settings, indent=1))
    return False


def write_whole(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}; remove it to compute it again") from error


def _changes(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "unreadable"
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {found.get(key)} there, {wanted.get(key)} asked" for key in keys)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read the text {path}: {error.strerror}") from error
