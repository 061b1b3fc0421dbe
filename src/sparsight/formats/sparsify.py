"""sparsify: a folder with `cfg.json` and `sae.safetensors` (docs/formats.md has the table of keys).

Written against versions 1.0 to 1.3.3 of eai-sparsify, whose current reader accepts what is written here.
"""

from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    TopKDictionary,
    TranscoderDictionary,
    WeightedTopKDictionary,
)
from sparsight.errors import FormatError
from sparsight.formats.safe_reading import Tensors, read_json, read_safetensors
from sparsight.formats.sites import module_of_sites, put_at, sites_of_module
from sparsight.formats.weights import Weights, dictionary_of, integer
from sparsight.formats.writing import save_safetensors, write_pair

WEIGHTS_FILE, CONFIG_FILE = "sae.safetensors", "cfg.json"
# Above the folders of all modules: the settings of the run, with the name of the model.
RUN_FILE = "config.json"
# What the library takes a key to be where a file lacks it.
EXPANSION, K = 32, 32


def can_read(path: Path) -> bool:
    """Whether a folder holds `sae.safetensors` and `cfg.json`."""
    return (path / WEIGHTS_FILE).is_file() and (path / CONFIG_FILE).is_file()


def read(path: Path) -> AbstractDictionary:
    """Read an autoencoder or a transcoder of sparsify, with or without a skip; it takes raw activations as it is.

    Values are those of sparsify times the norm of the decoder's row. Site and model come from the name of the folder,
    which is that of the module, and from the run's own file above it.

    Raises:
        FormatError: a file is damaged, or holds something that cannot be carried over; the key or tensor is named.
    """
    where = path / CONFIG_FILE
    config = read_json(where)
    tensors = Tensors(read_safetensors(path / WEIGHTS_FILE), path / WEIGHTS_FILE)
    d_in = _width(config, where)
    n = _n_latents(config, d_in, where)
    transcode = _flag(config, "transcode", where)
    skip = _flag(config, "skip_connection", where)
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise FormatError(
            f"{where}: key 'activation' is {activation!r:.40}: latents here are the k largest of all, not of groups"
        )
    if _flag(config, "signed", where):
        raise FormatError(f"{where}: key 'signed' is true: its values have either sign, and values here do not")
    b_dec = _of(tensors, ("b_dec", "decoder.bias"), d_in)
    weights = Weights(
        W_enc=_encoder(tensors, d_in, n),
        b_enc=_of(tensors, ("encoder.bias", "b_enc"), n),
        W_dec=tensors.take("W_dec", n, d_in) if "W_dec" in tensors else tensors.take("decoder.weight", d_in, n).T,
        b_dec=b_dec,
        b_in=None if transcode else b_dec,
        k=integer(config.get("k", K), "k", where),
        W_skip=tensors.take("W_skip", d_in, d_in).T if skip else None,
        transcoder=transcode or skip,
    )
    dictionary = dictionary_of(weights, where)
    tensors.refuse_rest("a transcoder" if transcode else "an autoencoder")
    _locate(dictionary, config, path, transcode)
    return dictionary.requires_grad_(False)


def _width(config: dict[str, Any], where: Path) -> int:
    if "d_in" not in config:
        raise FormatError(f"{where}: key 'd_in' is missing")
    return integer(config["d_in"], "d_in", where)


def _n_latents(config: dict[str, Any], d_in: int, where: Path) -> int:
    """`num_latents`, where 0 means a multiple of the width."""
    n = integer(config.get("num_latents", 0), "num_latents", where)
    return n or d_in * integer(config.get("expansion_factor", EXPANSION), "expansion_factor", where)


def _flag(config: dict[str, Any], key: str, where: Path) -> bool:
    found = config.get(key, False)
    if not isinstance(found, bool):
        raise FormatError(f"{where}: key {key!r} must be true or false, got {found!r:.40}")
    return found


def _of(tensors: Tensors, names: tuple[str, ...], width: int) -> Tensor:
    """An offset under one of its names; old files leave it out where it is 0."""
    for name in names:
        if name in tensors:
            return tensors.take(name, width)
    return torch.zeros(width)


def _encoder(tensors: Tensors, d_in: int, n: int) -> Tensor:
    return tensors.take("W_enc", d_in, n) if "W_enc" in tensors else tensors.take("encoder.weight", n, d_in).T


