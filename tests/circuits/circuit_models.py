"""Tiny models in float64 with random dictionaries at their sites."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from models.tiny_models import KeepFloat64, save_tiny

from sparsight.dictionaries import AbstractDictionary, DictionaryConfig, Transcoder
from sparsight.dictionaries.base import Place
from sparsight.models import LanguageModel, Site, load_model

__all__ = ["KeepFloat64", "dictionary_at", "tiny"]


@cache
def tiny(name: str) -> LanguageModel:
    """A tiny model of a family, random weights, float64."""
    with tempfile.TemporaryDirectory() as folder:
        lm = load_model(save_tiny(name, Path(folder) / name), device="cpu", dtype="float32")
    lm.model.double()
    for buffer_name, buffer in lm.model.named_buffers():
        if buffer_name.endswith("inv_freq"):  # rotations are computed in float32 by all releases
            buffer.data = buffer.float()
    return lm


def dictionary_at(
    lm: LanguageModel, site: Site | str, config: DictionaryConfig, *, seed: int = 0
) -> AbstractDictionary:
    """A random dictionary whose codes of a model's activations are neither empty nor full, in float64."""
    site = Site.parse(site)
    g = torch.Generator().manual_seed(1000 + seed)
    dictionary = config.build(lm.width(site), g).double()
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name != "atoms" and parameter.is_floating_point():
                parameter += 0.1 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        if hasattr(dictionary, "b_gate"):
            dictionary.b_gate -= 0.5
    dictionary.site = site
    if isinstance(config, Transcoder):
        reads = Site(site.layer, "mlp_in")
        dictionary.places = (Place(lm.width(reads), reads), Place(lm.width(site), site))
    return dictionary
