"""Writing a dictionary to its folder, whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sparsight.dictionaries.record import (
    MEAN_TENSOR,
    RECORD_FILE,
    WEIGHTS_FILE,
    DictionaryRecord,
    NormalizationRecord,
    PlaceRecord,
)
from sparsight.errors import FormatError

if TYPE_CHECKING:
    from sparsight.dictionaries.base import AbstractDictionary


def write_dictionary(dictionary: "AbstractDictionary", folder: Path) -> None:
    """Write both files beside their final names, then move them in place, the record last.

    A reader thus finds the old dictionary, or none, or the new one, never halves of two: weights without a record are
    not a dictionary.

    Raises:
        FormatError: the folder cannot be written, or the dictionary holds values that are not finite.
    """
    tensors = dictionary_tensors(dictionary)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{name} holds NaN or infinity, so the dictionary is not written to {folder}")
    record = _record(dictionary, tensors)
    with readable_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with temporary(folder / WEIGHTS_FILE) as weights, temporary(folder / RECORD_FILE) as description:
            save_file(tensors, weights)
            description.write_text(record.to_json(), encoding="utf-8")
            flush_to_disk(weights)
            flush_to_disk(description)
            (folder / RECORD_FILE).unlink(missing_ok=True)
            os.replace(weights, folder / WEIGHTS_FILE)
            os.replace(description, folder / RECORD_FILE)


def dictionary_tensors(dictionary: "AbstractDictionary") -> dict[str, Tensor]:
    """What `dictionary.safetensors` holds: the parameters under their own names, and the mean of the normalisation."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in dictionary.named_parameters()}
    if dictionary.normalization is not None:
        tensors[MEAN_TENSOR] = dictionary.normalization.mean.detach().cpu().contiguous()
    return tensors


def _record(dictionary: "AbstractDictionary", tensors: dict[str, Tensor]) -> DictionaryRecord:
    places = [
        PlaceRecord(width=place.width, site=None if place.site is None else str(place.site), model=place.model)
        for place in dictionary.places
    ]
    return DictionaryRecord(
        architecture=dictionary.config.architecture,
        config=asdict(dictionary.config),
        d_in=dictionary.d_in,
        n_latents=dictionary.n_latents,
        site=None if dictionary.site is None else str(dictionary.site),
        model=dictionary.model,
        places=places or None,
        normalization=_scales(dictionary),
        tensors={name: list(tensor.shape) for name, tensor in tensors.items()},
        provenance=dictionary.provenance,
    )


def _scales(dictionary: "AbstractDictionary") -> NormalizationRecord | None:
    if dictionary.normalization is None:
        return None
    scale = dictionary.normalization.scale
    return NormalizationRecord(scale=list(scale) if isinstance(scale, tuple) else scale)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; whatever still bears it at the end is removed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Return when the bytes of `path` have reached the disk, so that a rename cannot overtake them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def readable_os_errors(target: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into one line that names the target."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FormatError(f"cannot write {target}: {reason}; nothing was changed there") from error
