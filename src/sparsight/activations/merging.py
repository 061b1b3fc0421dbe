"""Several stores to one: shards are copied as they are, with their checksums, under one record."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import Tensor

from sparsight.activations.record import Settings, ShardRecord, StoreRecord, write_record
from sparsight.activations.shards import damaged, disk_errors, file_crc32, map_shard, write_shard
from sparsight.activations.store import ActivationStore
from sparsight.errors import StoreError

# What may differ between the parts: how much was asked for, and how it was batched and written.
_FREE = {"n_tokens", "batch_size", "shard_rows"}


def merge_stores(paths: Sequence[str | Path], out: str | Path, *, renumber: bool = False) -> ActivationStore:
    """Put stores of equal settings into one, their rows one after the other.

    Every shard is copied and the copy's checksum compared. The store appears under its name when it is whole; until
    then it is `out` + ".part".

    Args:
        paths: Two stores or more.
        out: Folder of the new store; must not exist.
        renumber: Number the documents of each store behind those of the stores before it. Without it, a document
            number in two of them is an error. The side of the split follows the number, so renumbering changes it.
    Raises:
        ValueError: fewer than two stores, or one twice.
        StoreError: settings differ, document numbers collide, a shard is damaged, or the disk is full.
    """
    if len(paths) < 2 or len({Path(path).resolve() for path in paths}) < len(paths):
        raise ValueError(f"merge takes two or more different stores, got {[str(path) for path in paths]}")
    stores = [ActivationStore(path) for path in paths]
    for store in stores[1:]:
        _refuse_other(stores[0], store)
    out = Path(out)
    part = out.with_name(out.name + ".part")
    for folder in (out, part):
        if folder.exists():
            raise StoreError(f"{folder} exists; choose another folder for the merged store, or remove it")
    offsets = _offsets(stores, renumber)
    with disk_errors(out):
        part.mkdir(parents=True)
    try:
        shards: list[ShardRecord] = []
        for store, offset in zip(stores, offsets, strict=True):
            for shard in store.record.shards:
                shards.append(_copy(store.path, shard, part, len(shards), offset))
        write_record(part, _record(stores, shards))
        with disk_errors(out):
            part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return ActivationStore(out)


def _settings(store: ActivationStore) -> Settings:
    return Settings.model_validate({name: getattr(store.record, name) for name in Settings.model_fields})


def _refuse_other(first: ActivationStore, other: ActivationStore) -> None:
    aligned = _settings(first).model_copy(update={name: getattr(other.record, name) for name in _FREE})
    differences = aligned.differences(_settings(other))
    if first.label_names != other.label_names:
        differences = ", ".join(
            filter(None, [differences, f"labels: {first.label_names} there, {other.label_names} here"])
        )
    if differences:
        raise StoreError(
            f"{first.path} and {other.path} differ ({differences}); only stores of equal settings can be merged"
        )


def _offsets(stores: list[ActivationStore], renumber: bool) -> list[int]:
    """What is added to the document numbers of each store."""
    numbers = [np.unique(store.tokens(slice(None)).document_ids.numpy()) for store in stores]
    if not renumber:
        for i, mine in enumerate(numbers):
            for j in range(i):
                if len(shared := np.intersect1d(mine, numbers[j])):
                    raise StoreError(
                        f"document {shared[0]} and {len(shared) - 1} others are in both {stores[j].path} and "
                        f"{stores[i].path}; if they are different texts, renumber them (--renumber)"
                    )
        return [0] * len(stores)
    if stores[0].record.packed:
        raise StoreError(
            f"{stores[0].path} is packed by side of the split, which new document numbers would change; merge without "
            "renumbering, or harvest with other document numbers"
        )
    offsets = [0]
    for mine in numbers[:-1]:
        offsets.append(offsets[-1] + int(mine[-1]) + 1)
    return offsets


def _copy(folder: Path, shard: ShardRecord, out: Path, index: int, offset: int) -> ShardRecord:
    name = f"shard-{index:05d}.safetensors"
    if file_crc32(folder / shard.file) != shard.crc32:
        raise damaged(folder / shard.file, "does not have the checksum that was noted")
    if offset == 0:
        with disk_errors(out / name):
            shutil.copyfile(folder / shard.file, out / name)
        if file_crc32(out / name) != shard.crc32:
            raise damaged(out / name, "is not what was copied")
        return shard.model_copy(update={"file": name})
    tensors: dict[str, Sequence[Tensor]] = {}
    for key, tensor in map_shard(folder / shard.file).items():
        tensors[key] = [tensor + offset if key in ("document_ids", "contexts/document_ids") else tensor]
    n_bytes, crc = write_shard(out / name, tensors)
    return shard.model_copy(update={"file": name, "bytes": n_bytes, "crc32": crc})


def _record(stores: list[ActivationStore], shards: list[ShardRecord]) -> StoreRecord:
    records = [store.record for store in stores]
    n_rows = sum(record.n_rows for record in records)
    asked = sum(record.short_of or record.n_rows for record in records)
    return records[0].model_copy(
        update={
            "n_tokens": asked,
            "version": version("sparsight"),
            "command": shlex.join(sys.argv),
            "n_rows": n_rows,
            "n_contexts": sum(record.n_contexts for record in records),
            "short_of": asked if asked > n_rows else None,
            "excluded": sum(record.excluded for record in records),
            "shards": shards,
        }
    )
