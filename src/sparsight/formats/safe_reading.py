"""Tensors and JSON out of files that others wrote: nothing in them is ever run, and every refusal is one line."""

import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparsight.errors import FormatError

# A configuration is a few kilobytes; a "configuration" of gigabytes is something else.
JSON_BYTES = 64 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FormatError: the file cannot be read, is no JSON, or holds no object.
    """
    try:
        if path.stat().st_size > JSON_BYTES:
            raise FormatError(f"{path} is larger than {JSON_BYTES >> 20} MiB, so it is no configuration")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON: {_one_line(error)}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, in the types of the file.

    Raises:
        FormatError: the file cannot be read or is not what its header says.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is truncated or no safetensors file ({_one_line(error)}); copy it again") from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of a NumPy archive. Arrays of objects are pickles and are refused.

    Raises:
        FormatError: the file cannot be read, or an entry is no array of numbers.
    """
    try:
        # Opened here: NumPy leaves a file open that it refuses.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array, not an archive of named ones")
            return {name: torch.from_numpy(_numbers(archive[name], name)) for name in archive.files}
    except (OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: no NumPy archive of plain numbers ({_one_line(error)})") from error


def _numbers(found: Any, name: str) -> Any:
    if not isinstance(found, np.ndarray):
        raise ValueError(f"entry {name!r} is no array")
    return found


def read_torch(path: Path) -> dict[str, Any]:
    """What a `torch.save` file holds, by PyTorch's reader that accepts tensors and plain values only.

    Such a file is a pickle. The restricted reader refuses whatever would have to be imported or called.

    Raises:
        FormatError: the file cannot be read, holds anything else, or holds no dictionary with texts as keys.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{path} holds more than tensors and plain values, which could run code, so it is not read; save its "
            "tensors alone, or as safetensors"
        ) from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or _one_line(error)}") from error
    except Exception as error:  # the reader's own complaints have many types
        raise FormatError(f"{path} is truncated or was not written by torch.save ({_one_line(error)})") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise FormatError(f"{path}: expected a dictionary of named tensors, got {type(found).__name__}")
    return found


class Tensors:
    """The tensors of a file, taken out one by one under checks: right shape, a floating type, finite.

    Args:
        found: As a reader gave them.
        path: Of the file, for messages.
    """

    def __init__(self, found: dict[str, Any], path: Path) -> None:
        self.path = path
        self._left = dict(found)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int | None) -> Float[Tensor, "..."]:
        """Take out one tensor, as float32 (float64 stays).

        Args:
            name: Its key.
            shape: What it must have; None for any length of an axis.
        Raises:
            FormatError: it is missing, or not of that shape, or not floating, or not finite.
        """
        tensor = self.value(name)
        expected = f"[{', '.join('any' if n is None else str(n) for n in shape)}] of a floating type"
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise FormatError(f"{self.path}: {name} must be {expected}, got {_described(tensor)}")
        fits = tensor.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, tensor.shape, strict=True))
        if not fits:
            raise FormatError(f"{self.path}: {name} must be {expected}, got {_described(tensor)}")
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{self.path}: {name} holds NaN or infinity; copy the file again")
        return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)

    def value(self, name: str) -> Any:
        """Take out whatever has this key.

        Raises:
            FormatError: nothing has.
        """
        if name not in self._left:
            raise FormatError(f"{self.path}: tensor {name!r} is missing; there are {sorted(self._left)}")
        return self._left.pop(name)

    def number(self, name: str) -> float:
        """Take out a tensor of one finite number, of any type, or a plain number."""
        found = self.value(name)
        if isinstance(found, Tensor) and found.numel() == 1:
            found = found.item()
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise FormatError(f"{self.path}: {name} must be one finite number, got {_described(found)}")
        return float(found)

    def drop(self, *names: str) -> None:
        """Leave out what says nothing about the code."""
        for name in names:
            self._left.pop(name, None)

    def refuse_rest(self, architecture: str) -> None:
        """Refuse what nobody asked for: it might change the code.

        Raises:
            FormatError: a tensor is left.
        """
        if self._left:
            name = sorted(self._left)[0]
            raise FormatError(f"{self.path}: tensor {name!r} is not part of {architecture}; it cannot be carried over")


def _described(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"{list(found.shape)} of {str(found.dtype).removeprefix('torch.')}"
    return f"{found!r:.60}"


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
