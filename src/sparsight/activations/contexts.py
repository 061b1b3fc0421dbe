"""Documents to contexts: what the model reads at once, a piece of a document or, packed, pieces of several."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sparsight.activations.documents import HasText
from sparsight.activations.packing import pack
from sparsight.activations.pieces import Context, Unit
from sparsight.activations.record import Cursor
from sparsight.errors import DataError
from sparsight.models import Site, Tokens

_GROUP = 64  # documents tokenized together, fewer when they are long
_GROUP_CHARACTERS = 1 << 20  # bounds the padded table of their tokens
_WHOLE = 1 << 30  # tokens: no document is cut by the tokenizer
_OTHER_TEXT = "the documents differ from those read before the interruption; resume with the same text"
BOS = ("context", "document", "none")


@runtime_checkable
class Reads(Protocol):
    """What reading activations needs of a model: `LanguageModel`, or anything that does the same."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def max_context(self) -> int: ...
    def sites(self) -> list[Site]: ...
    def width(self, site: Site) -> int: ...
    def tokenize(self, texts: Sequence[str], *, context: int | None = None) -> Tokens: ...
    def activations(self, tokens: Tokens, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "b t d"]]: ...


class Cutter:
    """Cuts documents into contexts of at most `context` tokens, special ones included.

    A document is tokenized whole and then cut, so that no word is torn. The names of the labels are those of the first
    document: all others must have the same.
    """

    def __init__(
        self,
        lm: Reads,
        context: int,
        label_names: list[str] | None = None,
        *,
        bos: str = "context",
        side: Callable[[int], bool] | None = None,
    ) -> None:
        """Say how to cut.

        Args:
            bos: Where the tokenizer's special tokens go: around every "context", around every "document", or "none".
            side: Pack: contexts are filled with one document after the other. Only documents whose numbers have the
                same `side` meet in a context.
        """
        if not 2 <= context <= lm.max_context:
            raise ValueError(f"context must be between 2 and the model's {lm.max_context} tokens, got {context}")
        if bos not in BOS:
            raise ValueError(f"bos must be one of {', '.join(BOS)}, got {bos!r}")
        self.lm = lm
        self.context = context
        self.label_names = label_names
        self.bos = bos
        self.side = side

    def cut(self, documents: Iterable[str | HasText], start: Cursor | None = None) -> Iterator[Context]:
        """Contexts in the order of the documents, from a place in them on.

        Raises:
            DataError: `start` lies behind the end, or the texts before it are not those it was made with; labels do
                not fit the tokens.
        """
        start = start or Cursor()
        if self.side is None:
            yield from self._cut(documents, start)
            return
        # What waits to be packed depends on every document before, so they are all tokenized again; no model runs.
        skipped = Cursor()
        n = 0
        for context in pack(self.units(enumerate(documents)), self.bos, self.side, self.room):
            n += 1
            if n > start.contexts:
                if n == start.contexts + 1 and skipped != start:
                    raise DataError(_OTHER_TEXT)
                yield context
            skipped = context.end
        if n < start.contexts or (n == start.contexts and skipped != start):
            raise DataError(_OTHER_TEXT)

    def _cut(self, documents: Iterable[str | HasText], start: Cursor) -> Iterator[Context]:
        numbered = enumerate(documents)
        crc = 0
        for _ in range(start.documents):
            item = next(numbered, None)
            if item is None:
                raise DataError(f"only {_} documents came, but {start.documents} were read before; give the same text")
            crc = _crc32(_text(item[1]), crc)
        if crc != start.crc32:
            raise DataError(_OTHER_TEXT)
        skip = start.contexts
        for unit in self.units(numbered, crc):
            pieces = list(self._pieces(unit))
            for taken, (ids, special, labels) in enumerate(pieces[skip:], start=skip + 1):
                last = taken == len(pieces)
                end = (unit.number + 1, 0, unit.crc32) if last else (unit.number, taken, crc)
                cursor = Cursor(documents=end[0], contexts=end[1], crc32=end[2])
                yield Context(ids, special, unit.document_id, labels, cursor)
            skip, crc = 0, unit.crc32

    def units(self, numbered: Iterator[tuple[int, str | HasText]], crc: int = 0) -> Iterator[Unit]:
        """Documents as tokens; those without a token of their own count towards the checksum only."""
        for group in _groups(numbered):
            tokenized = self._tokenize([_text(document) for _, document in group])
            for (number, document), tokens in zip(group, tokenized, strict=True):
                crc = _crc32(_text(document), crc)
                if tokens is not None:
                    yield self._unit(number, document, tokens, crc)

    def room(self, n_special: int) -> int:
        """Tokens of the text that fit into a context beside the special ones that go with each."""
        if self.bos != "context":
            return self.context
        if n_special >= self.context:
            raise ValueError(f"context must leave room beside the {n_special} special tokens, got {self.context}")
        return self.context - n_special

    def _tokenize(self, texts: list[str]) -> list[Tokens | None]:
        """Each text whole, as one row; None where a text has no token of its own."""
        full = [text for text in texts if text.strip()]
        if not full:
            return [None] * len(texts)
        try:
            rows = self.lm.tokenize(full, context=_WHOLE).to("cpu")
        except DataError:  # some text is made of what the tokenizer drops, such as control characters
            return [self._tokenize([text])[0] for text in texts] if len(texts) > 1 else [None]
        tokens = (rows[i : i + 1] for i in range(len(full)))
        return [next(tokens) if text.strip() else None for text in texts]

    def _unit(self, number: int, document: str | HasText, tokens: Tokens, crc: int) -> Unit:
        mask = tokens.mask[0].numpy()
        ids, special = tokens.ids[0].numpy()[mask], tokens.special[0].numpy()[mask]
        counted = np.flatnonzero(~special)
        document_id = _document_id(document, number)
        labels = self._labels(document, document_id, len(counted))
        first, stop = int(counted[0]), int(counted[-1]) + 1
        return Unit(number, document_id, ids[:first], ids[first:stop], special[first:stop], ids[stop:], labels, crc)

    def _pieces(self, unit: Unit) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        ids, special = unit.spread(self.bos)
        room = self.room(len(unit.before) + len(unit.after))
        around = self.bos == "context"
        starts, ends = np.ones(len(unit.before), bool), np.ones(len(unit.after), bool)
        at = 0
        for begin in range(0, len(ids), room):
            inner = slice(begin, begin + room)
            n = int(np.count_nonzero(~special[inner]))
            part = torch.from_numpy(unit.labels[at : at + n]) if unit.labels is not None else None
            at += n
            if n:  # a piece of nothing but special tokens has no row
                piece = np.concatenate([unit.before, ids[inner], unit.after]) if around else ids[inner]
                flags = np.concatenate([starts, special[inner], ends]) if around else special[inner]
                yield torch.from_numpy(piece), torch.from_numpy(flags), part

    def _labels(self, document: str | HasText, document_id: int, n_counted: int) -> NDArray[np.int16] | None:
        labels: dict[str, list[int]] = getattr(document, "labels", None) or {}
        if self.label_names is None:
            self.label_names = list(labels)
        if labels.keys() != set(self.label_names):
            raise DataError(
                f"document {document_id} is labelled with {sorted(labels)}, the first with "
                f"{sorted(self.label_names)}; give every document the same labels (-1: not defined)"
            )
        for name, values in labels.items():
            if len(values) != n_counted:
                raise DataError(
                    f"document {document_id} has {n_counted} tokens but {len(values)} labels of {name!r}; "
                    "give one per token that is not special"
                )
        if not labels:
            return None
        columns = np.array([labels[name] for name in self.label_names])
        if columns.dtype != np.int64 or not -1 <= columns.min() <= columns.max() < 1 << 15:
            raise DataError(f"document {document_id} has a label that is not an integer from -1 to 32767")
        return np.ascontiguousarray(columns.T.astype(np.int16))


