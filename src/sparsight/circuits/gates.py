"""What decides which latents of a dictionary are active, as differentiable functions of the activation."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.circuits.nodes import AbstractNodes, DictionaryNodes
from sparsight.dictionaries import (
    AbstractDictionary,
    BatchTopKDictionary,
    GatedDictionary,
    JumpReLUDictionary,
    MatryoshkaDictionary,
    ReLUDictionary,
    TokenNormTopKDictionary,
    TopKDictionary,
    TranscoderDictionary,
    WeightedTopKDictionary,
)


@dataclass(frozen=True)
class Gate:
    """Latents are active where `prepare(x) weights + offset` exceeds a threshold, or is among the largest.

    Attributes:
        prepare: What is done to activations first.
        weights: `[d, n_latents]`.
        offset: `[n_latents]`, thresholds subtracted: a latent crosses its boundary at 0.
        ranked: The k largest are active, so that the boundary of one is where it overtakes another.
    """

    prepare: Callable[[Tensor], Tensor]
    weights: Tensor
    offset: Tensor
    ranked: bool


def gates_of(nodes: AbstractNodes) -> list[Gate]:
    """What decides about the latents of nodes; a latent is active where all its gates let it through.

    None for nodes that are always there (neurons, directions).

    Raises:
        ValueError: the dictionary chooses latents one after the other (a pursuit), so that nothing of the kind exists.
    """
    return _gates(nodes.dictionary) if isinstance(nodes, DictionaryNodes) else []


def _gates(dictionary: AbstractDictionary) -> list[Gate]:
    match dictionary:
        case ReLUDictionary():
            weights, offset = dictionary.scaled_encoder
            return [Gate(_less(dictionary.b_dec), weights, offset, False)]
        case JumpReLUDictionary():
            return [
                Gate(_less(dictionary.b_dec), dictionary.W_enc, dictionary.b_enc - dictionary.threshold, ranked=False)
            ]
        case BatchTopKDictionary() | MatryoshkaDictionary():
            return [Gate(_less(dictionary.b_dec), dictionary.W_enc, dictionary.b_enc - dictionary.theta, ranked=False)]
        case GatedDictionary():
            return _of_gated(dictionary)
        case TopKDictionary():
            return [Gate(_less(dictionary.b_dec), dictionary.W_enc, dictionary.b_enc, ranked=True)]
        case WeightedTopKDictionary():
            weighted = dictionary.W_enc * dictionary.selection
            return [Gate(_less(dictionary.b_dec), weighted, dictionary.b_enc * dictionary.selection, ranked=True)]
        case TranscoderDictionary():
            return [_of_transcoder(dictionary)]
        case TokenNormTopKDictionary():
            weighted = dictionary.W_enc * dictionary.selection
            return [Gate(_standardised(dictionary), weighted, dictionary.b_enc * dictionary.selection, ranked=True)]
    raise ValueError(
        f"a {dictionary.config.architecture} dictionary has no gates whose flips can be located; use jumps=False, or "
        "method='exact'"
    )


def _of_gated(dictionary: GatedDictionary) -> list[Gate]:
    prepare = _less(dictionary.b_dec)
    weights = dictionary.W_mag if dictionary.config.untied else dictionary.W_enc * dictionary.magnitude_scale
    magnitude = Gate(prepare, weights, dictionary.magnitude_bias, ranked=False)
    if not dictionary.config.heaviside:
        return [magnitude]
    return [Gate(prepare, dictionary.W_enc, dictionary.b_gate, ranked=False), magnitude]


def _of_transcoder(dictionary: TranscoderDictionary) -> Gate:
    config, prepare = dictionary.config, _less(dictionary.b_in)
    weights, offset = dictionary.W_enc, dictionary.b_enc
    if config.weighted:
        return Gate(prepare, weights * dictionary.selection, offset * dictionary.selection, ranked=True)
    if config.jump:
        return Gate(prepare, weights, offset - dictionary.log_threshold.exp(), ranked=False)
    return Gate(prepare, weights, offset, ranked=config.k is not None)


def _less(offset: Tensor) -> Callable[[Tensor], Tensor]:
    def prepare(x: Tensor) -> Tensor:
        return x - offset

    return prepare


def _standardised(dictionary: TokenNormTopKDictionary) -> Callable[[Tensor], Tensor]:
    def prepare(x: Tensor) -> Tensor:
        y = x - dictionary.b_dec
        centred = y - y.mean(dim=1, keepdim=True)
        norm: Tensor = centred.norm(dim=1, keepdim=True)
        deviation = norm / math.sqrt(y.shape[1] - 1) + dictionary.epsilon
        return centred / deviation - dictionary.b_norm

    return prepare


def crossing(
    gates: list[Gate], x: Float[Tensor, "m d"], before: Bool[Tensor, "m n_latents"], after: Bool[Tensor, "m n_latents"]
) -> Float[Tensor, ""]:
    """A number that crosses 0 where some latents of some activations change between silent and active.

    For one latent: its pre-activation less its threshold. For a ranked one: the pre-activation of the latent that comes
    in less that of the one that goes. Where several flip at exactly the same place (equal atoms), their sum, each taken
    in the direction of its flip.

    Args:
        gates: Of the dictionary.
        x: Activations near the crossing.
        before, after: Which latents are active on either side.
    """
    flipped = before ^ after
    sign = after.to(x.dtype) - before.to(x.dtype)
    if len(gates) > 1:
        # The gate that is nearest to its boundary is the one that flips.
        with torch.no_grad():
            near = torch.stack([(gate.prepare(x) @ gate.weights + gate.offset).abs() for gate in gates]).argmin(dim=0)
    total = x.new_zeros(())
    for number, gate in enumerate(gates):
        rows, latents = (flipped & (near == number) if len(gates) > 1 else flipped).nonzero(as_tuple=True)
        if len(rows) == 0:
            continue
        pre = (gate.prepare(x)[rows] * gate.weights[:, latents].T).sum(dim=1) + gate.offset[latents]
        total = total + (sign[rows, latents] * pre).sum()
    return total
