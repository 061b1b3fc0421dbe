"""Codes as the definitions of the losses write them: dense, whole batches at once, for comparing and not for speed."""

from typing import Any

import torch
from jaxtyping import Bool, Float
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


def pre_activations(dictionary: AbstractDictionary, x: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
    """`(x - b_dec) W_enc + b_enc`, with the norms of the decoder where those are free; of the gate for Gated."""
    weights: Any = dictionary
    if isinstance(dictionary, ReLUDictionary):
        W_enc, b_enc = weights.scaled_encoder
    elif isinstance(dictionary, GatedDictionary):
        W_enc, b_enc = weights.W_enc, weights.b_gate
    else:
        W_enc, b_enc = weights.W_enc, weights.b_enc
    return torch.addmm(b_enc, x - dictionary.b_dec, W_enc)


def training_code(dictionary: AbstractDictionary, x: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
    """The code of a training step, values carrying the norm of their decoder row.

    For BatchTopK and Matryoshka it is the selection over the batch, not the threshold of inference.
    """
    pre = pre_activations(dictionary, x)
    if isinstance(dictionary, JumpReLUDictionary):
        return pre * (pre > dictionary.threshold)
    if isinstance(dictionary, GatedDictionary):
        _, magnitudes, is_open = dictionary.paths(x)
        return magnitudes * is_open
    if isinstance(dictionary, TopKDictionary):
        return largest(pre.relu(), dictionary.config.k)
    if isinstance(dictionary, BatchTopKDictionary | MatryoshkaDictionary):
        flat = pre.relu().flatten().unsqueeze(0)
        return largest(flat, dictionary.config.k * len(x)).reshape(pre.shape)
    return pre.relu()


def largest(values: Float[Tensor, "b m"], k: int) -> Float[Tensor, "b m"]:
    """The `k` largest of each row in their places, 0 elsewhere."""
    kept, indices = values.topk(min(k, values.shape[1]), dim=1)
    return torch.zeros_like(values).scatter(1, indices, kept)


def revived(
    dictionary: AbstractDictionary, x: Float[Tensor, "b d"], dead: Bool[Tensor, " m"], k_aux: int, *, rectify: bool
) -> Float[Tensor, "b d"]:
    """What the `k_aux` dead latents of largest pre-activation decode to in each token, without offset."""
    pre = pre_activations(dictionary, x)[:, dead]
    return largest(pre.relu() if rectify else pre, k_aux) @ dictionary.atoms[dead]
