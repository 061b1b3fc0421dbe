"""dictionary_learning: a folder with `ae.pt` and `config.json` (docs/formats.md has the table of keys).

Written against version 0.1.0 and the code of August 2025 of that library.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, JumpReLUDictionary
from sparsight.errors import FormatError
from sparsight.formats import dictionary_learning_writing
from sparsight.formats.restoring import as_batch_topk
from sparsight.formats.safe_reading import Tensors, read_json, read_torch
from sparsight.formats.sites import hub_name, site_of_submodule
from sparsight.formats.weights import Weights, dictionary_of, integer

WEIGHTS_FILE, CONFIG_FILE = "ae.pt", "config.json"
CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
)

write = dictionary_learning_writing.write


def can_read(path: Path) -> bool:
    """Whether a folder holds `ae.pt`, or a file is called so, or it is one of the checkpoints `ae_STEP.pt`."""
    if path.is_dir():
        return (path / WEIGHTS_FILE).is_file()
    return path.is_file() and path.suffix == ".pt" and (path.stem == "ae" or path.stem.startswith("ae_"))


def read(path: Path) -> AbstractDictionary:
    """Read a trained dictionary, a checkpoint of its weights, or a backup.

    Values are those of dictionary_learning times the norm of the decoder's column, hence equal to them where it keeps
    columns of norm 1.

    Args:
        path: The folder, or the file of weights; the configuration is beside it, or above `checkpoints/`.
    Raises:
        FormatError: a file is damaged, or holds something that cannot be carried over; the key or tensor is named.
    """
    where = path / WEIGHTS_FILE if path.is_dir() else path
    config = _config(where)
    trainer = config.get("trainer", {})
    tensors = Tensors(*_state(where))
    name = _class(trainer, tensors, where)
    dictionary = _dictionary(name, tensors, where)
    tensors.refuse_rest(name)
    for key, found in (("activation_dim", dictionary.d_in), ("dict_size", dictionary.n_latents)):
        if trainer.get(key, found) != found:
            raise FormatError(f"{where}: config.json says {key}={trainer[key]!r:.40}, the tensors have {found}")
    _locate(dictionary, config)
    dictionary.provenance = {"imported_from": {"format": "dictionary_learning", "class": name, "config": config}}
    if isinstance(trainer.get("submodule_name"), str):
        dictionary.provenance["submodule_name"] = trainer["submodule_name"]
    return dictionary.requires_grad_(False)


def _config(where: Path) -> dict[str, Any]:
    for folder in (where.parent, where.parent.parent):
        if (folder / CONFIG_FILE).is_file():
            config = read_json(folder / CONFIG_FILE)
            if not isinstance(config.get("trainer", {}), dict) or not isinstance(config.get("buffer", {}), dict):
                raise FormatError(f"{folder / CONFIG_FILE}: keys 'trainer' and 'buffer' must be objects")
            return config
        if where.parent.name != "checkpoints":
            break
    return {}


def _state(where: Path) -> tuple[dict[str, Any], Path]:
    """The tensors; out of a backup, those of the dictionary in raw units."""
    found = read_torch(where)
    if "ae" not in found:
        return found, where
    state, factor = found["ae"], found.get("norm_factor")
    if not isinstance(state, dict):
        raise FormatError(f"{where}: key 'ae' of a backup must hold tensors, got {type(state).__name__}")
    if factor is not None:
        raise FormatError(
            f"{where}: key 'norm_factor' is {factor!r:.40}: a backup made in the course of training, whose offsets are "
            "in normalised units; use the finished ae.pt, or a checkpoint"
        )
    return state, where


def _class(trainer: dict[str, Any], tensors: Tensors, where: Path) -> str:
    """The class that the configuration names, or the only one that has such tensors."""
    name = trainer.get("dict_class")
    if name is not None:
        if name not in CLASSES:
            raise FormatError(f"{where}: key 'dict_class' is {name!r:.40}, known are {', '.join(CLASSES)}")
        return str(name)
    for mark, only in (
        ("r_mag", "GatedAutoEncoder"),
        ("group_sizes", "MatryoshkaBatchTopKSAE"),
        ("decoder.bias", "AutoEncoderNew"),
        ("bias", "AutoEncoder"),
    ):
        if mark in tensors:
            return only
    if "threshold" in tensors and "k" not in tensors:
        return "JumpReluAutoEncoder"
    raise FormatError(
        f"{where}: without a config.json that names the 'dict_class' these tensors may be of AutoEncoderTopK or of "
        "BatchTopKSAE, which code differently; put the config.json beside the file"
    )


def _dictionary(name: str, tensors: Tensors, where: Path) -> AbstractDictionary:
    if name == "GatedAutoEncoder":
        return dictionary_of(_gated(tensors), where)
    if name == "AutoEncoder":
        return dictionary_of(_linear(tensors, tensors.take("bias", None)), where)
    if name == "AutoEncoderNew":
        weights = _linear(tensors, tensors.take("decoder.bias", None))
        return dictionary_of(replace(weights, b_in=None), where)
    if name == "JumpReluAutoEncoder":
        return dictionary_of(_plain(tensors, subtracts=False, threshold=True), where)
    linear = name != "MatryoshkaBatchTopKSAE"
    weights = _linear(tensors, tensors.take("b_dec", None)) if linear else _plain(tensors, subtracts=True)
    k = _k(tensors, where)
    threshold = tensors.number("threshold")
    if name == "AutoEncoderTopK":  # its threshold is for another way of coding, off by default
        return dictionary_of(replace(weights, k=k), where)
    widths = None if linear else _prefixes(tensors, len(weights.W_dec))
    return _batch_topk(weights, k, threshold, widths, where)


def _linear(tensors: Tensors, b_dec: Tensor) -> Weights:
    """Weights of two linear layers, stored with outputs as rows; the offset at the end is subtracted at the start."""
    d = len(b_dec)
    encoder = tensors.take("encoder.weight", None, d)
    n = len(encoder)
    return Weights(
        W_enc=encoder.T,
        b_enc=tensors.take("encoder.bias", n),
        W_dec=tensors.take("decoder.weight", d, n).T,
        b_dec=b_dec,
        b_in=b_dec,
    )


def _gated(tensors: Tensors) -> Weights:
    b_dec = tensors.take("decoder_bias", None)
    encoder = tensors.take("encoder.weight", None, len(b_dec))
    n = len(encoder)
    return Weights(
        W_enc=encoder.T,
        b_enc=tensors.take("gate_bias", n),
        W_dec=tensors.take("decoder.weight", len(b_dec), n).T,
        b_dec=b_dec,
        b_in=b_dec,
        r_mag=tensors.take("r_mag", n),
        b_mag=tensors.take("mag_bias", n),
    )


def _plain(tensors: Tensors, *, subtracts: bool, threshold: bool = False) -> Weights:
    b_dec = tensors.take("b_dec", None)
    W_enc = tensors.take("W_enc", len(b_dec), None)
    n = W_enc.shape[1]
    return Weights(
        W_enc=W_enc,
        b_enc=tensors.take("b_enc", n),
        W_dec=tensors.take("W_dec", n, len(b_dec)),
        b_dec=b_dec,
        b_in=b_dec if subtracts else None,
        threshold=tensors.take("threshold", n) if threshold else None,
    )


def _k(tensors: Tensors, where: Path) -> int:
    return integer(tensors.number("k"), "k", where)


def _prefixes(tensors: Tensors, n_latents: int) -> list[int]:
    """Widths of the prefixes, from the sizes of the groups that they add."""
    sizes = tensors.value("group_sizes")
    whole = isinstance(sizes, Tensor) and not sizes.is_floating_point() and sizes.ndim == 1
    if not whole or bool((sizes < 1).any()) or int(sizes.sum()) != n_latents:
        raise FormatError(f"{tensors.path}: group_sizes must be positive whole numbers that sum to {n_latents}")
    widths: list[int] = sizes.cumsum(dim=0).tolist()
    return widths


def _batch_topk(
    weights: Weights, k: int, threshold: float, widths: list[int] | None, where: Path
) -> AbstractDictionary:
    if threshold < 0:
        raise FormatError(
            f"{where}: threshold is {threshold:g}, which stands for one that was never set (training ended before "
            "threshold_start_step): every positive pre-activation would be active; train longer, or set it"
        )
    thresholds = torch.full((len(weights.W_dec),), threshold, dtype=torch.float64)
    dictionary = dictionary_of(replace(weights, threshold=thresholds), where)
    assert isinstance(dictionary, JumpReLUDictionary)
    return as_batch_topk(dictionary, k, widths)


def _locate(dictionary: AbstractDictionary, config: dict[str, Any]) -> None:
    trainer, buffer = config.get("trainer", {}), config.get("buffer", {})
    model, submodule, layer = (trainer.get(key) for key in ("lm_name", "submodule_name", "layer"))
    dictionary.model = hub_name(model) if isinstance(model, str) else None
    if isinstance(submodule, str):
        layer = layer if isinstance(layer, int) and not isinstance(layer, bool) else None
        dictionary.site = site_of_submodule(submodule, layer, buffer.get("io"))
