"""Tiny models in float64, loaded as a user loads a folder, and a dictionary for them."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from models.tiny_models import save_tiny

from sparsight.dictionaries import AbstractDictionary, JumpReLU, ReLU
from sparsight.models import LanguageModel, Site, load_model


@cache
def tiny_model(name: str) -> LanguageModel:
    lm = load_model(save_tiny(name, Path(mkdtemp()) / name), device="cpu")
    lm.model.double()
    for buffer_name, buffer in lm.model.named_buffers():
        if buffer_name.endswith("inv_freq"):
            buffer.data = buffer.float()
    return lm


@cache
def tiny_dictionary(site: str = "0.resid_post", n_latents: int = 40, d: int = 16) -> AbstractDictionary:
    """Random atoms, and an encoder that is not their transpose: encoding what was decoded gives other values."""
    dictionary = JumpReLU(n_latents, l0=1.0).build(d, torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        dictionary.W_enc.add_(0.1 * torch.randn(d, n_latents, generator=torch.Generator().manual_seed(6)))
    dictionary.site = Site.parse(site)
    return dictionary


def tied_dictionary(site: str = "0.resid_post", d: int = 16) -> AbstractDictionary:
    """Orthonormal atoms that are their own encoder, without offsets: a latent is the positive part of a projection."""
    dictionary = ReLU(d, l1=1.0).build(d, torch.Generator().manual_seed(7)).double()
    atoms = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(8))).Q
    with torch.no_grad():
        dictionary.atoms.copy_(atoms)
        dictionary.W_enc.copy_(atoms.T)
        dictionary.b_enc.zero_()
        dictionary.b_dec.zero_()
    dictionary.site = Site.parse(site)
    return dictionary


def unit(d: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=0
    )
