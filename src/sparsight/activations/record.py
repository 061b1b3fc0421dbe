"""What a store says about itself: `store.json` when it is finished, `shards.jsonl` while it is being written."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparsight.activations.shards import disk_errors, sync_folder
from sparsight.errors import StoreError

FORMAT = 1
RECORD = "store.json"
JOURNAL = "shards.jsonl"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Cursor(_Record):
    """A place in a sequence of documents, between two contexts.

    Attributes:
        documents: Documents that are wholly behind.
        contexts: Contexts already taken from the next document.
        crc32: CRC-32 over the texts of the documents behind: whether the same documents come again.
    """

    documents: int = Field(default=0, ge=0)
    contexts: int = Field(default=0, ge=0)
    crc32: int = Field(default=0, ge=0)


class RowSums(_Record):
    """Sums over the rows of one site: what storing them lost, against what they are.

    Attributes:
        error: Squared distance between a row and what is read back.
        norm: Squared norm.
        deviation: Squared distance from the mean of the rows that the model read together (a window).
    """

    error: float = Field(ge=0)
    norm: float = Field(ge=0)
    deviation: float = Field(ge=0)

    def __add__(self, other: "RowSums") -> "RowSums":
        return RowSums(
            error=self.error + other.error,
            norm=self.norm + other.norm,
            deviation=self.deviation + other.deviation,
        )


class ShardRecord(_Record):
    """One shard: its size, its checksum, the place in the documents where it ends, and what rounding its rows lost."""

    file: str = Field(pattern=r"^shard-\d{5,}\.safetensors$")
    rows: int = Field(ge=1)
    contexts: int = Field(ge=1)
    bytes: int = Field(ge=1)
    crc32: int = Field(ge=0)
    end: Cursor
    excluded: int = Field(default=0, ge=0)
    sums: dict[str, RowSums] = {}  # by site; stores written before these were measured have none


class Settings(_Record):
    """What decides the rows of a store. A harvest is resumed only under the same."""

    model: str
    family: str
    sites: list[str] = Field(min_length=1)
    widths: list[int] = Field(min_length=1)
    dtype: Literal["float16", "bfloat16", "float32", "int8"]
    context: int = Field(ge=1)
    n_tokens: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    shard_rows: int = Field(ge=1)
    heldout: float = Field(ge=0, lt=1)
    split_seed: int = Field(ge=0)
    packed: bool = False
    bos: Literal["context", "document", "none"] = "context"
    special_rows: bool = False
    max_norm: float | None = Field(default=None, gt=1)

    def differences(self, other: "Settings") -> str:
        """`name: ours there, theirs here` for each setting that differs; empty when none does."""
        mine, theirs = self.model_dump(), other.model_dump()
        return ", ".join(
            f"{name}: {mine[name]} there, {theirs[name]} here" for name in mine if mine[name] != theirs[name]
        )


class StoreRecord(Settings):
    """The whole of `store.json`."""

    format: Literal["sparsight activations"]
    format_version: Literal[1]
    version: str
    command: str
    pad_id: int
    label_names: list[str]
    split_rule: str
    n_rows: int = Field(ge=1)
    n_contexts: int = Field(ge=1)
    short_of: int | None
    excluded: int = Field(default=0, ge=0)
    shards: list[ShardRecord] = Field(min_length=1)


def rounding_errors(shards: Sequence[ShardRecord]) -> dict[str, dict[str, float]]:
    """What storing rows lost, by site: squared error over squared norm, and over squared deviation from the mean.

    The second is the fraction of variance unexplained by what is read back; 0 deviation (one row to a window) counts as
    no loss only if there is none.
    """
    sums: dict[str, RowSums] = {}
    for shard in shards:
        for site, part in shard.sums.items():
            sums[site] = sums[site] + part if site in sums else part
    return {
        site: {
            "relative": total.error / (total.norm or 1.0),
            "fvu": total.error / (total.deviation or total.norm or 1.0),
        }
        for site, total in sums.items()
    }


def read_record(folder: Path) -> StoreRecord:
    """Read and check `store.json`.

    Raises:
        StoreError: there is no store, it is unfinished, or its record is not of this format.
    """
    path = folder / RECORD
    if not path.is_file():
        if (folder / JOURNAL).is_file():
            raise StoreError(f"the store {folder} is unfinished; go on with harvest(..., resume=True) or --resume")
        raise StoreError(f"no activation store at {folder}: it has no {RECORD}; check the path, or harvest one there")
    try:
        record = StoreRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StoreError(f"{path} is not a store of format version {FORMAT}: {_first(error)}") from None
    files = [f"shard-{index:05d}.safetensors" for index in range(len(record.shards))]
    sums = [sum(shard.rows for shard in record.shards), sum(shard.contexts for shard in record.shards)]
    if [shard.file for shard in record.shards] != files or sums != [record.n_rows, record.n_contexts]:
        raise StoreError(f"{path} contradicts itself: its shards do not add up to {record.n_rows} rows; restore it")
    if len(record.sites) != len(record.widths):
        raise StoreError(
            f"{path} contradicts itself: {len(record.sites)} sites, {len(record.widths)} widths; restore it"
        )
    return record


def _first(error: ValidationError) -> str:
    details = error.errors()[0]
    return f"{'.'.join(str(part) for part in details['loc']) or 'file'}: {details['msg']}"


def write_record(folder: Path, record: StoreRecord) -> None:
    """Write `store.json` so that it is whole or absent, then drop the journal: from here on the store is finished."""
    temporary = folder / (RECORD + ".tmp")
    with disk_errors(folder / RECORD):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(record.model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / RECORD)
            sync_folder(folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        (folder / JOURNAL).unlink(missing_ok=True)


def start_journal(folder: Path, settings: Settings, label_names: list[str]) -> None:
    """Begin an empty journal: one line with the settings that all rows share."""
    _append(folder / JOURNAL, {"settings": settings.model_dump(), "label_names": label_names})
    sync_folder(folder)


def append_journal(folder: Path, shard: ShardRecord) -> None:
    """Note a shard whose file is already whole under its name."""
    _append(folder / JOURNAL, shard.model_dump())


def _append(path: Path, entry: dict[str, Any]) -> None:
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_journal(folder: Path) -> tuple[Settings, list[str], list[ShardRecord]] | None:
    """Settings, label names and whole shards of an unfinished store; a line that was cut off is dropped from the file.

    Returns:
        None when not even the first line is whole: nothing was stored.
    Raises:
        StoreError: the journal is not one, or a shard that it names is not there as it says.
    """
    path = folder / JOURNAL
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)
    try:
        lines = [json.loads(line) for line in text[:whole].splitlines()]
        if not lines:
            return None
        settings = Settings.model_validate(lines[0]["settings"])
        label_names = list(lines[0]["label_names"])
        shards = [ShardRecord.model_validate(line) for line in lines[1:]]
    except (ValueError, KeyError, TypeError):  # pydantic's ValidationError is a ValueError
        raise StoreError(f"{path} is not a harvest's journal; remove the folder and harvest again") from None
    for shard in shards:
        file = folder / shard.file
        if not file.is_file() or file.stat().st_size != shard.bytes:
            raise StoreError(f"{file} is missing or not {shard.bytes} bytes long; remove {folder} and harvest again")
    return settings, label_names, shards
