"""`StoreWriter`: windows in, whole shards and a journal out, and at the end the record that makes them a store."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from sparsight.activations.pieces import Context
from sparsight.activations.reading import Window, pad
from sparsight.activations.record import (
    JOURNAL,
    RECORD,
    Cursor,
    RowSums,
    Settings,
    ShardRecord,
    StoreRecord,
    append_journal,
    read_journal,
    read_record,
    start_journal,
    write_record,
)
from sparsight.activations.shards import disk_errors, write_shard
from sparsight.activations.split import RULE
from sparsight.errors import StoreError


class StoreWriter:
    """Collects windows until they fill a shard, and writes shards behind the back of the caller, one at a time.

    A shard ends with the window that brings it to `settings.shard_rows`, so shards and windows are the same however
    often the harvest was interrupted. The folder is made with the first shard. Use as a context manager: on leaving,
    whatever the reason, the shard being written is finished; rows that did not fill a shard are dropped unless `finish`
    was called.

    Attributes:
        label_names: Names of the labels that the shards hold; None until the first window.
        shards: Whole shards, in the journal.
        n_rows: Rows so far, those not yet on the disk included.
    """

    def __init__(self, folder: Path, settings: Settings, *, resume: bool, pad_id: int) -> None:
        """Begin a store, or go on with an unfinished one.

        Raises:
            StoreError: the folder holds something already, or was begun under other settings.
        """
        self.folder = folder
        self.settings = settings
        self.pad_id = pad_id
        self.label_names: list[str] | None = None
        self.shards: list[ShardRecord] = []
        self.finished = False
        self.n_rows = 0
        self._windows: list[Window] = []
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._written: Future[ShardRecord] | None = None
        if (folder / RECORD).exists():
            self._find_finished(resume)
        elif (folder / JOURNAL).exists():
            self._find_unfinished(resume)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} exists and is not an activation store; choose another folder for the store")

    def _find_finished(self, resume: bool) -> None:
        if not resume:
            raise StoreError(f"{self.folder} is a finished store and is never overwritten; choose another folder")
        record = read_record(self.folder)
        self._refuse_other(Settings.model_validate({name: getattr(record, name) for name in Settings.model_fields}))
        self.finished = True

    def _find_unfinished(self, resume: bool) -> None:
        if not resume:
            raise StoreError(
                f"{self.folder} is an unfinished store; go on with resume=True (--resume) or choose another folder"
            )
        journal = read_journal(self.folder)
        if journal is not None:
            there, self.label_names, self.shards = journal
            self._refuse_other(there)
            self.n_rows = sum(shard.rows for shard in self.shards)
        else:
            (self.folder / JOURNAL).unlink()
        # A file that was written but not journaled is written again under the same name, with the same bytes.

    def _refuse_other(self, there: Settings) -> None:
        if differences := there.differences(self.settings):
            raise StoreError(
                f"{self.folder} was begun with other settings ({differences}); use the same, or another folder"
            )

    @property
    def end(self) -> Cursor:
        """The place in the documents from which to go on."""
        return self.shards[-1].end if self.shards else Cursor()

    def add(self, window: Window, label_names: list[str]) -> None:
        """Take the next window; returns at once unless two shards are ready before one is written.

        Raises:
            StoreError: the disk is full or refuses; whole shards are kept.
        """
        self.label_names = label_names
        self._windows.append(window)
        self.n_rows += window.n_rows
        if sum(each.n_rows for each in self._windows) >= self.settings.shard_rows:
            self._flush()

    def _flush(self) -> None:
        self._wait()
        if not self.shards:
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / JOURNAL).exists():
                start_journal(self.folder, self.settings, self.label_names or [])
        windows, self._windows = self._windows, []
        self._written = self._worker.submit(self._write, len(self.shards), windows)

    def _wait(self) -> None:
        if self._written is not None:
            written, self._written = self._written, None
            self.shards.append(written.result())

    def _write(self, index: int, windows: list[Window]) -> ShardRecord:
        tensors = shard_tensors(windows, bool(self.label_names), self.pad_id)
        file = f"shard-{index:05d}.safetensors"
        n_bytes, crc = write_shard(self.folder / file, tensors)
        record = ShardRecord(
            file=file,
            rows=sum(window.n_rows for window in windows),
            contexts=sum(len(window.contexts) for window in windows),
            bytes=n_bytes,
            crc32=crc,
            end=windows[-1].end,
            excluded=sum(sum(window.excluded) for window in windows),
            sums={str(site): _sums([window.sums[site] for window in windows]) for site in windows[0].activations},
        )
        append_journal(self.folder, record)
        return record

    def finish(self, *, short_of: int | None, version: str, command: str) -> None:
        """Write what is left as the last shard, then the record.

        Args:
            short_of: Rows that were asked for, when the documents had fewer.
        Raises:
            StoreError: the disk is full or refuses; whole shards are kept.
        """
        if any(window.n_rows for window in self._windows):
            self._flush()
        self._wait()
        record = StoreRecord(
            **self.settings.model_dump(),
            format="sparsight activations",
            format_version=1,
            version=version,
            command=command,
            pad_id=self.pad_id,
            label_names=self.label_names or [],
            split_rule=RULE,
            n_rows=self.n_rows,
            n_contexts=sum(shard.contexts for shard in self.shards),
            short_of=short_of,
            excluded=sum(shard.excluded for shard in self.shards),
            shards=self.shards,
        )
        write_record(self.folder, record)
        self.finished = True

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=True)


def _sums(rows: list[Tensor]) -> RowSums:
    error, norm, deviation = torch.stack([part.sum(dim=0) for part in rows]).sum(dim=0).tolist()
    return RowSums(error=error, norm=norm, deviation=deviation)


def shard_tensors(windows: list[Window], labelled: bool, pad_id: int) -> dict[str, list[Tensor]]:
    """Everything a shard holds, each tensor as the pieces it is written from (docs/activations.md lists them)."""
    contexts = [context for window in windows for context in window.contexts]
    tokens = pad([context.ids for context in contexts], [context.special for context in contexts], pad_id)
    marks = [mark for window in windows for mark in window.stored]
    stored = torch.nn.utils.rnn.pad_sequence(marks, batch_first=True)
    counts = stored.sum(dim=1)
    documents = torch.tensor([context.document_id for context in contexts])
    if any(context.owners is not None for context in contexts):
        owners = torch.cat([c.owners[mark] for c, mark in zip(contexts, marks, strict=True) if c.owners is not None])
    else:
        owners = documents.repeat_interleave(counts)
    tensors = {
        "token_ids": [tokens.ids[stored].to(torch.int32)],
        "document_ids": [owners],
        "positions": [stored.nonzero()[:, 1].to(torch.int32)],
        "contexts/ids": [tokens.ids.to(torch.int32)],
        "contexts/mask": [tokens.mask],
        "contexts/special": [tokens.special],
        "contexts/first_row": [torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])],
        "contexts/document_ids": [documents],
    }
    for site in windows[0].activations:
        tensors[f"activations/{site}"] = [window.activations[site] for window in windows]
        if windows[0].scales:
            tensors[f"scales/{site}"] = [window.scales[site] for window in windows]
    if labelled:
        tensors["labels"] = [torch.cat([_labels(c, mark) for c, mark in zip(contexts, marks, strict=True)])]
    return tensors


def _labels(context: Context, stored: Tensor) -> Tensor:
    """Labels of the stored tokens of a context; -1 at special ones."""
    assert context.labels is not None
    whole = torch.full((len(context.ids), context.labels.shape[1]), -1, dtype=torch.int16)
    whole[~context.special] = context.labels
    return whole[stored]
