"""Opening a shard: mapped, its tensors held against the record of the store."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsight.activations.fetching import Segment, fetch
from sparsight.activations.record import ShardRecord, StoreRecord
from sparsight.activations.rounding import DTYPES
from sparsight.activations.shards import damaged, map_shard


def tensor_name(site: str) -> str:
    """Of the activations at a site."""
    return f"activations/{site}"


def scale_name(site: str) -> str:
    """Of the scales of int8 rows at a site."""
    return f"scales/{site}"


@dataclass(frozen=True)
class OpenShard:
    """A shard that agrees with the record.

    Attributes:
        tensors: All its tensors, mapped.
        first_row: For each context the row of the shard at which it begins, and last the number of rows; in memory.
        document_ids: Of each context; in memory.
    """

    tensors: dict[str, Tensor]
    first_row: NDArray[np.int64]
    document_ids: NDArray[np.int64]


def open_shard(folder: Path, record: StoreRecord, shard: ShardRecord) -> OpenShard:
    """Map a shard and hold it against the record.

    Raises:
        StoreError: the file is missing, is not as long or not as the record says, or its header lies.
    """
    path = folder / shard.file
    if path.is_file() and path.stat().st_size != shard.bytes:
        raise damaged(path, f"has {path.stat().st_size} bytes, expected {shard.bytes}")
    tensors = map_shard(path)
    r, c = shard.rows, shard.contexts
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "token_ids": (torch.int32, (r,)),
        "document_ids": (torch.int64, (r,)),
        "positions": (torch.int32, (r,)),
        "contexts/first_row": (torch.int64, (c + 1,)),
        "contexts/document_ids": (torch.int64, (c,)),
    }
    for site, d in zip(record.sites, record.widths, strict=True):
        expected[tensor_name(site)] = (DTYPES[record.dtype], (r, d))
        if record.dtype == "int8":
            expected[scale_name(site)] = (torch.float32, (r,))
    if record.label_names:
        expected["labels"] = (torch.int16, (r, len(record.label_names)))
    ids = tensors.get("contexts/ids")
    t = ids.shape[1] if ids is not None and ids.dim() == 2 else 0
    for name, dtype in (("ids", torch.int32), ("mask", torch.bool), ("special", torch.bool)):
        expected[f"contexts/{name}"] = (dtype, (c, t))
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise damaged(path, f"has {name} {_form(found.get(name))}, expected {_form(expected.get(name))}")
    first, documents = (_in_memory(path, tensors[f"contexts/{name}"]) for name in ("first_row", "document_ids"))
    if first[0] != 0 or first[-1] != r or (np.diff(first) < 0).any():
        raise damaged(path, f"has contexts that do not add up to its {r} rows")
    return OpenShard(tensors, first, documents)


def _in_memory(path: Path, mapped: Tensor) -> NDArray[np.int64]:
    """Read rather than taken from the map, where the first page that is touched may bring megabytes with it."""
    whole = torch.empty_like(mapped)
    fetch([path], [mapped], [Segment(0, 0, 0, len(mapped))], whole)
    return whole.numpy()


def _form(form: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "absent" if form is None else f"{str(form[0]).removeprefix('torch.')} {list(form[1])}"
