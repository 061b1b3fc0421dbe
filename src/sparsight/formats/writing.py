"""Writing the two files of a foreign format, each whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsight.dictionaries.files import flush_to_disk, readable_os_errors, temporary
from sparsight.errors import FormatError

Save = Callable[[dict[str, Tensor], Path], None]


def write_pair(
    folder: Path, weights: str, tensors: dict[str, Tensor], description: str, config: dict[str, Any], save: Save
) -> None:
    """Write tensors and their configuration beside their final names, then move them in place, the configuration last.

    Args:
        folder: Made if it is not there; other files in it are left alone.
        weights: Name of the file of the tensors.
        tensors: Written as they are, contiguous.
        description: Name of the file of the configuration.
        config: Written as JSON.
        save: Writes tensors to a path.
    Raises:
        FormatError: a tensor is not finite, or the folder cannot be written.
    """
    contiguous = _writable(tensors, folder)
    with readable_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with temporary(folder / weights) as new_weights, temporary(folder / description) as new_description:
            save(contiguous, new_weights)
            new_description.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            flush_to_disk(new_weights)
            flush_to_disk(new_description)
            (folder / description).unlink(missing_ok=True)
            os.replace(new_weights, folder / weights)
            os.replace(new_description, folder / description)


def write_file(folder: Path, weights: str, tensors: dict[str, Tensor], save: Save) -> None:
    """Write tensors beside their final name, then move them in place.

    Args:
        folder: Made if it is not there; other files in it are left alone.
        weights: Name of the file.
        tensors: Written as they are, contiguous.
        save: Writes tensors to a path.
    Raises:
        FormatError: a tensor is not finite, or the folder cannot be written.
    """
    contiguous = _writable(tensors, folder)
    with readable_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with temporary(folder / weights) as new_weights:
            save(contiguous, new_weights)
            flush_to_disk(new_weights)
            os.replace(new_weights, folder / weights)


def _writable(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{name} holds NaN or infinity, so nothing is written to {folder}")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def save_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    """One safetensors file."""
    save_file(tensors, path)


def save_torch(tensors: dict[str, Tensor], path: Path) -> None:
    """One file of `torch.save`, tensors only: the restricted reader opens it."""
    torch.save(tensors, path)


def save_npz(tensors: dict[str, Tensor], path: Path) -> None:
    """One NumPy archive of plain numbers."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: tensor.numpy() for name, tensor in tensors.items()})
