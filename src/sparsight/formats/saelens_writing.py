"""Our dictionaries as SAELens writes its own."""

from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    BatchTopKDictionary,
    GatedDictionary,
    JumpReLUDictionary,
    MatchingPursuitDictionary,
    MatryoshkaDictionary,
    PursuitDictionary,
    ReLUDictionary,
    TopKDictionary,
    TranscoderDictionary,
    WeightedTopKDictionary,
)
from sparsight.dictionaries.export import batchtopk_to_jumprelu, gated_to_jumprelu
from sparsight.errors import FormatError
from sparsight.formats.sites import hook_of_site
from sparsight.formats.writing import save_safetensors, write_pair
from sparsight.models import Site

# The version whose keys are written; later ones of the same major read them.
VERSION = "6.0.0"
Parts = tuple[dict[str, Any], dict[str, Tensor]]


def write(dictionary: AbstractDictionary, path: Path) -> None:
    """Write a folder that `SAE.load_from_disk` of SAELens opens, with the same code and reconstruction.

    Raises:
        FormatError: SAELens has nothing that codes like this, or the folder cannot be written.
    """
    with torch.no_grad():
        config, tensors = _parts(dictionary)
    site = dictionary.site
    cfg = {
        "d_in": dictionary.d_in,
        "d_sae": dictionary.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not isinstance(dictionary, TranscoderDictionary),
        "normalize_activations": "none",
        # Its models hand on the outputs of heads apart; the dictionary takes them side by side.
        "reshape_activations": "hook_z" if site is not None and site.kind == "attn_z" else "none",
        **config,
        "metadata": {**_metadata(dictionary), **config.get("metadata", {})},
    }
    write_pair(path, "sae_weights.safetensors", tensors, "cfg.json", cfg, save_safetensors)


def _metadata(dictionary: AbstractDictionary) -> dict[str, Any]:
    provenance = dictionary.provenance
    metadata: dict[str, Any] = {"sae_lens_version": VERSION, "model_name": dictionary.model}
    for key in ("prepend_bos", "context_size", "exclude_special_tokens", "seqpos_slice"):
        if provenance.get(key) is not None:
            metadata[key] = provenance[key]
    metadata["hook_name"] = _hook(dictionary.site, provenance.get("hook_name"))
    if isinstance(dictionary, TranscoderDictionary):
        metadata["hook_name_out"] = _hook(dictionary.places[1].site, provenance.get("hook_name_out"))
    return {key: value for key, value in metadata.items() if value is not None}


def _hook(site: Site | None, remembered: Any) -> str | None:
    """The hook of a site; where there is none, the one the dictionary came with, or our own name."""
    return hook_of_site(site) or remembered or (None if site is None else str(site))


@singledispatch
def _parts(dictionary: AbstractDictionary) -> Parts:
    """What an architecture adds to `cfg.json`, and its tensors."""
    raise FormatError(f"SAELens has no architecture that codes like {dictionary.config.architecture}")


def _tensors(dictionary: AbstractDictionary, W_enc: Tensor, **others: Tensor) -> dict[str, Tensor]:
    return {"W_enc": W_enc, "W_dec": dictionary.atoms, "b_dec": dictionary.b_dec, **others}


@_parts.register
def _(dictionary: TopKDictionary) -> Parts:
    config = {"architecture": "topk", "k": dictionary.config.k, "rescale_acts_by_decoder_norm": False}
    return config, _tensors(dictionary, dictionary.W_enc, b_enc=dictionary.b_enc)


@_parts.register
def _(dictionary: WeightedTopKDictionary) -> Parts:
    config = {"architecture": "topk", "k": dictionary.config.k, "rescale_acts_by_decoder_norm": False}
    tensors = _tensors(
        dictionary, dictionary.W_enc * dictionary.selection, b_enc=dictionary.b_enc * dictionary.selection
    )
    # Ranked by what the encoder gives, decoded with rows of the norm that is missing.
    return config, {**tensors, "W_dec": dictionary.atoms / dictionary.selection[:, None]}


