"""The residual stream of a causal model that no table knows: found by its list of blocks, and proved by running it."""

from typing import Any

import torch
from torch import nn

from sparsight.errors import ModelError
from sparsight.models.families import BLOCK_IN, BLOCK_OUT, Family, model_types


def generic_family(model: Any, name: str) -> Family:
    """A family of two kinds of site, `resid_pre` and `resid_post`, for this one model.

    The list of blocks is the outermost list of modules that has as many entries as the config counts layers. The model
    then reads two tokens, and it must be seen that every block runs once, in order, that each takes in exactly what the
    one before it handed on, and that all of it is `[1, 2, hidden_size]`.

    Args:
        model: A Hugging Face model with a causal head.
        name: What it was loaded as, for messages.
    Raises:
        ModelError: the blocks are not found, or do not hand on one stream.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise _refusal(config, name, "it is an encoder with a decoder, which have two streams")
    n_layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not isinstance(n_layers, int) or not isinstance(width, int):
        raise _refusal(config, name, "its config has no num_hidden_layers or hidden_size")
    base = model.base_model
    lists = [
        path for path, module in base.named_modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise _refusal(config, name, f"it has no list of {n_layers} blocks")
    path = min(lists, key=lambda p: (p.count("."), len(p)))
    _prove(model, list(base.get_submodule(path)), width, name)
    return Family(
        name="generic",
        model_types=(config.model_type,),
        blocks=path,
        embed=None,
        points={"resid_pre": BLOCK_IN, "resid_post": BLOCK_OUT},
    )


@torch.no_grad()
def _prove(model: Any, blocks: list[nn.Module], width: int, name: str) -> None:
    """Run two tokens and compare what blocks take in with what they hand on."""
    taken: list[Any] = []
    handed: list[Any] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taken.append(args[0] if args else kwargs.get("hidden_states"))

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        handed.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(after) for block in blocks]
    device = model.get_input_embeddings().weight.device
    try:
        model.eval()(input_ids=torch.tensor([[0, 1]], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    streams = [*taken, *handed]
    if len(taken) != len(blocks) or len(handed) != len(blocks):
        raise _refusal(model.config, name, "its blocks do not run once each in a pass")
    if not all(isinstance(value, torch.Tensor) and value.shape == (1, 2, width) for value in streams):
        raise _refusal(model.config, name, f"its blocks do not take in and hand on [batch, tokens, {width}]")
    if not all(torch.equal(left.to(right.device), right) for left, right in zip(handed[:-1], taken[1:], strict=True)):
        raise _refusal(model.config, name, "a block does not take in what the one before it handed on")


def _refusal(config: Any, name: str, why: str) -> ModelError:
    return ModelError(
        f"no family for model type {config.model_type!r} of {name}, and its residual stream cannot be found: {why}; "
        f"known: {', '.join(model_types())}"
    )
