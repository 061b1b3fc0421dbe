"""Where a stream takes rows from, a chunk at a time: memory, a store on disk, or a model reading documents."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsight.activations.contexts import Cutter, windows
from sparsight.activations.documents import HasText
from sparsight.activations.pieces import Context
from sparsight.activations.reading import Reading, read_window
from sparsight.activations.record import Cursor
from sparsight.activations.split import mix_seed
from sparsight.activations.store import ActivationStore
from sparsight.errors import DataError
from sparsight.models import Site

Chunk = Mapping[str, Tensor]  # site -> rows [n, d], the same rows at every site


class AbstractChunks(ABC):
    """Rows of an epoch in chunks that fit into memory; rows are mixed within a chunk, so a chunk must itself be mixed.

    `n_rows` is the length of an epoch, None when it is not known beforehand.
    """

    n_rows: int | None

    @abstractmethod
    def load(self, epoch: int, index: int) -> Chunk | None:
        """A chunk, the same each time; None behind the last one of the epoch."""

    @abstractmethod
    def rows(self, epoch: int, index: int) -> Tensor | None:
        """Numbers in the source of the rows of a chunk, `[n]` int64, without reading them; None behind the last one.

        Raises:
            ValueError: rows have no numbers, because a model makes them.
        """

    @abstractmethod
    def place(self) -> dict[str, Any]:
        """What is needed to load the last chunk again without those before it, as JSON."""

    @abstractmethod
    def seek(self, place: dict[str, Any]) -> None:
        """Go to where `place` was called."""


class InMemory(AbstractChunks):
    """All rows in one chunk: the order of an epoch is a uniformly random permutation."""

    def __init__(self, tensors: Chunk) -> None:
        self.tensors = tensors
        self.n_rows = len(next(iter(tensors.values())))

    def load(self, epoch: int, index: int) -> Chunk | None:
        return self.tensors if index == 0 else None

    def rows(self, epoch: int, index: int) -> Tensor | None:
        return torch.arange(len(next(iter(self.tensors.values())))) if index == 0 else None

    def place(self) -> dict[str, Any]:
        return {}

    def seek(self, place: dict[str, Any]) -> None:
        pass


class OnDisk(AbstractChunks):
    """Blocks of neighbouring rows in random order, some hundreds of them to a chunk; the next chunk is read ahead.

    Two buffers of one chunk are all the memory it takes, in the type of the store.
    """

    def __init__(self, store: ActivationStore, sites: list[Site], seed: int, block_rows: int, buffer_rows: int) -> None:
        self.store = store
        self.sites = sites
        self.seed = seed
        self.block_rows = block_rows
        self.blocks_per_chunk = max(1, buffer_rows // block_rows)
        self.n_rows = len(store)
        self.n_blocks = -(-len(store) // block_rows)
        self.n_chunks = -(-self.n_blocks // self.blocks_per_chunk)
        rows = min(self.blocks_per_chunk * block_rows, len(store))
        self._buffers = [{str(site): large(rows, store.width(site), store.dtype) for site in sites} for _ in range(2)]
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chunk-reader")
        self._ahead: tuple[tuple[int, int], Future[Chunk]] | None = None

    def load(self, epoch: int, index: int) -> Chunk | None:
        if index >= self.n_chunks:
            return None
        wanted = (epoch, index)
        if self._ahead is not None and self._ahead[0] == wanted:
            chunk = self._ahead[1].result()
        else:
            if self._ahead is not None:
                self._ahead[1].result()  # it fills the other buffer; let it end before both are given out anew
            chunk = self._read(*wanted)
        after = (epoch, index + 1) if index + 1 < self.n_chunks else (epoch + 1, 0)
        self._ahead = (after, self._worker.submit(self._read, *after))
        return chunk

    def _blocks(self, epoch: int, index: int) -> list[slice]:
        """Rows of each block of a chunk.

        In the order of the disk: the order within a chunk does not matter, since its rows are permuted.
        """
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        blocks = torch.randperm(self.n_blocks, generator=generator)
        mine = blocks[index * self.blocks_per_chunk : (index + 1) * self.blocks_per_chunk].sort().values
        size, n = self.block_rows, len(self.store)
        return [slice(block * size, min((block + 1) * size, n)) for block in mine.tolist()]

    def rows(self, epoch: int, index: int) -> Tensor | None:
        if index >= self.n_chunks:
            return None
        return torch.cat([torch.arange(block.start, block.stop) for block in self._blocks(epoch, index)])

    def _read(self, epoch: int, index: int) -> Chunk:
        self._buffers.reverse()
        blocks = self._blocks(epoch, index)
        n = sum(rows.stop - rows.start for rows in blocks)
        chunk = {name: buffer[:n] for name, buffer in self._buffers[0].items()}
        for site in self.sites:
            self.store.read_blocks(site, blocks, chunk[str(site)])
        return chunk

    def place(self) -> dict[str, Any]:
        return {}

    def seek(self, place: dict[str, Any]) -> None:
        pass


class Live(AbstractChunks):
    """Rows read from a model as they are needed; neighbouring documents share a chunk, chunks follow the documents.

    An epoch is one pass over the documents, which must therefore give the same ones each time they are iterated.
    """

    def __init__(
        self, cutter: Cutter, documents: Iterable[str | HasText], sites: list[Site], batch_size: int, buffer_rows: int
    ) -> None:
        self.cutter = cutter
        self.documents = documents
        self.reading = Reading(sites, torch.float32, batch_size)
        self.buffer_rows = buffer_rows
        self.n_rows = None
        self._begin = Cursor()
        self._end = Cursor()
        self._windows: Iterator[list[Context]] | None = None

    def load(self, epoch: int, index: int) -> Chunk | None:
        if index == 0:
            self._begin = self._end = Cursor()
            self._windows = None
        if self._windows is None:
            self._windows = windows(self.cutter.cut(self.documents, self._end), 4 * self.reading.batch_size)
        self._begin = self._end
        parts: list[dict[Site, Tensor]] = []
        n = 0
        for window in self._windows:
            read = read_window(self.cutter.lm, window, self.reading)
            parts.append(read.activations)
            self._end = window[-1].end
            n += read.n_rows
            if n >= self.buffer_rows:
                break
        if not parts:
            if index == 0:
                again = "; give a list or another iterable that starts anew" if epoch else ""
                raise DataError(f"the documents gave no tokens in epoch {epoch}{again}")
            return None
        return {str(site): torch.cat([part[site] for part in parts]) for site in self.reading.sites}

    def rows(self, epoch: int, index: int) -> Tensor | None:
        raise ValueError("rows that a model makes have no numbers; harvest a store to know where rows come from")

    def place(self) -> dict[str, Any]:
        return self._begin.model_dump()

    def seek(self, place: dict[str, Any]) -> None:
        self._end = Cursor.model_validate(place)
        self._windows = None


def large(rows: int, d: int, dtype: torch.dtype) -> Tensor:
    """Memory for so many rows, from numpy: it asks Linux for large pages, and the first touch of small ones is slow."""
    return torch.from_numpy(np.empty(rows * d * dtype.itemsize, np.uint8)).view(dtype).view(rows, d)
