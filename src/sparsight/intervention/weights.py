"""Directional ablation written into the weights, where that is the same thing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.errors import ModelError
from sparsight.intervention.direction_edits import Directions, span_of
from sparsight.models import LanguageModel

# Modules of a block that write into the stream, by family; what the head of the file says must hold for each.
_WRITERS = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "phi": ("self_attn.dense", "mlp.fc2"),
    "opt": ("self_attn.out_proj", "fc2"),
}
_BLOCKS = {"gpt2": "h", "gpt_neox": "layers", "llama": "layers", "phi": "layers", "opt": "decoder.layers"}
_POSITIONS = {"gpt2": "wpe", "opt": "decoder.embed_positions"}
_REASONS = {
    "gemma2": "a norm with a gain of its own for each coordinate stands between each write and the stream, and its "
    "gain turns what was orthogonal to the direction back towards it",
    "bert": "each sum passes a norm with a gain and an offset for each coordinate, which write along the direction "
    "again",
    "roberta": "each sum passes a norm with a gain and an offset for each coordinate, which write along the direction "
    "again",
}


@contextmanager
def orthogonalized(lm: LanguageModel, directions: Directions) -> Iterator[LanguageModel]:
    """Weights that cannot write along some directions, for as long as this lasts: `W <- (I - P) W` for every writer.

    Writers are the embeddings (of tokens and positions), the output projections of attention and MLP, and their
    biases. In a model whose norms stand before its branches the stream is the sum of these writes, so this is the same
    as `ablate_direction(lm, directions)`; other models are refused. A head that shares its weights with the embeddings
    keeps its own for as long. All weights come back bit for bit.

    Raises:
        ModelError: the two are not the same in this architecture, and why.
        ValueError, DataError: as `ablate_direction`.
    Source:
        Arditi et al., 2024, appendix E; what it is not equivalent for is ours.
    """
    check_equivalent(lm)
    _, basis = span_of(lm, directions, None)
    head = lm.model.get_output_embeddings()
    shared = head.weight
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        head.weight = nn.Parameter(shared.detach().clone(), requires_grad=False)
        with torch.no_grad():
            for weight, axis in _writes(lm):
                kept.append((weight, weight.detach().clone()))
                weight.copy_(_projected(weight, basis, axis))
        yield lm
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)
        head.weight = shared


def check_equivalent(lm: LanguageModel) -> None:
    """Refuse a model in which orthogonal weights are not directional ablation.

    Raises:
        ModelError: a norm follows the writes, or it is not known what writes.
    """
    if lm.family == "opt" and not lm.model.config.do_layer_norm_before:
        raise ModelError(f"weights of {lm.name} cannot stand for ablation: {_REASONS['bert']}; use ablate_direction")
    if lm.family == "opt" and lm.model.config.word_embed_proj_dim != lm.model.config.hidden_size:
        raise ModelError(f"weights of {lm.name} cannot stand for ablation: it embeds in another width")
    if lm.family not in _WRITERS:
        reason = _REASONS.get(lm.family, f"what writes into the stream of a {lm.family} model is not known")
        raise ModelError(f"weights of {lm.name} cannot stand for ablation: {reason}; use ablate_direction")


def _projected(weight: Tensor, basis: Float[Tensor, "k d"], axis: int) -> Tensor:
    """The weight with nothing along the basis left on the axis that writes into the stream; in float64 meanwhile."""
    rows = weight.detach().double().movedim(axis, -1)
    basis = basis.to(rows)
    return (rows - (rows @ basis.T) @ basis).movedim(-1, axis).to(weight.dtype)


def _writes(lm: LanguageModel) -> Iterator[tuple[Tensor, int]]:
    """Every tensor that is written into the stream, and its axis along the stream."""
    base = lm.model.base_model
    yield lm.model.get_input_embeddings().weight, 1
    if lm.family in _POSITIONS:
        yield base.get_submodule(_POSITIONS[lm.family]).weight, 1
    for block in base.get_submodule(_BLOCKS[lm.family]).children():
        for name in _WRITERS[lm.family]:
            module = block.get_submodule(name)
            yield module.weight, 0 if isinstance(module, nn.Linear) else 1
            if getattr(module, "bias", None) is not None:
                yield module.bias, 0
