"""Llama Scope and the framework it comes from, Llamascopium, formerly Language-Model-SAEs (docs/formats.md).

Three layouts, told apart by their files and tensors: Llama Scope of 2024 (`hyperparams.json`, `checkpoints/final`), the
R1-Distill dictionaries of 2025 (`config.json`, linear layers) and the framework's own (`config.json`, `W_E` and so on).
Written against its code of May 2026.
"""

import math
import re
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    JumpReLUDictionary,
    ReLUDictionary,
    TopKDictionary,
    TranscoderDictionary,
    WeightedTopKDictionary,
)
from sparsight.errors import FormatError
from sparsight.formats.restoring import as_jumprelu
from sparsight.formats.safe_reading import Tensors, read_json, read_safetensors, refuse_link_out
from sparsight.formats.sites import hook_of_site, put_at, site_of_hook
from sparsight.formats.weights import Weights, dictionary_of, integer
from sparsight.formats.writing import save_safetensors, write_pair
from sparsight.models import Site

OLD_CONFIG, OLD_WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "sae_weights.safetensors"
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
NORM, SIDES = "dataset_average_activation_norm.", ("in", "out")

LLAMA = "meta-llama/Llama-3.1-8B"
POLICY = {"prepend_bos": True, "context_size": 1024}
WHY_NOT = {
    "batchtopk": "a token's code depends on its batch; convert it to 'jumprelu' there",
    "token-wise": "it divides each token by its own norm, which cannot be folded into the weights",
    "batch-wise": "it divides by a norm of the batch, so a token's code depends on the others",
}


