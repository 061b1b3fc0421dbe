"""Text files and data sets to documents: the unit that is never shared between training and held-out rows."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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


def documents_from_files(paths: Sequence[str | Path], *, field: str = "text") -> Iterator[Document]:
    """Read documents from text files, one file after the other, numbered from 0 throughout.

    In a `.txt` file that has WikiText titles (` = Title = `) each article is a document; in any other, documents are
    separated by blank lines. In a `.jsonl` file each line is an object, in a `.parquet` file each row is a record,
    whose `field` is a document. Files are streamed.

    Args:
        paths: Files ending in `.txt`, `.jsonl` (UTF-8 both) or `.parquet`. That they exist is checked now, their
            content while reading.
        field: Name in JSONL, column in Parquet.
    Raises:
        DataError: a file is missing, empty, of another kind, not UTF-8, or a line or column is not what was promised.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise DataError("no text file came; expected at least one .txt, .jsonl or .parquet file")
    for file in files:
        if not file.is_file():
            raise DataError(f"text file {file} does not exist; check the path")
        if file.suffix.lower() not in _READERS:
            raise DataError(f"text file {file} ends in {file.suffix!r}; expected .txt, .jsonl or .parquet")
    return _number(files, field)


def documents_from_dataset(
    dataset: Any, *, field: str = "text", split: str = "train", config: str | None = None
) -> Iterator[Document]:
    """Read documents from a Hugging Face data set, numbered from 0; nothing is loaded ahead of the reading.

    Args:
        dataset: A name on the hub or a local folder, which is streamed; or a `Dataset` or `IterableDataset` that is
            already there.
        field: Column of the texts.
        split: Which part of a named data set.
        config: Which configuration of a named data set, when it has several.
    Raises:
        DataError: there is no such data set, split or column, or a text is not a string.
    """
    if isinstance(dataset, str):
        dataset = _stream(dataset, config, split)
    elif not hasattr(dataset, "column_names") or isinstance(dataset.column_names, dict):
        raise DataError(f"expected the name of a data set or one split of a loaded one, got {type(dataset).__name__}")
    if dataset.column_names is not None and field not in dataset.column_names:
        raise DataError(f"the data set has no column {field!r}; it has {', '.join(dataset.column_names)}")
    return _rows_of(dataset, field)


def _stream(name: str, config: str | None, split: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(name, config, split=split, streaming=True)
    except (DatasetNotFoundError, ValueError, OSError) as error:  # ConnectionError is an OSError
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"data set {name!r} cannot be opened (split {split!r}): {reason}") from None


def _rows_of(dataset: Any, field: str) -> Iterator[Document]:
    numbers = count()
    for row, entry in enumerate(dataset):
        text = entry.get(field)
        if not isinstance(text, str):
            raise DataError(f"row {row} of the data set has no {field!r} of type string, got {type(text).__name__}")
        if text.strip():
            yield Document(next(numbers), text)


def _number(files: list[Path], field: str) -> Iterator[Document]:
    numbers = count()
    for file in files:
        empty = True
        for text in _READERS[file.suffix.lower()](file, field):
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


def _read_txt(file: Path, field: str) -> Iterator[str]:
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


def _read_jsonl(file: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"line {number} of {file} is not JSON: {error}") from None
        if not isinstance(entry, dict) or not isinstance(entry.get(field), str):
            raise DataError(f'line {number} of {file} has no "{field}" of type string; expected {{"{field}": "..."}}')
        if entry[field].strip():
            yield entry[field]


def _read_parquet(file: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise DataError(f"{file} has no column {field!r}; it has {', '.join(names)}")
            kind = table.schema_arrow.field(field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"column {field!r} of {file} holds {kind}, expected strings")
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for text in batch.column(0).to_pylist():
                    if text is None:
                        raise DataError(f"row {row} of {file} has no {field!r}; drop rows without text")
                    row += 1
                    if text.strip():
                        yield text
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from None


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
