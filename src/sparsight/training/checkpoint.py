"""The state of a run in one file, replaced whole."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsight.dictionaries.files import flush_to_disk, readable_os_errors, temporary
from sparsight.errors import FormatError, TrainingError


def write_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON-able state, or leave the file as it was.

    Raises:
        TrainingError: the file cannot be written.
    """
    try:
        with readable_os_errors(path), temporary(path) as partial:
            whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(whole, partial, metadata={"state": json.dumps(state)})
            flush_to_disk(partial)
            os.replace(partial, path)
    except FormatError as error:
        raise TrainingError(f"{error}; make room and resume from the last checkpoint") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_checkpoint` wrote.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is damaged ({error}); remove it to train again from the start") from error
