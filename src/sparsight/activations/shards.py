"""One shard: a safetensors file, written in one go with its checksum, and mapped back after its header was checked."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.errors import StoreError

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE = 4 << 20  # bytes read at a time when a file is summed
_HEADER_LIMIT = 16 << 20  # bytes; ours take a few kilobytes


def write_shard(path: Path, tensors: Mapping[str, Sequence[Tensor]]) -> tuple[int, int]:
    """Write tensors, each given as the pieces it is made of along its first axis, under a name that is whole or absent.

    The bytes go to `path` + ".tmp", are flushed to the disk, and only then take their name. Wider types come first, so
    that every tensor is aligned.

    Returns:
        Bytes in the file and their CRC-32.
    Raises:
        StoreError: the disk is full or refuses; the temporary file is removed.
    """
    order = sorted(tensors, key=lambda name: -tensors[name][0].element_size())
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        pieces = tensors[name]
        shape = [sum(len(piece) for piece in pieces), *pieces[0].shape[1:]]
        begin, end = end, end + prod(shape) * pieces[0].element_size()
        header[name] = {"dtype": _NAMES[pieces[0].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    views = [
        memoryview(len(text).to_bytes(8, "little") + text),
        *(tensor_bytes(piece) for name in order for piece in tensors[name]),
    ]
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors(path), ThreadPoolExecutor(max_workers=1) as beside:
        try:
            crc = beside.submit(_crc32, views)  # takes as long as the disk does, so it runs beside it
            with temporary.open("wb") as file:
                for view in views:
                    file.write(view)
                    _start_writing(file.fileno(), len(view))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return 8 + len(text) + end, crc.result()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; writing to them writes to it if it is contiguous."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _start_writing(descriptor: int, n_bytes: int) -> None:
    """Let the disk begin with the bytes just written while the next are prepared; else it would wait for the flush."""
    if advise := getattr(os, "posix_fadvise", None):
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        advise(descriptor, end - n_bytes, n_bytes, os.POSIX_FADV_DONTNEED)


def _crc32(views: Sequence[memoryview]) -> int:
    crc = 0
    for view in views:
        crc = zlib.crc32(view, crc)
    return crc


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say in one line what the disk refused, and what to do about it."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}; whole shards are kept: make room and run again with resume"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_crc32(path: Path) -> int:
    """CRC-32 of a file's bytes, read in order through one small buffer."""
    buffer = memoryview(bytearray(_PIECE))
    crc = 0
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            crc = zlib.crc32(buffer[:n], crc)
    return crc


def map_shard(path: Path) -> dict[str, Tensor]:
    """Tensors of a shard, mapped from the file: nothing is read before it is used, and nothing is ever written back.

    The header is believed only where it agrees with the size of the file: every tensor inside, one after the other, of
    a known type, as long as its shape says.

    Raises:
        StoreError: the file is missing, is a link, is cut short, or its header lies.
    """
    if path.is_symlink() or not path.is_file():
        raise damaged(path, "is missing or not a plain file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise damaged(path, f"has {size} bytes, fewer than its header needs, or is not safetensors")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise damaged(path, "has a header that is not JSON") from None
    # A private map that keeps no file open: a store may have more shards than a process may have open files.
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + length :]
    tensors = {}
    end = 0
    for name, dtype, shape, (begin, stop) in _entries(path, header):
        if begin != end or stop - begin != prod(shape) * dtype.itemsize or stop > len(data) or begin % dtype.itemsize:
            raise damaged(path, f"has a header that disagrees with its size at {name!r}")
        end = stop
        tensors[name] = data[begin:stop].view(dtype).view(shape)
    if end != len(data):
        raise damaged(path, f"has {len(data) - end} bytes that its header does not name")
    return tensors


def _entries(path: Path, header: Any) -> list[tuple[str, torch.dtype, list[int], list[int]]]:
    """Entries of a header in the order of their bytes, each of the right form."""

    def counts(value: Any) -> bool:
        return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)

    entries = []
    for name, entry in header.items() if isinstance(header, dict) else [("header", None)]:
        if name == "__metadata__":
            continue
        if (
            not isinstance(entry, dict)
            or entry.keys() != {"dtype", "shape", "data_offsets"}
            or entry["dtype"] not in DTYPES
            or not counts(entry["shape"])
            or not counts(entry["data_offsets"])
            or len(entry["data_offsets"]) != 2
        ):
            raise damaged(path, f"has a header entry {name!r} that is not of a known form")
        entries.append((name, DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]))
    return sorted(entries, key=lambda entry: entry[3])


def damaged(path: Path, what: str) -> StoreError:
    """The error for a shard that is not what was written, and its remedy."""
    return StoreError(f"shard {path} {what}; restore it from a copy, or harvest again into a new folder")
