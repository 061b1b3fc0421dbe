"""Codes of a whole store in one file, written as they are computed and resumed where they stopped.

A code file is one safetensors file: `row_ends` int64 `[n]`, the end of each row's slots; `indices` int32 `[nnz]` and
`values` float32 `[nnz]`, the slots of all rows one after the other, zeros left out. Its metadata say which dictionary,
store, split and coder it is of. While it grows, the three parts lie in a folder beside it, `<name>.partial`.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import StoreError
from sparsight.evaluation.approximate import Approximate, ApproximateCode, spread_rows
from sparsight.evaluation.evaluate import coder_of
from sparsight.evaluation.reading import StoredActivations, part_of, reported, row_blocks, site_for
from sparsight.models import Site

_PARTS: dict[str, np.dtype[Any]] = {"row_ends": np.dtype("<i8"), "indices": np.dtype("<i4"), "values": np.dtype("<f4")}
_NAMES = {"row_ends": "I64", "indices": "I32", "values": "F32"}
_PROGRESS = "progress.json"
_RECORD = "search_record"


@dataclass(frozen=True)
class CodeFile:
    """The codes in a file, read in slices.

    Attributes:
        path: The file.
        metadata: What it holds: coder, k, site, model, split, fingerprint of the dictionary's parameters, n_latents;
            after an approximate search its settings (`search`) and a `SearchRecord` (`search_record`).
        row_ends: End of each row's slots, with a leading 0.
    """

    path: Path
    metadata: dict[str, Any]
    row_ends: Tensor

    @staticmethod
    def open(path: str | Path) -> "CodeFile":
        """Read the header and the row ends; the codes stay on disk.

        Raises:
            StoreError: there is no such file, or it is no code file.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise StoreError(f"no code file at {path}; write one with `sparsight code`")
        try:
            with safe_open(path, "pt") as file:
                metadata = json.loads((file.metadata() or {})["sparsight.codes"])
                row_ends = file.get_tensor("row_ends")
        except (SafetensorError, KeyError, ValueError) as error:
            raise StoreError(
                f"{path} is not a whole code file ({error}); write it again with `sparsight code`"
            ) from error
        return CodeFile(path, metadata, torch.cat([torch.zeros(1, dtype=torch.int64), row_ends]))

    def __len__(self) -> int:
        return len(self.row_ends) - 1

    def rows(self, rows: slice) -> SparseCode:
        """The codes of consecutive rows, padded to the longest of them."""
        from safetensors import safe_open

        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"rows must be consecutive, got a slice with step {step}")
        ends = self.row_ends[start : max(stop, start) + 1]
        lengths = ends.diff()
        k = int(lengths.max()) if len(lengths) else 0
        used = torch.arange(k) < lengths[:, None]
        indices, values = torch.zeros(len(lengths), k, dtype=torch.int64), torch.zeros(len(lengths), k)
        if len(lengths):
            with safe_open(self.path, "pt") as file:
                indices[used] = file.get_slice("indices")[int(ends[0]) : int(ends[-1])].long()
                values[used] = file.get_slice("values")[int(ends[0]) : int(ends[-1])]
        return SparseCode(indices, values, int(self.metadata["n_latents"]))


def write_codes(
    dictionary: AbstractDictionary,
    store: StoredActivations,
    out: str | Path,
    *,
    coder: str | None = None,
    k: int | None = None,
    search: Approximate | None = None,
    split: str = "all",
    site: Site | str | None = None,
    batch_size: int = 4096,
    resume: bool = False,
    force: bool = False,
    progress: bool = False,
) -> CodeFile:
    """Code every row of a store with a dictionary and write the codes to one safetensors file.

    Memory does not grow with the number of rows. A run that was cut off keeps its finished batches; the same call with
    `resume=True` goes on and ends with the same bytes.

    Args:
        dictionary: Takes raw activations.
        store: Activations of its site.
        out: File to write; must not exist.
        coder: None for the dictionary's own rule, else a coder of `evaluate`, with `k`.
        k: Latents per row, with `coder`.
        search: None for the exact search of a pursuit. What an approximate one did, and what it cost on a sample, is
            in the metadata under `search_record`.
        split: "all", "train" or "heldout".
        site: Where, if not at the dictionary's own site.
        batch_size: Rows coded at once.
        resume: Go on with a file that was cut off, or return one that is finished.
        force: Code though the dictionary was made for another site or model.
        progress: Show a bar on stderr.
    Raises:
        ValueError: the coder, `k` or the split is not possible, or widths differ.
        DataError: the dictionary was made for another site or model.
        StoreError: `out` exists, or holds the beginning of other codes.
    """
    out = Path(out)
    part = part_of(store, split)
    code = coder_of(dictionary, coder, k, len(part), search)
    chosen = site_for(dictionary, part, site, force=force)
    metadata: dict[str, Any] = {
        "coder": coder or "own",
        "k": k,
        "split": split,
        "site": str(chosen),
        "model": store.model,
        "n_rows": len(part),
        "n_latents": dictionary.n_latents,
        "dictionary": _fingerprint(dictionary),
        "batch_size": batch_size,
    }
    if search is not None:
        metadata["search"] = {"method": "approximate", **asdict(search)}
    blocks = row_blocks(len(part), batch_size)
    if _finished(out, metadata, resume):
        return CodeFile.open(out)
    parts = _Parts(out.with_name(out.name + ".partial"), metadata, resume)
    done = parts.blocks
    approximate = code if isinstance(code, ApproximateCode) else None
    if approximate is not None:
        approximate.coder.screening.count(**parts.counts)
    with parts, reported("coding", len(part), shown=progress) as advance:
        advance(sum(block.stop - block.start for block in blocks[:done]))
        for block in blocks[done:]:
            codes = code(part.rows(chosen, block).to(dictionary.atoms))
            parts.add(codes, {} if approximate is None else approximate.coder.counts())
            advance(block.stop - block.start)
    if approximate is not None and search is not None:
        x = spread_rows(lambda block: part.rows(chosen, block).to(dictionary.atoms), len(part), search.checked)
        metadata[_RECORD] = approximate.record(x).model_dump()
    parts.assemble(out, metadata)
    return CodeFile.open(out)


