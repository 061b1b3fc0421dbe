"""`ActivationStream`: endless shuffled batches from memory, a store or a model, resumable at any batch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.activations.chunks import AbstractChunks, Chunk, InMemory, Live, OnDisk, large
from sparsight.activations.contexts import Cutter, Reads
from sparsight.activations.documents import HasText
from sparsight.activations.pieces import distinct_sites
from sparsight.activations.split import mix_seed
from sparsight.activations.store import ActivationStore
from sparsight.errors import DataError
from sparsight.models import Site
from sparsight.models.site_choice import names_one_site

_TENSOR = "tensor"  # the name of the only site of a plain tensor
_SERIAL = (1 << 15) - 1  # numbers: what torch copies in one thread; from one more on it shares the work out


class ActivationStream:
    """Batches of float32 rows without end: every row once in each epoch, in an order that the seed decides.

    A batch that reaches the end of an epoch is filled up from the next, so that all batches have the same size.

    Attributes:
        batch_size: Rows in a batch.
        seed: Decides the order.
        n_rows: Rows in an epoch; None when a model reads them as they are needed.
        mixing: How well rows are mixed, in words.
    """

    def __init__(
        self,
        source: ActivationStore | Tensor | tuple[Reads, Iterable[str | HasText]],
        sites: str | Site | Sequence[str | Site] | None = None,
        batch_size: int = 2048,
        seed: int = 0,
        *,
        memory: int = 2 << 30,
        buffer_rows: int = 1 << 17,
        block_rows: int = 256,
        context: int = 128,
        model_batch_size: int = 32,
    ) -> None:
        """Begin a stream.

        Args:
            source: A store or a view of one; a tensor `[n, d]`; or a model and documents that can be iterated again.
            sites: One site: batches are tensors. A sequence, or a text that may mean several (see `choose_sites`):
                batches are `{site: tensor}` with the same rows at each.
                May be left out for a tensor and for a store with one site.
            memory: Bytes. A store whose rows at these sites take less is loaded and permuted as a whole.
            buffer_rows: Rows mixed at a time when they are not all in memory.
            block_rows: Neighbouring rows of a store that are read together then.
            context: Most tokens the model sees at once; for a model and documents.
            model_batch_size: Contexts in a forward pass; for a model and documents.
        Raises:
            ValueError: an argument is out of range, or the sites are not said.
            DataError: there is no row, or a tensor is not finite.
            StoreError: the store has no such site.
        """
        for name, value in (("batch_size", batch_size), ("buffer_rows", buffer_rows), ("block_rows", block_rows)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.batch_size = batch_size
        self.seed = seed
        self.sites, self._single = _sites(source, sites)
        self._chunks: AbstractChunks
        if isinstance(source, Tensor):
            self._chunks = InMemory({_TENSOR: _finite(source)})
        elif isinstance(source, ActivationStore):
            self._chunks = _from_store(source, self.sites, seed, memory, block_rows, buffer_rows)
        else:
            lm, documents = source
            self._chunks = Live(Cutter(lm, context), documents, self.sites, model_batch_size, buffer_rows)
        self.n_rows = self._chunks.n_rows
        self.mixing = _mixing(self._chunks, self.n_rows)
        self._widths = _widths(source, self.sites)
        self._epoch, self._index, self._row = 0, -1, 0
        self._chunk: Chunk | None = None
        self._order = torch.empty(0, dtype=torch.int64)

    def width(self, site: str | Site | None = None) -> int:
        """Length of the rows at a site; the site may be left out when there is one."""
        if site is None and len(self._widths) != 1:
            raise ValueError(f"say which site: {', '.join(self._widths)}")
        name = next(iter(self._widths)) if site is None else str(Site.parse(site))
        if name not in self._widths:
            raise ValueError(f"the stream has no site {name}; it has {', '.join(self._widths)}")
        return self._widths[name]

    def __iter__(self) -> "ActivationStream":
        return self

    def __next__(self) -> Float[Tensor, "batch d"] | dict[Site, Float[Tensor, "batch d"]]:
        batch = {name: large(self.batch_size, d, torch.float32) for name, d in self._widths.items()}
        at = 0
        while at < self.batch_size:
            if self._row == len(self._order):
                self._next_chunk()
            assert self._chunk is not None
            order = self._order[self._row : self._row + self.batch_size - at]
            for name, out in batch.items():
                _pick(self._chunk[name], order, out[at : at + len(order)])
            at += len(order)
            self._row += len(order)
        if self._single:
            return next(iter(batch.values()))
        return {site: batch[str(site)] for site in self.sites}

    def row_numbers(self, n_batches: int) -> Iterator[Int64[Tensor, " batch"]]:
        """Which rows of the source the first batches of this stream hold, in order; nothing is read, the place is kept.

        Raises:
            ValueError: a model makes the rows, so they have no numbers.
        """
        return numbers_of_rows(self._chunks, self.batch_size, self.seed, n_batches)

    def _next_chunk(self) -> None:
        self._index += 1
        chunk = self._chunks.load(self._epoch, self._index)
        if chunk is None:
            self._epoch, self._index = self._epoch + 1, 0
            chunk = self._chunks.load(self._epoch, 0)
            assert chunk is not None
        self._show(chunk)

    def _show(self, chunk: Chunk) -> None:
        n = len(next(iter(chunk.values())))
        self._chunk, self._order, self._row = chunk, _permutation(self.seed, self._epoch, self._index, n), 0

    def state(self) -> dict[str, Any]:
        """The place in the stream, as JSON: after `restore` the same batches follow, bit for bit."""
        return {
            "seed": self.seed,
            "mixing": self.mixing,
            "epoch": self._epoch,
            "chunk": self._index,
            "row": self._row,
            "place": self._chunks.place(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was called, on a stream over the same source with the same seed.

        Raises:
            ValueError: the state is of a stream with another seed, source or way of reading.
        """
        mine = self.state()
        for name in ("seed", "mixing"):
            if state.get(name) != mine[name]:
                raise ValueError(f"the state is of a stream with {name} {state.get(name)}; this one has {mine[name]}")
        self._epoch, self._index, row = state["epoch"], state["chunk"], state["row"]
        self._chunk, self._order, self._row = None, torch.empty(0, dtype=torch.int64), 0
        if self._index >= 0:
            self._chunks.seek(state["place"])
            chunk = self._chunks.load(self._epoch, self._index)
            if chunk is None:
                raise ValueError(f"the state is at chunk {self._index}, which this source does not have")
            self._show(chunk)
            self._row = row