def _locate(dictionary: AbstractDictionary, config: dict[str, Any], path: Path, transcode: bool) -> None:
    """Site and model: of our own exports in the configuration, else of the folders' names and the run's file."""
    folder = path.resolve()
    if folder.name.startswith("seed"):
        folder = folder.parent
    run_file = folder.parent / RUN_FILE
    run = read_json(run_file) if run_file.is_file() else {}
    model, module = config.get("model", run.get("model")), config.get("hookpoint", folder.name)
    model = model if isinstance(model, str) else None
    source, target = sites_of_module(module if isinstance(module, str) else None, model)
    put_at(dictionary, model, (source if transcode else target, target))
    dictionary.provenance = {"imported_from": {"format": "sparsify", "config": config}, "hookpoint": module}
    length = config.get("ctx_len", run.get("ctx_len"))
    if isinstance(length, int):
        dictionary.provenance["context_size"] = length
    if isinstance(config.get("prepend_bos"), bool):
        dictionary.provenance["prepend_bos"] = config["prepend_bos"]


def write(dictionary: AbstractDictionary, path: Path) -> None:
    """Write a folder that `SparseCoder.load_from_disk` of sparsify opens, with the same code and reconstruction.

    Model, module and policies stand in `cfg.json` under keys that sparsify ignores and `read` knows.

    Raises:
        FormatError: sparsify has nothing that codes like this, or the folder cannot be written.
    """
    with torch.no_grad():
        config, tensors = _parts(dictionary)
    provenance = dictionary.provenance
    places = [place.site for place in dictionary.places] or [dictionary.site, dictionary.site]
    kept = {
        "model": dictionary.model or next((place.model for place in dictionary.places if place.model), None),
        "hookpoint": module_of_sites(*places) or provenance.get("hookpoint"),
        "ctx_len": provenance.get("context_size"),
        "prepend_bos": provenance.get("prepend_bos"),
    }
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, dictionary.n_latents // dictionary.d_in),
        "normalize_decoder": not isinstance(dictionary, WeightedTopKDictionary),
        "num_latents": dictionary.n_latents,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        **config,
        "d_in": dictionary.d_in,
        **{key: value for key, value in kept.items() if value is not None},
    }
    write_pair(path, WEIGHTS_FILE, tensors, CONFIG_FILE, cfg, save_safetensors)


@singledispatch
def _parts(dictionary: AbstractDictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What an architecture adds to `cfg.json`, and its tensors."""
    raise FormatError(
        f"sparsify has no sparse coder that codes like {dictionary.config.architecture}: it has TopK autoencoders and "
        "transcoders only"
    )


@_parts.register
def _(dictionary: TopKDictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    ones = torch.ones_like(dictionary.b_enc)
    return {"k": dictionary.config.k}, _tensors(dictionary, dictionary.W_enc, dictionary.b_enc, ones)


@_parts.register
def _(dictionary: WeightedTopKDictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return {"k": dictionary.config.k}, _tensors(dictionary, dictionary.W_enc, dictionary.b_enc, dictionary.selection)


@_parts.register
def _(dictionary: TranscoderDictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    k, (d_in, d_out) = dictionary.config.k, (dictionary.d_in, dictionary.d_out)
    if k is None:
        raise FormatError("transcoder without k: sparsify has TopK only")
    if d_in != d_out:
        raise FormatError(f"transcoder from width {d_in} to width {d_out}: those of sparsify have one width for both")
    selection = dictionary.selection if dictionary.config.weighted else torch.ones_like(dictionary.b_enc)
    # With a skip an autoencoder is read as a transcoder from a site to itself.
    transcode = dictionary.places[0].site is None or dictionary.places[0].site != dictionary.places[1].site
    b_dec = dictionary.b_dec if dictionary.W_skip is None else dictionary.b_dec - dictionary.b_in @ dictionary.W_skip
    subtracted = torch.zeros_like(b_dec) if transcode else b_dec
    b_enc = dictionary.b_enc + (subtracted - dictionary.b_in) @ dictionary.W_enc
    tensors = {**_tensors(dictionary, dictionary.W_enc, b_enc, selection), "b_dec": b_dec}
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip.T
    skip = dictionary.W_skip is not None
    return {"k": k, "transcode": transcode, "skip_connection": skip, "normalize_decoder": False}, tensors


def _tensors(dictionary: AbstractDictionary, W_enc: Tensor, b_enc: Tensor, selection: Tensor) -> dict[str, Tensor]:
    """Ranked by what the encoder gives; rows of the decoder carry the norm that is missing."""
    return {
        "encoder.weight": (W_enc * selection).T,
        "encoder.bias": b_enc * selection,
        "W_dec": dictionary.atoms / selection[:, None],
        "b_dec": dictionary.b_dec,
    }
