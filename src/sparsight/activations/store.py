"""`ActivationStore`: stored activations, read from mapped files, row by row or context by context."""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsight.activations.fetching import Segment, fetch
from sparsight.activations.opening import open_shard, scale_name, tensor_name
from sparsight.activations.record import StoreRecord, read_record, rounding_errors
from sparsight.activations.rounding import DTYPES
from sparsight.activations.shards import damaged, file_crc32
from sparsight.activations.split import is_heldout
from sparsight.errors import DataError, StoreError
from sparsight.models import Site, Tokens

_OPENERS = 8  # shards opened at a time: a cold disk takes its time over each header
_LARGE = 1 << 16  # bytes: from here on files are read, not mapped


@dataclass(frozen=True)
class TokenRows:
    """Where rows come from.

    Attributes:
        token_ids: The token at which each row was read, in the vocabulary of the model.
        document_ids: The document it belongs to.
        positions: Its place in its context, special tokens counted: 0 is the first token the model saw.
    """

    token_ids: Int64[Tensor, " m"]
    document_ids: Int64[Tensor, " m"]
    positions: Int64[Tensor, " m"]


@dataclass(frozen=True)
class ContextBatch:
    """Contexts as the model saw them, and the row stored for each token.

    Attributes:
        tokens: Token ids with masks, padded on the right to the longest context of the batch.
        rows: Row of each token in the store (or the view) that gave the batch; -1 where none is stored: padding,
            special tokens, what was left out, and what follows the last row that was asked for.
        document_ids: The document of each context.
    """

    tokens: Tokens
    rows: Int64[Tensor, "b t"]
    document_ids: Int64[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.document_ids)


