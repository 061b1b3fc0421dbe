"""OpenAI's sparse_autoencoder: one `.pt` file of tensors (docs/formats.md). Read only.

Written against its code of June 2024, whose own strict reader refuses what its current writer writes.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, TokenNormTopK, TokenNormTopKDictionary
from sparsight.errors import FormatError
from sparsight.formats.safe_reading import Tensors, read_torch
from sparsight.formats.weights import Weights, dictionary_of, integer, unit_atoms
from sparsight.models import Site

# Marks that the file is one of theirs, and what says nothing about the code.
MARKS = {"pre_bias", "latent_bias", "encoder.weight"}
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
# Added to a token's deviation before it is divided by it.
EPSILON = 1e-5
SITES = {
    "mlp_post_act": "mlp_act",
    "resid_delta_attn": "attn_out",
    "resid_delta_mlp": "mlp_out",
    "resid_post_attn": "resid_mid",
    "resid_post_mlp": "resid_post",
}


def can_read(path: Path) -> bool:
    """Whether this is a file that ends in `.pt`, or one without an ending that is a zip archive. Opens no weights."""
    if not path.is_file() or path.suffix not in (".pt", ""):
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def read(path: Path) -> AbstractDictionary:
    """Read an autoencoder with a rectifier, or with TopK behind a standardisation of each token.

    Values are theirs times the norm of the decoder's column, and times the token's deviation where it is standardised:
    in raw units. Model and site are known where the folders have the names they were published under
    (`gpt2-small/resid_post_mlp_v5_32k/autoencoders/5.pt`).

    Raises:
        FormatError: the file is damaged, or holds something that cannot be carried over; the key is named.
    """
    found = read_torch(path)
    if not set(found) >= MARKS:
        raise FormatError(
            f"{path}: a .pt file of OpenAI's sparse_autoencoder has {', '.join(sorted(MARKS))}; this has "
            f"{', '.join(sorted(found))[:200]}"
        )
    activation, state = found.pop("activation", "ReLU"), found.pop("activation_state_dict", {})
    # The current writer leaves them, in full, beside the nested ones.
    nested = ("activation.k", "activation.postact_fn")
    flat: dict[str, Any] = {name: found.pop(name) for name in nested if name in found}
    tensors = Tensors(found, path)
    tensors.drop(*STATISTICS)
    weights = _weights(tensors)
    if activation == "ReLU":
        dictionary = dictionary_of(weights, path)
    elif activation == "TopK":
        dictionary = _token_norm(weights, _k(state, flat, path), path)
    else:
        raise FormatError(f"{path}: key 'activation' is {activation!r:.40}: known are 'ReLU' and 'TopK'")
    tensors.refuse_rest("an autoencoder of sparse_autoencoder")
    dictionary.provenance = {"imported_from": {"format": "openai", "activation": activation}}
    named = re.search(rf"/gpt2-small/({'|'.join(SITES)})[^/]*/autoencoders/(\d+)(?:\.pt)?$", path.resolve().as_posix())
    if named is not None:
        dictionary.model, dictionary.site = "gpt2", Site(int(named[2]), SITES[named[1]])
    return dictionary.requires_grad_(False)


def _weights(tensors: Tensors) -> Weights:
    b_dec = tensors.take("pre_bias", None)
    encoder = tensors.take("encoder.weight", None, len(b_dec))
    n = len(encoder)
    tied = "decoder.weight" not in tensors
    W_dec = encoder if tied else tensors.take("decoder.weight", len(b_dec), n).T
    return Weights(W_enc=encoder.T, b_enc=tensors.take("latent_bias", n), W_dec=W_dec, b_dec=b_dec, b_in=b_dec)


def _k(state: Any, flat: dict[str, Any], path: Path) -> int:
    if not isinstance(state, dict):
        raise FormatError(f"{path}: key 'activation_state_dict' must be an object, got {type(state).__name__}")
    rectifier = state.get("postact_fn", flat.get("activation.postact_fn", "ReLU"))
    if rectifier != "ReLU":
        raise FormatError(
            f"{path}: key 'postact_fn' is {rectifier!r:.40}: values here are never negative, so only 'ReLU'"
        )
    k = state.get("k", flat.get("activation.k"))
    return integer(k.item() if isinstance(k, Tensor) and k.numel() == 1 else k, "k", path)


def _token_norm(weights: Weights, k: int, path: Path) -> AbstractDictionary:
    n, norms = len(weights.W_dec), weights.norms
    if not 1 <= k <= n:
        raise FormatError(f"{path}: k must be between 1 and the {n} latents, got k={k}")
    if float(norms.min()) <= 0:
        raise FormatError(
            f"{path}: column {int(norms.argmin())} of decoder.weight is 0: its rank cannot be carried over"
        )
    if len(weights.b_dec) < 2:
        raise FormatError(f"{path}: activations of width 1 cannot be standardised one by one")
    dictionary = TokenNormTopKDictionary(TokenNormTopK(n, k), unit_atoms(weights.W_dec))
    W_enc, b_enc = weights.W_enc.double() * norms, weights.b_enc.double() * norms
    filled = {"W_enc": W_enc, "b_enc": b_enc, "b_norm": weights.b_dec, "selection": 1 / norms}
    for name, tensor in filled.items():
        dictionary.get_parameter(name).data = tensor.to(torch.float32).contiguous()
    dictionary.epsilon.data = torch.tensor(EPSILON)
    return dictionary
