"""Our own format: a folder with `dictionary.safetensors` and `dictionary.json` (docs/formats.md)."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, DictionaryConfig
from sparsight.dictionaries.base import Place, normalization_of
from sparsight.dictionaries.record import MEAN_TENSOR, RECORD_FILE, WEIGHTS_FILE, DictionaryRecord
from sparsight.errors import FormatError
from sparsight.formats.architectures import ARCHITECTURES
from sparsight.formats.safe_reading import read_json, refuse_link_out
from sparsight.models import Site

PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}
# Float32 rows that were normalised miss a norm of 1 by about 1e-7; bfloat16 rows would miss it by 1e-3.
NORM_TOLERANCE = 1e-4


def can_read(path: Path) -> bool:
    """Whether a folder holds either of our files, whole or not."""
    return (path / RECORD_FILE).is_file() or (path / WEIGHTS_FILE).is_file()


def write(dictionary: AbstractDictionary, path: Path) -> None:
    """`dictionary.save(path)`."""
    dictionary.save(path)


def read(folder: Path) -> AbstractDictionary:
    """Read a dictionary that `save` or `train` wrote.

    Everything is checked before anything is returned: the record against its schema (unknown keys are refused), the
    tensors against the record and the architecture, finite values, atoms of unit norm.

    Args:
        folder: Folder with `dictionary.json` and `dictionary.safetensors`.
    Returns:
        The dictionary on the CPU, its parameters frozen.
    Raises:
        FormatError: the folder is missing or damaged, or does not hold what it claims to hold.
    """
    _refuse_what_is_no_folder(folder)
    record = _read_record(folder / RECORD_FILE)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    _check_size(record, tensors, folder / RECORD_FILE)
    dictionary = _built(record, folder / RECORD_FILE)
    mean = _checked_mean(record, tensors, folder / WEIGHTS_FILE)
    _fill(dictionary, tensors, folder / WEIGHTS_FILE)
    try:
        dictionary.site = _site(record.site)
        dictionary.places = tuple(Place(p.width, _site(p.site), p.model) for p in record.places or ())
    except ValueError as error:
        raise FormatError(f"{folder / RECORD_FILE}: key 'site': {error}") from error
    dictionary.model = record.model
    dictionary.provenance = record.provenance
    if record.normalization is not None and mean is not None:
        widths = [place.width for place in dictionary.places]
        dictionary.normalization = normalization_of(mean, record.normalization.scale, widths)
    return dictionary.requires_grad_(False)


def _refuse_what_is_no_folder(folder: Path) -> None:
    if folder.suffix.lower() in PICKLES and not folder.is_dir():
        raise FormatError(
            f"{folder} is a pickle, and pickles are not read because they can run code; give the folder that "
            f"holds {RECORD_FILE} and {WEIGHTS_FILE}, or export the weights to safetensors first"
        )
    if not folder.exists():
        raise FormatError(f"no dictionary folder at {folder}; give a folder that `sparsight train` wrote")
    if not folder.is_dir():
        raise FormatError(f"{folder} is a file; give the folder that holds {RECORD_FILE} and {WEIGHTS_FILE}")
    for name in (RECORD_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FormatError(f"{folder} has no {name}, so it is no whole dictionary; train or copy it again")


def _read_record(path: Path) -> DictionaryRecord:
    read_json(path)  # refuses what is too large and keys that are there twice, which pydantic would not see
    try:
        return DictionaryRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise FormatError(f"{path}: {_first_problem(error)}") from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error


def _first_problem(error: ValidationError) -> str:
    """The first complaint of a validation, on one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {key!r}; remove it, or read the folder with the version that wrote it"
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    if first["type"] == "json_invalid":
        return f"not JSON: {first['ctx']['error']}"
    return f"key {key!r}: {first['msg']}, got {first['input']!r:.60}" if key else f"{first['msg']}"


