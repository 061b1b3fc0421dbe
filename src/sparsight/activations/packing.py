"""Packing: contexts filled with one document after the other, so that no place is padding."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from sparsight.activations.pieces import Context, Unit
from sparsight.activations.record import Cursor


@dataclass(frozen=True)
class _Run:
    """Tokens of several documents one after the other; labels have a row for every token, -1 at special ones."""

    ids: NDArray[np.int64]
    special: NDArray[np.bool_]
    owners: NDArray[np.int64]
    labels: NDArray[np.int16] | None

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, begin: int, end: int) -> "_Run":
        piece = slice(begin, end)
        labels = self.labels[piece] if self.labels is not None else None
        return _Run(self.ids[piece], self.special[piece], self.owners[piece], labels)

    def between(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> "_Run":
        """With special tokens around; they belong to the document that they stand beside."""
        ids = np.concatenate([before, self.ids, after])
        special = np.concatenate([np.ones(len(before), bool), self.special, np.ones(len(after), bool)])
        owners = np.concatenate(
            [np.full(len(before), self.owners[0]), self.owners, np.full(len(after), self.owners[-1])]
        )
        labels = None
        if self.labels is not None:
            labels = np.full((len(ids), self.labels.shape[1]), -1, np.int16)
            labels[len(before) : len(ids) - len(after)] = self.labels
        return _Run(ids, special, owners, labels)


def _run(unit: Unit, bos: str) -> _Run:
    ids, special = unit.spread(bos)
    labels = None
    if unit.labels is not None:
        labels = np.full((len(ids), unit.labels.shape[1]), -1, np.int16)
        labels[~special] = unit.labels
    return _Run(ids, special, np.full(len(ids), unit.document_id), labels)


@dataclass
class _Waiting:
    """What one side has that does not fill a context yet."""

    runs: list[_Run] = field(default_factory=list)
    n: int = 0

    def add(self, run: _Run) -> None:
        self.runs.append(run)
        self.n += len(run)

    def take(self, size: int) -> _Run:
        """The longest beginning whose length is a multiple of `size`; the rest stays."""
        runs = self.runs
        labels = [run.labels for run in runs if run.labels is not None]
        whole = _Run(
            np.concatenate([run.ids for run in runs]),
            np.concatenate([run.special for run in runs]),
            np.concatenate([run.owners for run in runs]),
            np.concatenate(labels) if labels else None,
        )
        end = len(whole) // size * size
        self.runs, self.n = [whole.part(end, len(whole))], len(whole) - end
        return whole.part(0, end)


def pack(units: Iterable[Unit], bos: str, side: Callable[[int], bool], room: Callable[[int], int]) -> Iterator[Context]:
    """Full contexts as they fill up, those of the two sides apart; at the end the two that are not full.

    The model reads across the border between two documents in a context.

    Args:
        bos: As `Cutter` has it. Special tokens around every context are those of the first document.
        side: Of a document's number.
        room: Tokens of a context beside so many special ones around it.
    """
    waiting = {False: _Waiting(), True: _Waiting()}
    first: Unit | None = None
    last: Unit | None = None
    n = 0

    def contexts(run: _Run, size: int) -> Iterator[Context]:
        nonlocal n
        assert first is not None
        assert last is not None
        for begin in range(0, len(run), size):
            piece = run.part(begin, begin + size)
            if piece.special.all():
                continue
            if bos == "context":
                piece = piece.between(first.before, first.after)
            n += 1
            end = Cursor(documents=last.number + 1, contexts=n, crc32=last.crc32)
            labels = torch.from_numpy(piece.labels[~piece.special]) if piece.labels is not None else None
            ids, special, owners = (torch.from_numpy(part.copy()) for part in (piece.ids, piece.special, piece.owners))
            yield Context(ids, special, int(piece.owners[0]), labels, end, owners)

    for last in units:
        first = first or last
        size = room(len(first.before) + len(first.after))
        mine = waiting[side(last.document_id)]
        mine.add(_run(last, bos))
        if mine.n >= size:
            yield from contexts(mine.take(size), size)
    for mine in waiting.values():
        if rest := mine.n:
            yield from contexts(mine.take(1), rest)
