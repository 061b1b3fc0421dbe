"""Documents to contexts: the pieces of a document's tokens that the model reads one at a time."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsight.activations.documents import HasText
from sparsight.activations.record import Cursor
from sparsight.errors import DataError
from sparsight.models import Site, Tokens

_GROUP = 64  # documents tokenized together, fewer when they are long
_GROUP_CHARACTERS = 1 << 20  # bounds the padded table of their tokens
_WHOLE = 1 << 30  # tokens: no document is cut by the tokenizer


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
    def width(self, site: Site) -> int: ...
    def tokenize(self, texts: Sequence[str], *, context: int | None = None) -> Tokens: ...
    def activations(self, tokens: Tokens, sites: Sequence[Site]) -> dict[Site, Float[Tensor, "b t d"]]: ...


@dataclass(frozen=True)
class Context:
    """One piece of one document, with the special tokens that the tokenizer puts around a text.

    Attributes:
        ids: Tokens as the model reads them, without padding.
        special: True where the tokenizer added the token.
        document_id: Number of the document.
        labels: True features of each counted token, -1 where not defined; None without labels.
        end: The place in the documents just after this context.
    """

    ids: Int64[Tensor, " t"]
    special: Bool[Tensor, " t"]
    document_id: int
    labels: Int16[Tensor, "n_counted n_labels"] | None
    end: Cursor

    @cached_property
    def n_counted(self) -> int:
        """Tokens that get a row."""
        return len(self.special) - int(self.special.sum())


class Cutter:
    """Cuts documents into contexts of at most `context` tokens, special ones included.

    A document is tokenized whole and then cut, so that no word is torn; every piece gets the special tokens that stand
    at the ends of a text. The names of the labels are those of the first document: all others must have the same.
    """

    def __init__(self, lm: Reads, context: int, label_names: list[str] | None = None) -> None:
        if not 2 <= context <= lm.max_context:
            raise ValueError(f"context must be between 2 and the model's {lm.max_context} tokens, got {context}")
        self.lm = lm
        self.context = context
        self.label_names = label_names

    def cut(self, documents: Iterable[str | HasText], start: Cursor | None = None) -> Iterator[Context]:
        """Contexts in the order of the documents, from a place in them on.

        Raises:
            DataError: `start` lies behind the end, or the texts before it are not those it was made with; labels do
                not fit the tokens.
        """
        start = start or Cursor()
        numbered = enumerate(documents)
        crc = 0
        for _ in range(start.documents):
            item = next(numbered, None)
            if item is None:
                raise DataError(f"only {_} documents came, but {start.documents} were read before; give the same text")
            crc = _crc32(_text(item[1]), crc)
        if crc != start.crc32:
            raise DataError("the documents differ from those read before the interruption; resume with the same text")
        skip = start.contexts
        for group in _groups(numbered):
            tokenized = self._tokenize([_text(document) for _, document in group])
            for (number, document), tokens in zip(group, tokenized, strict=True):
                before, crc = crc, _crc32(_text(document), crc)
                pieces = list(self._pieces(tokens, number, document)) if tokens is not None else []
                for taken, (ids, special, document_id, labels) in enumerate(pieces[skip:], start=skip + 1):
                    last = taken == len(pieces)
                    end = (number + 1, 0, crc) if last else (number, taken, before)
                    cursor = Cursor(documents=end[0], contexts=end[1], crc32=end[2])
                    yield Context(ids, special, document_id, labels, cursor)
                skip = 0

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

    def _pieces(
        self, tokens: Tokens, number: int, document: str | HasText
    ) -> Iterator[tuple[Tensor, Tensor, int, Tensor | None]]:
        mask = tokens.mask[0].numpy()
        ids, special = tokens.ids[0].numpy()[mask], tokens.special[0].numpy()[mask]
        counted = np.flatnonzero(~special)
        document_id = _document_id(document, number)
        labels = self._labels(document, document_id, len(counted))
        first, stop = int(counted[0]), int(counted[-1]) + 1
        before, after = ids[:first], ids[stop:]
        room = self.context - len(before) - len(after)
        if room < 1:
            raise ValueError(
                f"context must leave room beside the {self.context - room} special tokens, got context={self.context}"
            )
        starts, ends = np.ones(len(before), bool), np.ones(len(after), bool)
        at = 0
        for begin in range(first, stop, room):
            inner = slice(begin, min(begin + room, stop))
            n = int(np.count_nonzero(~special[inner]))
            part = torch.from_numpy(labels[at : at + n]) if labels is not None else None
            at += n
            if n:  # a piece of nothing but special tokens has no row
                piece = torch.from_numpy(np.concatenate([before, ids[inner], after]))
                yield piece, torch.from_numpy(np.concatenate([starts, special[inner], ends])), document_id, part

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


def windows(contexts: Iterator[Context], size: int, n_tokens: int | None = None) -> Iterator[list[Context]]:
    """Runs of `size` contexts; the last may be shorter: it ends where `n_tokens` counted tokens are complete."""
    window: list[Context] = []
    n = 0
    for context in contexts:
        window.append(context)
        n += context.n_counted
        if n_tokens is not None and n >= n_tokens:
            break
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window