def numbers_of_rows(
    chunks: AbstractChunks, batch_size: int, seed: int, n_batches: int
) -> Iterator[Int64[Tensor, " batch"]]:
    """Numbers of the rows in the first batches that a stream over these chunks gives."""
    epoch, index = 0, 0
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(n_batches):
        while len(waiting) < batch_size:
            rows = chunks.rows(epoch, index)
            if rows is None:
                epoch, index = epoch + 1, 0
                continue
            waiting = torch.cat([waiting, rows[_permutation(seed, epoch, index, len(rows))]])
            index += 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _pick(rows: Float[Tensor, "n d"], order: Int64[Tensor, " m"], out: Float[Tensor, "m d"]) -> None:
    """Rows in an order, converted to the type of `out`.

    In pieces that stay in the cache and in this thread: a batch is copied in milliseconds, and where other programs
    keep the processors busy, waiting for a second thread to get its turn takes ten times as long.
    """
    step = max(1, _SERIAL // rows.shape[1])
    held = None if rows.dtype == out.dtype else rows.new_empty(min(step, len(order)), rows.shape[1])
    for begin in range(0, len(order), step):
        part, target = order[begin : begin + step], out[begin : begin + step]
        if held is None:
            torch.index_select(rows, 0, part, out=target)
        else:
            target.copy_(torch.index_select(rows, 0, part, out=held[: len(part)]))


def _permutation(seed: int, epoch: int, index: int, n: int) -> Tensor:
    """The order of the rows of a chunk."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix_seed(seed, epoch, index + 1)))


def _sites(
    source: ActivationStore | Tensor | tuple[Reads, Any], sites: str | Site | Sequence[str | Site] | None
) -> tuple[list[Site], bool]:
    """The sites, and whether batches are bare tensors."""
    if isinstance(source, Tensor):
        if sites is not None:
            raise ValueError(f"a tensor has no sites, got sites={sites!r}; leave them out")
        return [], True
    if sites is None:
        known = source.sites if isinstance(source, ActivationStore) else []
        if len(known) != 1:
            raise ValueError(
                f"say which site(s) to stream{': ' if known else ''}{', '.join(str(site) for site in known)}"
            )
        return known, True
    known = source.sites if isinstance(source, ActivationStore) else source[0].sites()
    return distinct_sites(sites, known), names_one_site(sites)


def _finite(tensor: Tensor) -> Tensor:
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise ValueError(f"a tensor of activations must be floating [n, d], got {tensor.dtype} {list(tensor.shape)}")
    if len(tensor) == 0:
        raise DataError("the tensor of activations has no rows")
    if not bool(torch.isfinite(tensor).all()):
        raise DataError("the tensor of activations has entries that are NaN or infinite; remove those rows")
    return tensor.detach().cpu()


def _from_store(
    store: ActivationStore, sites: list[Site], seed: int, memory: int, block_rows: int, buffer_rows: int
) -> AbstractChunks:
    widths = [store.width(site) for site in sites]
    if len(store) * sum(widths) * store.dtype.itemsize > memory:
        return OnDisk(store, sites, seed, block_rows, buffer_rows)
    tensors = {}
    for site, d in zip(sites, widths, strict=True):
        tensors[str(site)] = store.rows(site, slice(None), out=torch.empty(len(store), d, dtype=store.dtype))
    return InMemory(tensors)


def _widths(source: ActivationStore | Tensor | tuple[Reads, Any], sites: list[Site]) -> dict[str, int]:
    if isinstance(source, Tensor):
        return {_TENSOR: source.shape[1]}
    giver = source if isinstance(source, ActivationStore) else source[0]
    return {str(site): giver.width(site) for site in sites}


def _mixing(chunks: AbstractChunks, n_rows: int | None) -> str:
    if isinstance(chunks, OnDisk):
        return (
            f"blocks of {chunks.block_rows} neighbouring rows in random order, {chunks.blocks_per_chunk} blocks "
            f"({chunks.blocks_per_chunk * chunks.block_rows:,} rows) permuted together, of {n_rows:,} rows"
        )
    if isinstance(chunks, Live):
        return f"rows of neighbouring documents, {chunks.buffer_rows:,} or more permuted together"
    return f"all {n_rows:,} rows in memory, permuted as a whole"
