"""Tensors of foreign files, and what a row of them must code to."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.formats import load_dictionary

D, M = 6, 15
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def drawn(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def uneven(rows: Tensor) -> Tensor:
    """Rows of norms between 0.5 and 2."""
    norms = torch.linspace(0.5, 2, len(rows))[:, None]
    return torch.nn.functional.normalize(rows, dim=1) * norms


def inputs(n: int = 32, d: int = D) -> Tensor:
    return 0.5 + torch.randn(n, d, generator=torch.Generator().manual_seed(9))


def keep_largest(f: Tensor, k: int, rank: Tensor | None = None) -> Tensor:
    """Rectified, and 0 but for the k of each row whose rank is largest."""
    ranked = f if rank is None else rank
    kth = ranked.sort(dim=1, descending=True).values[:, k - 1 : k]
    return torch.where(ranked >= kth, f, 0.0).relu()


def write_files(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], names: tuple[str, str]) -> Path:
    """A configuration and a safetensors file under the names of a format."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / names[1])
    return folder


def assert_codes(dictionary: AbstractDictionary, x: Tensor, f: Tensor, W_dec: Tensor, y: Tensor) -> None:
    """Our values are theirs times the norm of what a latent writes; reconstructions are equal."""
    torch.testing.assert_close(dictionary.encode_dense(x), f * W_dec.norm(dim=1), **CLOSE)
    torch.testing.assert_close(dictionary(x), y, **CLOSE)
    assert 0 < (f > 0).float().mean() < 1


def assert_same(path: Path, dictionary: AbstractDictionary) -> AbstractDictionary:
    """What was written codes and reconstructs as before."""
    again = load_dictionary(path)
    x = inputs(d=dictionary.d_in)
    torch.testing.assert_close(again.encode_dense(x), dictionary.encode_dense(x), **CLOSE)
    torch.testing.assert_close(again(x), dictionary(x), **CLOSE)
    assert (again.encode_dense(x) > 0).any()
    return again


def shaken(dictionary: AbstractDictionary) -> AbstractDictionary:
    """Parameters away from their start, atoms of norm 1."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name in ("log_theta", "log_threshold"):
                parameter.fill_(-1.0)
            elif name == "selection":
                parameter.add_(torch.rand(parameter.shape, generator=g))
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
        dictionary.normalize_atoms_()
    return dictionary.requires_grad_(False)