@_parts.register
def _(dictionary: ReLUDictionary) -> Parts:
    W_enc, b_enc = dictionary.scaled_encoder
    return {"architecture": "standard"}, _tensors(dictionary, W_enc, b_enc=b_enc)


@_parts.register
def _(dictionary: JumpReLUDictionary) -> Parts:
    tensors = _tensors(dictionary, dictionary.W_enc, b_enc=dictionary.b_enc, threshold=dictionary.threshold)
    return {"architecture": "jumprelu"}, tensors


@_parts.register(BatchTopKDictionary)
@_parts.register(MatryoshkaDictionary)
def _(dictionary: BatchTopKDictionary | MatryoshkaDictionary) -> Parts:
    """As SAELens keeps its own finished ones: a jump rectifier that remembers what it was."""
    config, tensors = _parts(batchtopk_to_jumprelu(dictionary))
    details: dict[str, Any] = {"k": dictionary.config.k}
    name = "batchtopk"
    if isinstance(dictionary, MatryoshkaDictionary):
        name = "matryoshka_batchtopk"
        details["matryoshka_widths"] = [*dictionary.config.inner_widths, dictionary.n_latents]
        if dictionary.config.sampled is not None:
            raise FormatError(
                f"matryoshka with sampled={dictionary.config.sampled} prefixes: SAELens knows fixed ones only; export "
                "it as jumprelu first (batchtopk_to_jumprelu)"
            )
    metadata = {"training_architecture": name, "training_architecture_details": details}
    return {**config, "metadata": metadata}, tensors


@_parts.register
def _(dictionary: GatedDictionary) -> Parts:
    if dictionary.config.untied:
        raise FormatError("gated with untied magnitudes (untied=True): SAELens has one encoder for both halves")
    if not dictionary.config.heaviside:
        return _parts(gated_to_jumprelu(dictionary))
    r_mag = dictionary.magnitude_scale.log()
    gates = {"b_gate": dictionary.b_gate, "b_mag": dictionary.magnitude_bias.clone(), "r_mag": r_mag}
    return {"architecture": "gated"}, _tensors(dictionary, dictionary.W_enc, **gates)


@_parts.register
def _(dictionary: PursuitDictionary) -> Parts:
    config = dictionary.config
    if config.coder != "matching_pursuit" or config.polish:
        raise FormatError(
            f"pursuit with coder={config.coder!r}, polish={config.polish}: SAELens has matching pursuit without a "
            "refit only (coder='matching_pursuit', polish=False)"
        )
    rules = {"max_iterations": config.k, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    tensors: dict[str, Tensor] = {"W_dec": dictionary.atoms, "b_dec": dictionary.b_dec}
    return {"architecture": "matching_pursuit", **rules}, tensors


@_parts.register
def _(dictionary: MatchingPursuitDictionary) -> Parts:
    rules = {
        "max_iterations": dictionary.config.k,
        "residual_threshold": float(dictionary.residual_limit),
        "stop_on_duplicate_support": dictionary.config.stop_on_repeat,
    }
    return {"architecture": "matching_pursuit", **rules}, {"W_dec": dictionary.rows, "b_dec": dictionary.b_dec}


@_parts.register
def _(dictionary: TranscoderDictionary) -> Parts:
    config = dictionary.config
    if config.k is not None and config.k < dictionary.n_latents:
        raise FormatError(
            f"transcoder with k={config.k}: SAELens has transcoders without a limit on active latents only"
        )
    name = "transcoder" if dictionary.W_skip is None else "skip_transcoder"
    b_enc = dictionary.b_enc - dictionary.b_in @ dictionary.W_enc
    tensors = _tensors(dictionary, dictionary.W_enc, b_enc=b_enc)
    if config.jump:
        name = f"jumprelu_{name}"
        tensors["threshold"] = dictionary.log_threshold.exp()
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip.T
        tensors["b_dec"] = dictionary.b_dec - dictionary.b_in @ dictionary.W_skip
    return {"architecture": name, "d_out": dictionary.d_out}, tensors
