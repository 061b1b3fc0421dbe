"""Text files to documents: the unit that is never shared between training and held-out rows."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol, runtime_checkable

from sparsight.errors import DataError


@runtime_checkable
class HasText(Protocol):
    """What `harvest` asks of a document; `.id` (int) and `.labels` ({feature: [tokens]}) are used when there."""

    @property
    def text(self) -> str:
        """The document, whole."""


@dataclass(frozen=True)
class Document:
    """A piece of text that belongs together, and its number in the order of reading."""

    id: int
    text: str


def documents_from_files(paths: Sequence[str | Path]) -> Iterator[Document]:
    """Read documents from text files, one file after the other, numbered from 0 throughout.

    In a `.txt` file that has WikiText titles (` = Title = `) each article is a document; in any other, documents are
    separated by blank lines. In a `.jsonl` file each line is an object whose "text" is a document. Files are streamed.

    Args:
        paths: UTF-8 files ending in `.txt` or `.jsonl`. That they exist is checked now, their content while reading.
    Raises:
        DataError: a file is missing, empty, of another kind, not UTF-8, or a line is not what the ending promises.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise DataError("no text file came; expected at least one .txt or .jsonl file")
    for file in files:
        if not file.is_file():
            raise DataError(f"text file {file} does not exist; check the path")
        if file.suffix.lower() not in _READERS:
            raise DataError(f"text file {file} ends in {file.suffix!r}; expected .txt or .jsonl")
    return _number(files)


def _number(files: list[Path]) -> Iterator[Document]:
    numbers = count()
    for file in files:
        empty = True
        for text in _READERS[file.suffix.lower()](file):
            empty = False
            yield Document(next(numbers), text)
        if empty:
            raise DataError(f"text file {file} has no text; expected at least one document")


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise DataError(
            f"text file {file} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert it, e.g. with iconv"
        ) from None
    except OSError as error:
        raise DataError(f"text file {file} cannot be read: {error.strerror}") from None


def _titles(file: Path) -> Iterator[bool]:
    """For each line, whether it is a title: of a title's form, with nothing on the lines before and after."""
    blank_before, candidate = True, False
    for line in _lines(file):
        blank = not line.strip()
        if candidate:
            yield blank
        candidate = blank_before and _is_title(line)
        if not candidate:
            yield False
        blank_before = blank
    if candidate:
        yield True


def _is_title(line: str) -> bool:
    words = line.split()
    return len(words) >= 3 and words[0] == words[-1] == "=" and words[1] != "=" and words[-2] != "="


def _read_txt(file: Path) -> Iterator[str]:
    articles = any(_titles(file))
    starts: Iterable[bool] = _titles(file) if articles else (not line.strip() for line in _lines(file))
    kept: list[str] = []
    for line, starts_here in zip(_lines(file), starts, strict=True):
        if starts_here and any(part.strip() for part in kept):
            yield "".join(kept).strip("\n")
        if starts_here:
            kept = []
        kept.append(line)
    if any(part.strip() for part in kept):
        yield "".join(kept).strip("\n")


def _read_jsonl(file: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"line {number} of {file} is not JSON: {error}") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise DataError(f'line {number} of {file} has no "text" of type string; expected {{"text": "..."}}')
        if entry["text"].strip():
            yield entry["text"]


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl}