class ActivationStore:
    """A finished folder of activations; also a view of some of its documents, with rows numbered anew from 0.

    Rows stay on the disk: opening checks sizes and headers, `verify` checks every byte.

    Attributes:
        path: The folder.
        record: What `store.json` says.
        split_name: Which part this is: "all", "train" or "heldout".
    """

    def __init__(self, path: str | Path) -> None:
        """Open a store.

        Raises:
            StoreError: there is none, it is unfinished, or a shard is missing, cut short or not what the record says.
        """
        self.path = Path(path)
        self.record: StoreRecord = read_record(self.path)
        self.split_name = "all"
        with ThreadPoolExecutor(_OPENERS, thread_name_prefix="shard-opener") as workers:
            opened = list(workers.map(lambda shard: open_shard(self.path, self.record, shard), self.record.shards))
        self._shards = [shard.tensors for shard in opened]
        self._files = [self.path / shard.file for shard in self.record.shards]
        self._shard_start = _cumulative([shard.rows for shard in self.record.shards])
        self._shard_contexts = _cumulative([shard.contexts for shard in self.record.shards])
        firsts = [shard.first_row for shard in opened]
        # Row of the whole store at which each context starts, and how many rows it has.
        self._start = np.concatenate([first[:-1] + at for first, at in zip(firsts, self._shard_start, strict=False)])
        self._n_rows = np.concatenate([np.diff(first) for first in firsts])
        self._document = np.concatenate([shard.document_ids for shard in opened])
        self._show(np.arange(len(self._start)))

    def _show(self, contexts: NDArray[np.int64]) -> None:
        """Make this the view of some contexts, in the order of the store."""
        self._contexts = contexts
        self._view_start = _cumulative(self._n_rows[contexts])

    def __len__(self) -> int:
        return int(self._view_start[-1])

    def __repr__(self) -> str:
        return f"ActivationStore({str(self.path)!r}, {self.split_name}, {len(self):,} rows, sites {self.record.sites})"

    @property
    def sites(self) -> list[Site]:
        """Sites that were read, in the order in which they were asked for."""
        return [Site.parse(site) for site in self.record.sites]

    @property
    def model(self) -> str:
        """Name of the model, as it was loaded."""
        return self.record.model

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of `store.json`."""
        return self.record.model_dump()

    @property
    def label_names(self) -> list[str]:
        """Names of the features that tokens are labelled with; empty when the documents had no labels."""
        return list(self.record.label_names)

    @property
    def n_contexts(self) -> int:
        """Contexts in this view."""
        return len(self._contexts)

    @property
    def dtype(self) -> torch.dtype:
        """Type that holds stored rows without loss: the stored one; float32 for int8, whose rows have scales."""
        stored = DTYPES[self.record.dtype]
        return stored if stored.is_floating_point else torch.float32

    @property
    def rounding(self) -> dict[str, dict[str, float]]:
        """What storing lost at each site, over all rows: {"relative": ..., "fvu": ...}.

        "relative" is the squared error over the squared norm, "fvu" over the squared distance from the mean row. Empty
        for a store that was written before this was measured.
        """
        return rounding_errors(self.record.shards)

    def width(self, site: Site | str) -> int:
        """Length of the activations at a site."""
        return self.record.widths[self._index(site)]

    def _index(self, site: Site | str) -> int:
        name = str(Site.parse(site))
        if name not in self.record.sites:
            raise StoreError(f"the store {self.path} has no site {name}; it has {', '.join(self.record.sites)}")
        return self.record.sites.index(name)

    def rows(self, site: Site | str, rows: slice | Tensor, *, out: Tensor | None = None) -> Float[Tensor, "m d"]:
        """Activations at a site.

        Args:
            rows: A slice, or row numbers `[m]` int64 in any order, repeats allowed; all within `[0, len(self))`.
            out: Filled and returned when given: `[m, d]` of any floating type. Saves the cost of fresh memory.
        Returns:
            float32, or `out`.
        Raises:
            StoreError: the store has no such site.
            IndexError: a row is outside the store.
            ValueError: `rows` or `out` is of the wrong form.
        """
        site = self.record.sites[self._index(site)]
        x = self._take(tensor_name(site), rows, torch.float32, out)
        if self.record.dtype == "int8":
            x.mul_(self._take(scale_name(site), rows, torch.float32)[:, None])
        return x

    def read_blocks(self, site: Site | str, blocks: Sequence[slice], out: Float[Tensor, "m d"]) -> None:
        """What `rows` gives for each of several slices, one after the other, in one go and several reads at a time.

        Args:
            blocks: Slices of step 1 that have a start and a stop within the store.
            out: Filled: `[m, d]` of any floating type, with as many rows as the slices together.
        Raises:
            StoreError: the store has no such site.
            IndexError: a row is outside the store.
            ValueError: `out` is not as long as the slices.
        """
        name = self.record.sites[self._index(site)]
        slices = [_within(block.start, block.stop, len(self)) for block in blocks]
        if len(out) != (n := sum(block.stop - block.start for block in slices)):
            raise ValueError(f"out must have the {n} rows of the slices, got {len(out)}")
        self._copy(tensor_name(name), slices, out)
        if self.record.dtype == "int8":
            scales = torch.empty(len(out))
            self._copy(scale_name(name), slices, scales)
            out.mul_(scales[:, None])

    def tokens(self, rows: slice | Tensor) -> TokenRows:
        """Token, document and position of rows; `rows` as in `rows()`."""
        return TokenRows(
            self._take("token_ids", rows, torch.int64),
            self._take("document_ids", rows, torch.int64),
            self._take("positions", rows, torch.int64),
        )

    def labels(self, rows: slice | Tensor) -> dict[str, Int64[Tensor, " m"]]:
        """True value of every labelled feature at rows, -1 where a feature is not defined; empty without labels."""
        if not self.record.label_names:
            return {}
        columns = self._take("labels", rows, torch.int64)
        return {name: columns[:, i].contiguous() for i, name in enumerate(self.record.label_names)}

    def _take(self, name: str, rows: slice | Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Rows of one stored tensor, converted while they are copied."""
        rows = _checked(rows, len(self))
        n = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        shape = (n, *self._shards[0][name].shape[1:])
        if out is None:
            out = torch.empty(shape, dtype=dtype)
        elif out.shape != shape or not out.is_floating_point():
            raise ValueError(f"out must be a floating tensor {list(shape)}, got {out.dtype} {list(out.shape)}")
        if isinstance(rows, slice):
            self._copy(name, [rows], out)
            return out
        stored = self._stored_rows(rows.numpy())
        shard_of = np.searchsorted(self._shard_start, stored, side="right") - 1
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            local = torch.from_numpy(stored[here] - self._shard_start[shard])
            out[torch.from_numpy(here)] = self._shards[shard][name].index_select(0, local).to(out.dtype)
        return out

    def _copy(self, name: str, slices: Sequence[slice], out: Tensor) -> None:
        """Rows of slices, one slice after the other, into `out`."""
        tensors = [shard[name] for shard in self._shards]
        segments: list[Segment] = []
        for rows in slices:
            at = segments[-1].at + segments[-1].end - segments[-1].begin if segments else 0
            segments += self._segments(rows.start, rows.stop, at)
        if len(out) * tensors[0][0].numel() * tensors[0].element_size() < _LARGE:
            for part in segments:
                out[part.at : part.at + part.end - part.begin].copy_(tensors[part.shard][part.begin : part.end])
        else:
            fetch(self._files, tensors, segments, out)

    def _stored_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of this view as rows of the whole store."""
        if self.n_contexts == len(self._start):
            return rows
        context = np.searchsorted(self._view_start, rows, side="right") - 1
        return self._start[self._contexts[context]] + rows - self._view_start[context]

    def locate(self, row: int) -> tuple[str, int]:
        """File of the shard that holds a row of this view, and the row's number within the shard.

        Raises:
            IndexError: the row is outside the store.
        """
        _checked(torch.tensor([row]), len(self))
        stored = int(self._stored_rows(np.array([row], np.int64))[0])
        shard = int(np.searchsorted(self._shard_start, stored, side="right")) - 1
        return self.record.shards[shard].file, stored - int(self._shard_start[shard])

    def _segments(self, begin: int, end: int, at: int) -> Iterator[Segment]:
        """Neighbouring stored rows that make up rows [begin, end), which go to row `at` of a result and those after."""
        if begin == end:
            return
        first, last = np.searchsorted(self._view_start, [begin, end - 1], side="right") - 1
        if self.n_contexts == len(self._start):
            starts, ends = np.array([begin]), np.array([end])
        else:
            chosen = self._contexts[first : last + 1]
            starts, ends = self._start[chosen], self._start[chosen] + self._n_rows[chosen]
            ends[-1] = starts[-1] + end - self._view_start[last]
            starts[0] += begin - self._view_start[first]
            joined = np.flatnonzero(starts[1:] != ends[:-1])
            starts, ends = starts[np.r_[0, joined + 1]], ends[np.r_[joined, len(ends) - 1]]
        for start, stop in zip(starts.tolist(), ends.tolist(), strict=True):
            while start < stop:
                shard = int(np.searchsorted(self._shard_start, start, side="right")) - 1
                offset = int(self._shard_start[shard])
                until = min(stop, int(self._shard_start[shard + 1]))
                yield Segment(at, shard, start - offset, until - offset)
                at, start = at + until - start, until

    def split(self, name: str) -> "ActivationStore":
        """The documents used for training ("train") or those held out ("heldout"); every document is wholly in one.

        Raises:
            ValueError: another name.
            DataError: no document falls on that side.
        """
        if name not in ("train", "heldout"):
            raise ValueError(f"split must be 'train' or 'heldout', got {name!r}")
        heldout = is_heldout(self._document[self._contexts], self.record.heldout, self.record.split_seed)
        chosen = self._contexts[heldout == (name == "heldout")]
        if len(chosen) == 0:
            n_documents = len(np.unique(self._document[self._contexts]))
            raise DataError(
                f"no document is on the {name} side of {self.path}: {n_documents} documents, "
                f"{self.record.heldout:g} of them held out; harvest more documents or another share"
            )
        view = copy.copy(self)
        view.split_name = name
        view._show(chosen)
        return view

    def context_batches(self, batch_size: int) -> Iterator[ContextBatch]:
        """All contexts in order, so that losses and reports need this store and the model only.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        for begin in range(0, self.n_contexts, batch_size):
            yield self._context_batch(begin, min(begin + batch_size, self.n_contexts))

    def _context_batch(self, begin: int, end: int) -> ContextBatch:
        chosen = self._contexts[begin:end]
        shard_of = np.searchsorted(self._shard_contexts, chosen, side="right") - 1
        t = max(self._shards[shard]["contexts/ids"].shape[1] for shard in np.unique(shard_of))
        ids = torch.full((len(chosen), t), self.record.pad_id, dtype=torch.int64)
        mask, special = torch.zeros(len(chosen), t, dtype=torch.bool), torch.zeros(len(chosen), t, dtype=torch.bool)
        for shard in np.unique(shard_of):
            here = torch.from_numpy(np.flatnonzero(shard_of == shard))
            local = torch.from_numpy(chosen[shard_of == shard] - self._shard_contexts[shard])
            for whole, name in ((ids, "contexts/ids"), (mask, "contexts/mask"), (special, "contexts/special")):
                part = self._shards[shard][name].index_select(0, local)
                whole[here, : part.shape[1]] = part.to(whole.dtype)
        t = int(mask.sum(dim=1).max())
        ids, mask, special = ids[:, :t], mask[:, :t], special[:, :t]
        rows = torch.full(ids.shape, -1, dtype=torch.int64)
        # Rows of neighbouring contexts of a view are neighbours in it, and each knows its place in its context.
        first, last = int(self._view_start[begin]), int(self._view_start[end])
        positions = self._take("positions", slice(first, last), torch.int64)
        of = torch.arange(end - begin).repeat_interleave(torch.from_numpy(self._n_rows[chosen]))
        rows[of, positions] = torch.arange(first, last)
        return ContextBatch(Tokens(ids, mask, special), rows, torch.from_numpy(self._document[chosen]))

    def verify(self) -> None:
        """Compare the checksum of every shard with the record; one pass over all bytes, two shards at a time.

        CRC-32 finds every error of up to 32 neighbouring bits, and any other with probability 1 - 2**-32. It guards
        against accidents, not against someone who means to deceive.

        Raises:
            StoreError: a shard is not what was written; the first is named.
        """
        with ThreadPoolExecutor(max_workers=2) as workers:
            sums = workers.map(lambda shard: file_crc32(self.path / shard.file), self.record.shards)
            for shard, crc in zip(self.record.shards, sums, strict=True):
                if crc != shard.crc32:
                    raise damaged(self.path / shard.file, f"has checksum {crc:08x}, expected {shard.crc32:08x}")

    def _n_documents(self) -> int:
        if not self.record.packed:
            return len(np.unique(self._document[self._contexts]))
        owners = [torch.unique(self._take("document_ids", part, torch.int64)) for part in self._parts(1 << 20)]
        return len(torch.unique(torch.cat(owners)))

    def _parts(self, n: int) -> list[slice]:
        return [slice(begin, min(begin + n, len(self))) for begin in range(0, len(self), n)]

    def info(self) -> dict[str, Any]:
        """A summary of this view: what it holds, where from, how large."""
        return {
            "path": str(self.path),
            "model": self.model,
            "sites": {str(site): self.width(site) for site in self.sites},
            "dtype": self.record.dtype,
            "split": self.split_name,
            "rows": len(self),
            "contexts": self.n_contexts,
            "context": self.record.context,
            "documents": self._n_documents(),
            "heldout": self.record.heldout,
            "packed": self.record.packed,
            "bos": self.record.bos,
            "special_rows": self.record.special_rows,
            "max_norm": self.record.max_norm,
            "excluded": self.record.excluded,
            "rounding": self.rounding,
            "labels": self.label_names,
            "shards": len(self._shards),
            "bytes": sum(shard.bytes for shard in self.record.shards),
            "short_of": self.record.short_of,
        }


def _cumulative(counts: list[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _checked(rows: slice | Tensor, n: int) -> slice | Tensor:
    if isinstance(rows, slice):
        whole = _within(rows.start or 0, n if rows.stop is None else rows.stop, n)
        return whole if rows.step in (None, 1) else torch.arange(whole.start, whole.stop, rows.step)
    if rows.dim() != 1 or rows.dtype != torch.int64:
        raise ValueError(f"rows must be a slice or a 1-D int64 tensor, got {rows.dtype} of shape {list(rows.shape)}")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < n:
        raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} are not within the {n} rows of the store")
    return rows.cpu()


def _within(start: int, stop: int, n: int) -> slice:
    if not 0 <= start <= stop <= n:
        raise IndexError(f"rows {start}:{stop} are not within the {n} rows of the store")
    return slice(start, stop)
