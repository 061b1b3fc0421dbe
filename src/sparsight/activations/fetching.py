"""Rows from the files of a store to where they belong in memory, several reads at a time."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

from torch import Tensor

from sparsight.activations.shards import damaged, tensor_bytes

_READERS = 4  # reads under way at a time: a disk answers several sooner, and while one waits another copies
_ALONE = 1 << 20  # bytes: less is not worth starting threads
_PIECE = 4 << 20  # bytes asked for at once; Linux is three times as slow when it is asked for a hundred megabytes
_TOGETHER = 16  # short reads of a file in one go: opening it anew for each costs more than the reading
_GAP = 1 << 16  # bytes: what lies between two segments is read along and dropped if it is no longer than this


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows `[begin, end)` of one shard, and the row of the result where they go."""

    at: int
    shard: int
    begin: int
    end: int


def fetch(files: Sequence[Path], tensors: Sequence[Tensor], segments: Sequence[Segment], out: Tensor) -> None:
    """Copy rows of mapped tensors into `out`, converted to its type, by reading the files rather than the maps.

    A read fills its buffer at the speed of the disk; going through the map costs a page fault for every 4 KB, and its
    pages count as memory of the process. In long segments the system reads ahead. Of short ones, such as blocks in
    random order, it is told that none follows from another: what it would read ahead behind a block is another block's
    neighbour, not the next block.

    Args:
        files: The file of each shard.
        tensors: The tensor of each shard, as `map_shard` gives it.
        segments: Which rows; those that lie close together in a file are read in one go if they come one after another.
    Raises:
        StoreError: a file ends before the rows do.
    """
    first = tensors[0]
    row = first[0].numel() * first.element_size()
    errands = list(_errands(_reads(segments, row), row))

    def work(errand: list[list[Segment]]) -> None:
        shard = errand[0][0].shard
        _run(files[shard], tensors[shard], row, errand, out)

    n_bytes = sum(segment.end - segment.begin for segment in segments) * row
    if len(errands) == 1 or n_bytes < _ALONE:
        for errand in errands:
            work(errand)
        return
    with ThreadPoolExecutor(_READERS, thread_name_prefix="row-reader") as workers:
        for _ in workers.map(work, errands):
            pass


def _reads(segments: Sequence[Segment], row: int) -> Iterator[list[Segment]]:
    """Segments that are read in one go: near neighbours, as long as they are short together."""
    group: list[Segment] = []
    for part in segments:
        if group and not (
            part.shard == group[0].shard
            and 0 <= part.begin - group[-1].end <= _GAP // row
            and (part.end - group[0].begin) * row <= _PIECE
        ):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _is_short(read: list[Segment], row: int) -> bool:
    return (read[-1].end - read[0].begin) * row < _PIECE


def _errands(reads: Iterable[list[Segment]], row: int) -> Iterator[list[list[Segment]]]:
    """Reads for one worker and one opening of a file: a long one alone, short ones of the same file together."""
    errand: list[list[Segment]] = []
    for read in reads:
        short = _is_short(read, row)
        if errand and (not short or len(errand) == _TOGETHER or read[0].shard != errand[0][0].shard):
            yield errand
            errand = []
        errand.append(read)
        if not short:
            yield errand
            errand = []
    if errand:
        yield errand


def _run(path: Path, tensor: Tensor, row: int, errand: list[list[Segment]], out: Tensor) -> None:
    with path.open("rb", buffering=0) as file:
        if _is_short(errand[0], row) and (advise := getattr(os, "posix_fadvise", None)):
            advise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for read in errand:
            _read(file, path, tensor, row, read, out)


def _read(file: RawIOBase, path: Path, tensor: Tensor, row: int, group: list[Segment], out: Tensor) -> None:
    """Straight into `out`, or through a buffer where rows are dropped or converted."""
    direct = len(group) == 1 and out.dtype == tensor.dtype and out.is_contiguous()
    step = max(1, _PIECE // row)
    file.seek(int(tensor.storage_offset()) * tensor.element_size() + group[0].begin * row)
    for begin in range(group[0].begin, group[-1].end, step):
        end = min(begin + step, group[-1].end)
        at = group[0].at + begin - group[0].begin
        piece = out[at : at + end - begin] if direct else tensor.new_empty((end - begin, *tensor.shape[1:]))
        _fill(file, tensor_bytes(piece), path)
        for part in [] if direct else group:
            low, high = max(part.begin, begin), min(part.end, end)
            if low < high:
                out[part.at + low - part.begin : part.at + high - part.begin].copy_(piece[low - begin : high - begin])


def _fill(file: RawIOBase, view: memoryview, path: Path) -> None:
    while view:
        if not (n := file.readinto(view)):
            raise damaged(path, "is cut short")
        view = view[n:]
