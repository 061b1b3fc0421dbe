"""Our dictionaries as dictionary_learning writes its own."""

from functools import singledispatch
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import (
    AbstractDictionary,
    BatchTopKDictionary,
    GatedDictionary,
    JumpReLUDictionary,
    MatryoshkaDictionary,
    ReLUDictionary,
    TopKDictionary,
)
from sparsight.dictionaries.export import gated_to_jumprelu
from sparsight.errors import FormatError
from sparsight.formats.sites import submodule_of_site
from sparsight.formats.writing import save_torch, write_pair

Parts = tuple[dict[str, Any], dict[str, Tensor]]
# What its TopK class holds for a threshold that was never set.
UNSET = -1.0


def write(dictionary: AbstractDictionary, path: Path) -> None:
    """Write a folder that `load_dictionary` of dictionary_learning opens, with the same code and reconstruction.

    Raises:
        FormatError: dictionary_learning has nothing that codes like this, or the folder cannot be written.
    """
    with torch.no_grad():
        config, tensors = _parts(dictionary)
    site, provenance = dictionary.site, dictionary.provenance
    trainer = {
        **config,
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.n_latents,
        "lm_name": dictionary.model,
        "layer": None if site is None else site.layer,
        "submodule_name": submodule_of_site(site) or provenance.get("submodule_name"),
    }
    write_pair(path, "ae.pt", tensors, "config.json", {"trainer": trainer}, save_torch)


@singledispatch
def _parts(dictionary: AbstractDictionary) -> Parts:
    """What an architecture adds to the configuration, and its tensors."""
    raise FormatError(f"dictionary_learning has no class that codes like {dictionary.config.architecture}")


def _linear(dictionary: AbstractDictionary, W_enc: Tensor, b_enc: Tensor, offset: str) -> dict[str, Tensor]:
    return {
        "encoder.weight": W_enc.T,
        "encoder.bias": b_enc,
        "decoder.weight": dictionary.atoms.T,
        offset: dictionary.b_dec,
    }


def _limits(k: int, threshold: Tensor | float) -> dict[str, Tensor]:
    value = torch.as_tensor(threshold, dtype=torch.float32).reshape(())
    return {"k": torch.tensor(k, dtype=torch.int32), "threshold": value.clone()}


@_parts.register
def _(dictionary: ReLUDictionary) -> Parts:
    return {"dict_class": "AutoEncoder"}, _linear(dictionary, *dictionary.scaled_encoder, "bias")


@_parts.register
def _(dictionary: TopKDictionary) -> Parts:
    tensors = _linear(dictionary, dictionary.W_enc, dictionary.b_enc, "b_dec")
    k = dictionary.config.k
    return {"dict_class": "AutoEncoderTopK", "k": k}, {**tensors, **_limits(k, UNSET)}


@_parts.register
def _(dictionary: BatchTopKDictionary) -> Parts:
    tensors = _linear(dictionary, dictionary.W_enc, dictionary.b_enc, "b_dec")
    k = dictionary.config.k
    return {"dict_class": "BatchTopKSAE", "k": k}, {**tensors, **_limits(k, dictionary.theta)}


@_parts.register
def _(dictionary: MatryoshkaDictionary) -> Parts:
    config = dictionary.config
    if config.sampled is not None:
        raise FormatError(
            f"matryoshka with sampled={config.sampled} prefixes: dictionary_learning knows fixed ones only; export it "
            "as jumprelu first (batchtopk_to_jumprelu)"
        )
    sizes = [b - a for a, b in pairwise((0, *config.inner_widths, dictionary.n_latents))]
    tensors = {
        "W_enc": dictionary.W_enc,
        "b_enc": dictionary.b_enc,
        "W_dec": dictionary.atoms,
        "b_dec": dictionary.b_dec,
        "group_sizes": torch.tensor(sizes),
        **_limits(config.k, dictionary.theta),
    }
    return {"dict_class": "MatryoshkaBatchTopKSAE", "k": config.k, "group_sizes": sizes}, tensors


@_parts.register
def _(dictionary: JumpReLUDictionary) -> Parts:
    """Its class subtracts nothing from the input, so the offset goes into the encoder's."""
    tensors = {
        "W_enc": dictionary.W_enc,
        "b_enc": dictionary.b_enc - dictionary.b_dec @ dictionary.W_enc,
        "W_dec": dictionary.atoms,
        "b_dec": dictionary.b_dec,
        "threshold": dictionary.threshold,
    }
    return {"dict_class": "JumpReluAutoEncoder"}, tensors


@_parts.register
def _(dictionary: GatedDictionary) -> Parts:
    if dictionary.config.untied:
        raise FormatError("gated with untied magnitudes (untied=True): dictionary_learning has one encoder for both")
    if not dictionary.config.heaviside:
        return _parts(gated_to_jumprelu(dictionary))
    tensors = {
        "encoder.weight": dictionary.W_enc.T,
        "decoder.weight": dictionary.atoms.T,
        "decoder_bias": dictionary.b_dec,
        "r_mag": dictionary.magnitude_scale.log(),
        "gate_bias": dictionary.b_gate,
        "mag_bias": dictionary.magnitude_bias.clone(),
    }
    return {"dict_class": "GatedAutoEncoder"}, tensors