def _config(record: DictionaryRecord, path: Path) -> DictionaryConfig:
    """The architecture's own config class, filled and checked."""
    if record.architecture not in ARCHITECTURES:
        raise FormatError(
            f"{path}: unknown architecture {record.architecture!r}; this version knows {', '.join(ARCHITECTURES)}"
        )
    config_class = ARCHITECTURES[record.architecture]
    known = {field.name for field in fields(config_class)}
    if unknown := sorted(set(record.config) - known):
        raise FormatError(f"{path}: unknown key 'config.{unknown[0]}'; {record.architecture} knows {sorted(known)}")
    try:
        config = TypeAdapter(config_class).validate_python(record.config)
    except ValidationError as error:
        raise FormatError(f"{path}: in config: {_first_problem(error)}") from error
    if config.n_latents != record.n_latents:
        raise FormatError(
            f"{path}: n_latents is {record.n_latents} but config.n_latents is {config.n_latents}; the file was altered"
        )
    return config


def _check_size(record: DictionaryRecord, tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse widths that the weights do not have before memory is set aside for them."""
    held = sum(tensor.numel() for tensor in tensors.values())
    widths = [record.d_in, sum(place.width for place in record.places or ())]
    if record.n_latents * record.d_in > held or max(widths) > held:
        raise FormatError(
            f"{path}: n_latents={record.n_latents} and widths {widths} ask for more than the {held} numbers that "
            f"{WEIGHTS_FILE} holds; the file was altered"
        )


def _built(record: DictionaryRecord, path: Path) -> AbstractDictionary:
    """A fresh dictionary of the recorded configuration and widths."""
    config: Any = _config(record, path)
    n_places = len(record.places or ())
    least, most = config.n_sites
    fits = n_places == 0 if most == 1 else least <= n_places <= (most or n_places)
    if not fits:
        raise FormatError(f"{path}: {record.architecture} does not have {n_places} places; the file was altered")
    if record.normalization is not None:
        scale = record.normalization.scale
        if n_places != (len(scale) if isinstance(scale, list) else 0):
            raise FormatError(f"{path}: normalization.scale must hold one number for each of {n_places} places")
    generator = torch.Generator()
    dictionary: AbstractDictionary
    if record.places is None:
        dictionary = config.build(record.d_in, generator)
    else:
        dictionary = config.build([place.width for place in record.places], generator)
    if dictionary.d_in != record.d_in:
        raise FormatError(f"{path}: d_in is {record.d_in} but the places make {dictionary.d_in}; the file was altered")
    return dictionary


def _site(name: str | None) -> Site | None:
    return None if name is None else Site.parse(name)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    refuse_link_out(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is truncated or no safetensors file ({error}); train or copy it again") from error


def _checked_mean(record: DictionaryRecord, tensors: dict[str, Tensor], path: Path) -> Tensor | None:
    """Take the mean of the normalisation out of `tensors`, if there must be one."""
    mean = tensors.pop(MEAN_TENSOR, None)
    if (mean is None) != (record.normalization is None):
        raise FormatError(f"{path}: {MEAN_TENSOR} and the record's key 'normalization' must both be there or neither")
    width = record.d_in if record.places is None else sum(place.width for place in record.places)
    if mean is not None and list(mean.shape) != [width]:
        raise FormatError(f"{path}: {MEAN_TENSOR} must be [{width}], got {list(mean.shape)}")
    if mean is not None and not bool(torch.isfinite(mean).all()):
        raise FormatError(f"{path}: {MEAN_TENSOR} holds NaN or infinity; train or copy it again")
    return mean


@torch.no_grad()
def _fill(dictionary: AbstractDictionary, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors into the parameters they are named after, refusing any that does not fit."""
    parameters: dict[str, Any] = dict(dictionary.named_parameters())
    if set(tensors) != set(parameters):
        raise FormatError(f"{path}: expected tensors {sorted(parameters)}, got {sorted(tensors)}")
    for name, parameter in parameters.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape or not tensor.is_floating_point():
            raise FormatError(
                f"{path}: {name} must be {list(parameter.shape)} of a floating type, "
                f"got {list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{path}: {name} holds NaN or infinity; train or copy it again")
        parameter.data = tensor.clone()
    deviation = (dictionary.atoms.norm(dim=1) - 1).abs()
    if float(deviation.max()) > NORM_TOLERANCE:
        worst = int(deviation.argmax())
        norm = float(dictionary.atoms[worst].norm())
        raise FormatError(f"{path}: atoms must have norm 1, but atom {worst} has norm {norm:.6g}; the file was altered")