def _text(document: str | HasText) -> str:
    return document if isinstance(document, str) else document.text


def _document_id(document: str | HasText, number: int) -> int:
    """The document's own number; its place in the sequence when it has none."""
    document_id = getattr(document, "id", None)
    if document_id is None:
        return number
    if type(document_id) is not int or not 0 <= document_id < 1 << 62:
        raise DataError(f"document number {number} has id {document_id!r}; expected an int, 0 or more")
    return document_id


def _crc32(text: str, crc: int) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass") + b"\0", crc)


def _groups(
    documents: Iterator[tuple[int, str | HasText]],
) -> Iterator[list[tuple[int, str | HasText]]]:
    """Documents to tokenize together: neighbours, as many as bound the padded table of their tokens."""
    group: list[tuple[int, str | HasText]] = []
    longest = 0
    for number, document in documents:
        length = len(_text(document))
        if group and (len(group) == _GROUP or (len(group) + 1) * max(longest, length) > _GROUP_CHARACTERS):
            yield group
            group, longest = [], 0
        group.append((number, document))
        longest = max(longest, length)
    if group:
        yield group


def windows(
    contexts: Iterator[Context],
    size: int,
    n_rows: int | None = None,
    count: Callable[[Context], int] = lambda context: context.n_counted,
) -> Iterator[list[Context]]:
    """Runs of `size` contexts; the last may be shorter: it ends where `n_rows` rows (`count` of each) are there."""
    window: list[Context] = []
    n = 0
    for context in contexts:
        window.append(context)
        n += count(context)
        if n_rows is not None and n >= n_rows:
            break
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window