class _Parts:
    """The growing parts of a code file: appended batch by batch, with a record of what is whole."""

    def __init__(self, folder: Path, metadata: dict[str, Any], resume: bool) -> None:
        self.folder, self.metadata = folder, dict(metadata)
        self.counts: dict[str, int] = {}
        self.blocks, self.rows, self.slots = 0, 0, 0
        if folder.exists():
            self._restore(resume)
        else:
            folder.mkdir(parents=True)
            self._record()

    def _restore(self, resume: bool) -> None:
        if not resume:
            raise StoreError(f"{self.folder} holds the beginning of a code file; add --resume to go on, or remove it")
        try:
            state = json.loads((self.folder / _PROGRESS).read_text(encoding="utf8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.folder} cannot be resumed ({error}); remove it and start again") from error
        if state["metadata"] != self.metadata:
            other = {
                key: (was, self.metadata[key]) for key, was in state["metadata"].items() if was != self.metadata[key]
            }
            raise StoreError(
                f"{self.folder} was begun with other settings, (then, now): {other}; remove it to start again"
            )
        self.blocks, self.rows, self.slots = state["blocks"], state["rows"], state["slots"]
        self.counts = state.get("counts", {})

    def __enter__(self) -> "_Parts":
        self._files = {}
        for name, dtype in _PARTS.items():
            file = (self.folder / name).open("ab")
            # What was appended after the last record belongs to a batch that is not whole.
            file.truncate((self.rows if name == "row_ends" else self.slots) * dtype.itemsize)
            self._files[name] = file
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, code: SparseCode, counts: dict[str, int]) -> None:
        """Append the codes of a batch; `counts` is what an approximate search has done up to its end."""
        used = (code.values != 0).cpu()
        ends = self.slots + used.sum(dim=1).cumsum(dim=0)
        columns = {"row_ends": ends, "indices": code.indices.cpu()[used], "values": code.values.cpu()[used]}
        for name, column in columns.items():
            self._files[name].write(column.numpy().astype(_PARTS[name]).tobytes())
            self._files[name].flush()
        self.blocks, self.rows, self.slots = self.blocks + 1, self.rows + len(code), self.slots + int(used.sum())
        self.counts = counts
        self._record()

    def _record(self) -> None:
        state = {"metadata": self.metadata, "blocks": self.blocks, "rows": self.rows, "slots": self.slots}
        if self.counts:
            state["counts"] = self.counts
        partial = self.folder / f"{_PROGRESS}.partial"
        partial.write_text(json.dumps(state), encoding="utf8")
        partial.replace(self.folder / _PROGRESS)

    def assemble(self, out: Path, metadata: dict[str, Any]) -> None:
        """One safetensors file out of the parts, with final metadata; it appears whole or not at all."""
        sizes = {name: (self.folder / name).stat().st_size for name in _PARTS}
        offsets = dict(zip(_PARTS, pairwise([0, *np.cumsum([sizes[name] for name in _PARTS]).tolist()]), strict=True))
        header: dict[str, Any] = {"__metadata__": {"sparsight.codes": json.dumps(metadata)}}
        for name, dtype in _PARTS.items():
            shape = [sizes[name] // dtype.itemsize]
            header[name] = {"dtype": _NAMES[name], "shape": shape, "data_offsets": list(offsets[name])}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        whole = self.folder / "whole"
        with whole.open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for name in _PARTS:
                with (self.folder / name).open("rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        whole.replace(out)
        shutil.rmtree(self.folder)


def _finished(out: Path, metadata: dict[str, Any], resume: bool) -> bool:
    if not out.exists():
        return False
    if not resume:
        raise StoreError(f"{out} exists; name another file, or add --resume if it is this one")
    if {key: value for key, value in CodeFile.open(out).metadata.items() if key != _RECORD} != metadata:
        raise StoreError(f"{out} holds other codes than these; name another file")
    return True


def _fingerprint(dictionary: AbstractDictionary) -> str:
    """A hash of every parameter: codes belong to exact weights, not to a path."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(dictionary.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def iterate_codes(file: CodeFile, batch_size: int = 4096) -> Iterator[SparseCode]:
    """The codes of a file in order, `batch_size` rows at a time."""
    for block in row_blocks(len(file), batch_size):
        yield file.rows(block)
