"""Tensors and JSON out of files that others wrote: nothing in them is ever run, and every refusal is one line."""

import json
import math
import pickle
import struct
import zipfile
import zlib
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
# Numbers do not pack tighter than this; what claims to is made to fill the memory.
MOST_PACKED = 200
# Where other projects' downloads keep the files that the folders of a snapshot link to: `blobs` beside `snapshots`.
SNAPSHOTS, BLOBS = "snapshots", "blobs"


def refuse_link_out(path: Path, folder: Path | None = None) -> None:
    """Refuse a symbolic link that leads out of its folder: a file of somebody else must not show or send one of yours.

    The cache of the Hugging Face hub links from `snapshots/REVISION` to `blobs` of the same repository: allowed.

    Args:
        folder: What the path must stay in. Default: the folder that it is in.
    Raises:
        FormatError: the path leads elsewhere.
    """
    inside = (path.parent if folder is None else folder).resolve()
    target = path.resolve()
    allowed = [inside]
    if SNAPSHOTS in inside.parts:
        at = len(inside.parts) - 1 - inside.parts[::-1].index(SNAPSHOTS)
        allowed.append(Path(*inside.parts[:at], BLOBS))
    if not any(target.is_relative_to(one) for one in allowed):
        raise FormatError(f"{path} is a link that leads out of its folder; put a copy of the file in its place")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FormatError: the file cannot be read, is no JSON, names a key twice, or holds no object.
    """
    refuse_link_out(path)
    try:
        if path.stat().st_size > JSON_BYTES:
            raise FormatError(f"{path} is larger than {JSON_BYTES >> 20} MiB, so it is no configuration")
        found = json.loads(path.read_bytes(), object_pairs_hook=_pairs)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON: {_one_line(error)}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless it names a key twice: which of the two holds differs between readers."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r:.60} is there twice")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, in the types of the file.

    Raises:
        FormatError: the file cannot be read or is not what its header says.
    """
    refuse_link_out(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is truncated or no safetensors file ({_one_line(error)}); copy it again") from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of a NumPy archive. Arrays of objects are pickles and are refused.

    What an entry says of its shape is compared with its length in the archive before anything is unpacked.

    Raises:
        FormatError: the file cannot be read, or an entry is no array of numbers, or not as long as it says.
    """
    refuse_link_out(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                entry.filename.removesuffix(".npy"): torch.from_numpy(_array(archive, entry))
                for entry in archive.infolist()
            }
    except (OSError, ValueError, TypeError, KeyError, EOFError, SyntaxError, MemoryError, OverflowError) as error:
        raise FormatError(f"{path}: no NumPy archive of plain numbers ({_one_line(error)})") from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, struct.error) as error:
        raise FormatError(f"{path}: no NumPy archive of plain numbers ({_one_line(error)})") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    name = entry.filename
    if not name.endswith(".npy") or "/" in name or "\\" in name:
        raise ValueError(f"entry {name!r:.60} is no array")
    if entry.file_size > MOST_PACKED * max(entry.compress_size, 1):
        raise ValueError(f"entry {name!r:.60} unpacks to {entry.file_size} bytes from {entry.compress_size}")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.kind not in "fiu":
            raise ValueError(f"entry {name!r:.60} holds {dtype}, not numbers")
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes != entry.file_size - file.tell():
            raise ValueError(
                f"entry {name!r:.60} says it holds {n_bytes} bytes, but has {entry.file_size - file.tell()}"
            )
        content = file.read()
    if len(content) != n_bytes:
        raise ValueError(f"entry {name!r:.60} is truncated")
    flat = np.frombuffer(bytearray(content), dtype=dtype).astype(dtype.newbyteorder("="), copy=False)
    return flat.reshape(shape, order="F" if fortran else "C")


def read_torch(path: Path) -> dict[str, Any]:
    """What a `torch.save` file holds, by PyTorch's reader that accepts tensors and plain values only.

    Such a file is a pickle. The restricted reader refuses whatever would have to be imported or called.

    Raises:
        FormatError: the file cannot be read, holds anything else, or holds no dictionary with texts as keys.
    """
    refuse_link_out(path)
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise FormatError(f"{path} is truncated or was not written by torch.save since version 1.6; save it again")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{path} holds more than tensors and plain values, which could run code, so it is not read; save its "
            "tensors alone, or as safetensors"
        ) from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or _one_line(error)}") from error
    except FormatError:
        raise
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
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise FormatError(f"{self.path}: {name} must be {expected}, got {_described(tensor)}")
        fits = tensor.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, tensor.shape, strict=True))
        if not fits:
            raise FormatError(f"{self.path}: {name} must be {expected}, got {_described(tensor)}")
        if tensor.numel() == 0:
            raise FormatError(f"{self.path}: {name} must be {expected}, got {_described(tensor)}, which is empty")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise FormatError(f"{self.path}: {name} says it is {_described(tensor)}, but the file holds less")
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