def can_read(path: Path) -> bool:
    """Whether a folder holds a configuration and weights under the names of either layout."""
    old = (path / OLD_CONFIG).is_file() and (path / OLD_WEIGHTS).is_file()
    return old or ((path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file())


def read(path: Path) -> AbstractDictionary:
    """Read an autoencoder or a transcoder; normalisation by the mean norm of the data is folded in.

    Values are those there times the norm of the decoder's row, in raw units of what is reconstructed.

    Raises:
        FormatError: a file is damaged, or holds something that cannot be carried over; the key or tensor is named.
    """
    old = (path / OLD_CONFIG).is_file()
    where = path / (OLD_CONFIG if old else CONFIG_FILE)
    config = read_json(where)
    refuse_link_out(path / (OLD_WEIGHTS if old else WEIGHTS_FILE), path)
    tensors = Tensors(read_safetensors(path / (OLD_WEIGHTS if old else WEIGHTS_FILE)), where)
    hooks = _hooks(config)
    if old:
        weights = _of_2024(config, tensors, where, hooks[0] != hooks[1])
    elif "encoder.weight" in tensors:
        weights = _of_2025(config, tensors, where, hooks)
    else:
        weights = _of_framework(config, tensors, where, hooks)
    _check_widths(config, weights, where)
    dictionary = dictionary_of(weights, where)
    tensors.refuse_rest("a dictionary of Llamascopium")
    published = old or re.search(r"Llama3_1-8B|Llama-Scope-R1-Distill", path.resolve().as_posix()) is not None
    _locate(dictionary, config, hooks, published)
    return dictionary.requires_grad_(False)


def _hooks(config: dict[str, Any]) -> tuple[str | None, str | None]:
    found = config.get("hook_point_in")
    source = found if isinstance(found, str) else None
    out = config.get("hook_point_out")
    return source, out if isinstance(out, str) else source


def _scale(norm: Any, d: int, name: str, where: Path) -> float:
    """`sqrt(d)` over the mean norm of the data."""
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < math.inf:
        raise FormatError(f"{where}: {name} must be a positive number, got {norm!r:.40}")
    return math.sqrt(d) / norm


def _linear(tensors: Tensors) -> Weights:
    """Weights of two linear layers, stored with outputs as rows; nothing is subtracted from the input."""
    b_dec = tensors.take("decoder.bias", None)
    W_enc = tensors.take("encoder.weight", None, None).T
    W_dec = tensors.take("decoder.weight", len(b_dec), W_enc.shape[1]).T
    return Weights(W_enc=W_enc, b_enc=tensors.take("encoder.bias", len(W_dec)), W_dec=W_dec, b_dec=b_dec)


def _of_2024(config: dict[str, Any], tensors: Tensors, where: Path, transcoder: bool) -> Weights:
    """One threshold for all latents, in raw units: as the authors repaired it in SAELens."""
    parts = _linear(tensors)
    norms = config.get("dataset_average_activation_norm")
    if not isinstance(norms, dict) or "in" not in norms:
        raise FormatError(f"{where}: key 'dataset_average_activation_norm' must hold 'in' and 'out', got {norms!r:.60}")
    scale = _scale(norms["in"], len(parts.W_enc), "dataset_average_activation_norm.in", where)
    scale_out = _scale(norms.get("out", norms["in"]), len(parts.b_dec), "dataset_average_activation_norm.out", where)
    threshold = config.get("jump_relu_threshold")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise FormatError(f"{where}: key 'jump_relu_threshold' must be a number, got {threshold!r:.40}")
    thresholds = torch.full((len(parts.W_dec),), threshold * scale, dtype=torch.float64)
    weights = replace(parts, threshold=thresholds, transcoder=transcoder)
    return weights.of_scaled_input(scale, scale_out if transcoder else None)


def _of_2025(config: dict[str, Any], tensors: Tensors, where: Path, hooks: tuple[str | None, str | None]) -> Weights:
    if "log_jumprelu_threshold" not in tensors:
        raise FormatError(f"{where}: tensor 'log_jumprelu_threshold' is missing beside linear layers")
    parts = _linear(tensors)
    threshold = tensors.take("log_jumprelu_threshold", len(parts.W_dec)).double().exp()
    by_norm = config.get("sparsity_include_decoder_norm", False) is True
    weights = replace(parts, threshold=threshold, by_norm=by_norm, transcoder=hooks[0] != hooks[1])
    return _normalised(weights, config, tensors, where, hooks)


def _of_framework(
    config: dict[str, Any], tensors: Tensors, where: Path, hooks: tuple[str | None, str | None]
) -> Weights:
    if config.get("sae_type", "sae") != "sae":
        raise FormatError(
            f"{where}: key 'sae_type' is {config['sae_type']!r:.40}: only 'sae', of one input and one output, is read"
        )
    if config.get("use_glu_encoder", False) is not False:
        raise FormatError(f"{where}: key 'use_glu_encoder' is true: no architecture here multiplies two encoders")
    W_enc = tensors.take("W_E", None, None)
    d, n = W_enc.shape
    act = config.get("act_fn", "relu")
    if act not in ("relu", "jumprelu", "topk"):
        raise FormatError(
            f"{where}: key 'act_fn' is {act!r:.40}: {WHY_NOT.get(str(act), 'known are relu, jumprelu, topk')}"
        )
    weights = Weights(
        W_enc=W_enc,
        b_enc=tensors.take("b_E", n),
        W_dec=tensors.take("W_D", n, d),
        b_dec=tensors.take("b_D", d) if config.get("use_decoder_bias", True) else torch.zeros(d),
        k=integer(config.get("top_k", 50), "top_k", where) if act == "topk" else None,
        threshold=tensors.take(LOG_THRESHOLD, n).double().exp() if act == "jumprelu" else None,
        by_norm=config.get("sparsity_include_decoder_norm", True) is True,
        transcoder=hooks[0] != hooks[1],
    )
    return _normalised(weights, config, tensors, where, hooks)


def _normalised(
    weights: Weights, config: dict[str, Any], tensors: Tensors, where: Path, hooks: tuple[str | None, str | None]
) -> Weights:
    """The weights for raw activations. Norms in the file mean something for `dataset-wise` only."""
    mode = config.get("norm_activation", "dataset-wise")
    names = [f"{NORM}{side if f'{NORM}{side}' in tensors else hook}" for hook, side in zip(hooks, SIDES, strict=True)]
    if mode == "inference":  # nobody need have set them
        tensors.drop(*names)
        return weights
    if mode != "dataset-wise":
        why = WHY_NOT.get(str(mode), "known are 'dataset-wise' and 'inference'")
        raise FormatError(f"{where}: key 'norm_activation' is {mode!r:.40}: {why}")
    d_in, d_out = weights.W_enc.shape[0], len(weights.b_dec)
    scale = _scale(tensors.number(names[0]), d_in, names[0], where)
    scale_out = scale if names[1] == names[0] else _scale(tensors.number(names[1]), d_out, names[1], where)
    tensors.drop(*names)
    return weights.of_scaled_input(scale, scale_out)


def _check_widths(config: dict[str, Any], weights: Weights, where: Path) -> None:
    d, n = weights.W_enc.shape
    factor, said_latents = config.get("expansion_factor"), config.get("d_sae")
    if said_latents is None and isinstance(factor, int | float):
        said_latents = int(d * factor)
    for key, said, found in (("d_model", config.get("d_model"), d), ("d_sae", said_latents, n)):
        if said is not None and said != found:
            raise FormatError(f"{where}: key {key!r} is {said!r:.40}, the tensors have {found}")


def _locate(
    dictionary: AbstractDictionary, config: dict[str, Any], hooks: tuple[str | None, str | None], published: bool
) -> None:
    model = config.get("model_name")
    model = model if isinstance(model, str) else (LLAMA if published else None)
    put_at(dictionary, model, [site_of_hook(hook) for hook in hooks])
    dictionary.provenance = {"imported_from": {"format": "llama_scope", "config": config}}
    names = {"hook_name": hooks[0], "hook_name_out": hooks[1] if hooks[0] != hooks[1] else None}
    dictionary.provenance.update({name: hook for name, hook in names.items() if hook is not None})
    if published:
        dictionary.provenance.update(POLICY)


def write(dictionary: AbstractDictionary, path: Path) -> None:
    """Write a folder as the framework's own `save_pretrained` and `save_hyperparameters` do, for raw activations.

    Raises:
        FormatError: it has nothing that codes like this, or the folder cannot be written.
    """
    with torch.no_grad():
        config, tensors = _parts(as_jumprelu(dictionary))
    provenance = dictionary.provenance
    sites = [place.site for place in dictionary.places] or [dictionary.site, dictionary.site]
    source, target = (
        _hook(site, provenance.get(key)) for site, key in zip(sites, ("hook_name", "hook_name_out"), strict=True)
    )
    if isinstance(dictionary, TranscoderDictionary) and (source is None or target is None or source == target):
        raise FormatError("transcoder whose sites are not known: a file of Llamascopium tells it by them")
    config = {
        "sae_type": "sae",
        "d_model": dictionary.d_in,
        "expansion_factor": dictionary.n_latents / dictionary.d_in,
        "use_decoder_bias": True,
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": False,
        "top_k": 50,
        "use_glu_encoder": False,
        **config,
        "hook_point_in": source or "",
        "hook_point_out": (target if isinstance(dictionary, TranscoderDictionary) else source) or "",
    }
    if int(dictionary.d_in * config["expansion_factor"]) != dictionary.n_latents:
        config["expansion_factor"] = math.nextafter(config["expansion_factor"], math.inf)
    if dictionary.model is not None:
        config["model_name"] = dictionary.model
    write_pair(path, WEIGHTS_FILE, tensors, CONFIG_FILE, config, save_safetensors)


def _hook(site: Site | None, remembered: Any) -> str | None:
    return hook_of_site(site) or (remembered if isinstance(remembered, str) else None)


@singledispatch
def _parts(dictionary: AbstractDictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What an architecture adds to `config.json`, and its tensors."""
    raise FormatError(f"Llamascopium has nothing that codes like {dictionary.config.architecture}")


def _tensors(dictionary: AbstractDictionary, W_enc: Tensor, b_enc: Tensor, **more: Tensor) -> dict[str, Tensor]:
    """Nothing is subtracted from the input there, so the offset goes into the encoder's."""
    b_enc = b_enc - dictionary.b_dec @ W_enc
    return {"W_E": W_enc, "b_E": b_enc, "W_D": dictionary.atoms, "b_D": dictionary.b_dec, **more}


@_parts.register
def _(dictionary: ReLUDictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return {"act_fn": "relu"}, _tensors(dictionary, *dictionary.scaled_encoder)


@_parts.register
def _(dictionary: TopKDictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return {"act_fn": "topk", "top_k": dictionary.config.k}, _tensors(dictionary, dictionary.W_enc, dictionary.b_enc)


@_parts.register
def _(dictionary: WeightedTopKDictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    selection = dictionary.selection
    tensors = _tensors(dictionary, dictionary.W_enc * selection, dictionary.b_enc * selection)
    # Ranked by what the encoder gives; rows of the decoder carry the norm that is missing.
    tensors["W_D"] = dictionary.atoms / selection[:, None]
    return {"act_fn": "topk", "top_k": dictionary.config.k}, tensors


@_parts.register
def _(dictionary: JumpReLUDictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    more = {LOG_THRESHOLD: dictionary.log_threshold}
    return {"act_fn": "jumprelu"}, _tensors(dictionary, dictionary.W_enc, dictionary.b_enc, **more)


@_parts.register
def _(dictionary: TranscoderDictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config, skip = dictionary.config, dictionary.W_skip is not None
    if skip or dictionary.d_in != dictionary.d_out:
        what = "a skip" if skip else f"widths {dictionary.d_in} and {dictionary.d_out}"
        raise FormatError(f"transcoder with {what}: those of Llamascopium have one width and no skip")
    selection = dictionary.selection if config.weighted else torch.ones_like(dictionary.b_enc)
    b_enc = dictionary.b_enc - dictionary.b_in @ dictionary.W_enc
    tensors = {
        "W_E": dictionary.W_enc * selection,
        "b_E": b_enc * selection,
        "W_D": dictionary.atoms / selection[:, None],
        "b_D": dictionary.b_dec,
    }
    if config.jump:
        return {"act_fn": "jumprelu"}, {**tensors, LOG_THRESHOLD: dictionary.log_threshold}
    if config.k is None:
        return {"act_fn": "relu"}, tensors
    return {"act_fn": "topk", "top_k": config.k}, tensors
