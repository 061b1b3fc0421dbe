"""Where each family of models keeps its sites: one table per family, and no model code.

A value is read and written where a module takes it in or hands it on. One value has no such place in most families: the
residual stream between attention and MLP, which a block keeps in a local variable. `Sum` says how it is reached.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sparsight.models.site import KINDS, Site


@dataclass(frozen=True)
class Point:
    """What one module takes in (its first argument) or hands on (its output, or the first of its outputs).

    Attributes:
        module: Dotted path below the block; empty for the block itself.
        side: Which of the two.
    """

    module: str
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Sum:
    """The residual stream after a branch was added to it: `r = base + branch`.

    Editing what the next norm takes in would change the branch behind it but not the residual stream itself, for the
    block has put `r` aside before. So an edit `f` is written into the branch, as `branch + (f(r) - r)`: the block
    itself then adds up `f(r)`, to rounding, and an edit that changes nothing adds an exact zero.

    Attributes:
        base: Where the stream comes in.
        branch: What the block adds to it.
        seen: Where a module takes `r` in; read there.
    """

    base: Point
    branch: Point
    seen: Point


def _into(module: str) -> Point:
    return Point(module, "input")


def _out_of(module: str) -> Point:
    return Point(module, "output")


BLOCK_IN, BLOCK_OUT = _into(""), _out_of("")

Points = Mapping[str, Point | Sum]


def _as_they_are(points: Points, _: Any) -> Points:
    return points


@dataclass(frozen=True)
class Family:
    """How a family of architectures names its parts in transformers.

    Attributes:
        name: What `LanguageModel.family` says.
        model_types: Values of `model_type` in config.json that belong here.
        blocks: Path of the list of blocks, below the base model.
        embed: Where token embeddings pass: a module below the base model, or the input of the first block where that
            takes them in as they are (no position embeddings are added), with whatever scale the family gives them.
            None where it is not known.
        points: Where each kind of site is in a block.
        has_causal_loss: Whether it predicts the next token.
        adapt: The points of one model, given the family's and the model's config, where they depend on it.
        first_position: Number of the first position in a model with this config. Where it is not 0, positions are
            always handed over, since such models count them from the padding token.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    embed: Point | Literal["first block"] | None
    points: Points
    has_causal_loss: bool = True
    adapt: Callable[[Points, Any], Points] = _as_they_are
    first_position: Callable[[Any], int] = lambda _: 0


GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    blocks="h",
    embed=_out_of("wte"),
    points={
        "resid_pre": BLOCK_IN,
        "attn_z": _into("attn.c_proj"),
        "attn_out": _out_of("attn"),
        "resid_mid": Sum(base=BLOCK_IN, branch=_out_of("attn"), seen=_into("ln_2")),
        "mlp_in": _into("mlp"),
        "mlp_act": _into("mlp.c_proj"),
        "mlp_out": _out_of("mlp"),
        "resid_post": BLOCK_OUT,
    },
)


def _without_a_stream_between(points: Points, config: Any) -> Points:
    """With a parallel residual, attention and MLP both read resid_pre: there is no stream between them."""
    return {kind: point for kind, point in points.items() if not (config.use_parallel_residual and kind == "resid_mid")}


GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    blocks="layers",
    embed="first block",
    points={
        "resid_pre": BLOCK_IN,
        "attn_z": _into("attention.dense"),
        "attn_out": _out_of("attention"),
        "resid_mid": Sum(base=BLOCK_IN, branch=_out_of("attention"), seen=_into("post_attention_layernorm")),
        "mlp_in": _into("mlp"),
        "mlp_act": _into("mlp.dense_4h_to_h"),
        "mlp_out": _out_of("mlp"),
        "resid_post": BLOCK_OUT,
    },
    adapt=_without_a_stream_between,
)

LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"),
    blocks="layers",
    embed="first block",
    points={
        "resid_pre": BLOCK_IN,
        "attn_z": _into("self_attn.o_proj"),
        "attn_out": _out_of("self_attn"),
        "resid_mid": Sum(base=BLOCK_IN, branch=_out_of("self_attn"), seen=_into("post_attention_layernorm")),
        "mlp_in": _into("mlp"),
        "mlp_act": _into("mlp.down_proj"),
        "mlp_out": _out_of("mlp"),
        "resid_post": BLOCK_OUT,
    },
)

# The residual is parallel in every model of the family: there is no resid_mid.
PHI = Family(
    name="phi",
    model_types=("phi",),
    blocks="layers",
    embed="first block",
    points={
        "resid_pre": BLOCK_IN,
        "attn_z": _into("self_attn.dense"),
        "attn_out": _out_of("self_attn"),
        "mlp_in": _into("mlp"),
        "mlp_act": _into("mlp.fc2"),
        "mlp_out": _out_of("mlp"),
        "resid_post": BLOCK_OUT,
    },
)


def _with_norms_behind(points: Points, config: Any) -> Points:
    """OPT-350m alone norms each sum, as BERT does: resid_mid and resid_post are what leaves those norms."""
    return points if config.do_layer_norm_before else {**points, "resid_mid": _out_of("self_attn_layer_norm")}


OPT = Family(
    name="opt",
    model_types=("opt",),
    blocks="decoder.layers",
    embed=_out_of("decoder.embed_tokens"),
    points={
        "resid_pre": BLOCK_IN,
        "attn_z": _into("self_attn.out_proj"),
        "attn_out": _out_of("self_attn"),
        "resid_mid": Sum(base=BLOCK_IN, branch=_out_of("self_attn"), seen=_into("final_layer_norm")),
        "mlp_in": _into("fc1"),
        "mlp_act": _into("fc2"),
        "mlp_out": _out_of("fc2"),
        "resid_post": BLOCK_OUT,
    },
    adapt=_with_norms_behind,
)

# Both branches pass a norm of their own before they are added: what they add is what leaves that norm.
GEMMA2 = Family(
    name="gemma2",
    model_types=("gemma2", "gemma3_text", "gemma3"),
    blocks="layers",
    embed="first block",
    points={
        **LLAMA.points,
        "attn_out": _out_of("post_attention_layernorm"),
        "resid_mid": Sum(
            base=BLOCK_IN, branch=_out_of("post_attention_layernorm"), seen=_into("pre_feedforward_layernorm")
        ),
        "mlp_out": _out_of("post_feedforward_layernorm"),
    },
)

# The norm stands after the sum: resid_mid = LN(resid_pre + attn_out), resid_post = LN(resid_mid + mlp_out).
BERT = Family(
    name="bert",
    model_types=("bert",),
    blocks="encoder.layer",
    embed=_out_of("embeddings.word_embeddings"),
    points={
        "resid_pre": BLOCK_IN,
        "attn_z": _into("attention.output.dense"),
        "attn_out": _out_of("attention.output.dense"),
        "resid_mid": _out_of("attention.output"),
        "mlp_in": _into("intermediate"),
        "mlp_act": _into("output.dense"),
        "mlp_out": _out_of("output.dense"),
        "resid_post": BLOCK_OUT,
    },
    has_causal_loss=False,
)

ROBERTA = Family(
    name="roberta",
    model_types=("roberta", "xlm-roberta"),
    blocks=BERT.blocks,
    embed=BERT.embed,
    points=BERT.points,
    has_causal_loss=False,
    first_position=lambda config: int(config.pad_token_id) + 1,
)

FAMILIES = (GPT2, GPT_NEOX, LLAMA, GEMMA2, PHI, OPT, BERT, ROBERTA)


def known_family(model_type: str) -> Family | None:
    """The family that a `model_type` of config.json belongs to, if there is a table for it."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def model_types() -> list[str]:
    """Every `model_type` that there is a table for, sorted."""
    return sorted(kind for family in FAMILIES for kind in family.model_types)


@dataclass(frozen=True)
class Gate:
    """One side of one module of one model: where a hook sits."""

    module: nn.Module
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Place:
    """Where one site of one model is read and written.

    Attributes:
        read: Where its value passes.
        write: Where an edit goes: the same gate, or the branch of a `Sum`.
        base: The other summand of a `Sum`; None elsewhere.
    """

    read: Gate
    write: Gate
    base: Gate | None = None


def places(family: Family, base_model: nn.Module, config: Any) -> dict[Site, Place]:
    """Every site of a model, in the order of a forward pass."""
    blocks = list(base_model.get_submodule(family.blocks).children())
    found = {}
    if family.embed is not None:
        first, embed = Gate(blocks[0], "input"), family.embed
        gate = _gate(base_model, embed) if isinstance(embed, Point) else first
        found[Site(None, "embed")] = Place(gate, gate)
    points = family.adapt(family.points, config)
    for layer, block in enumerate(blocks):
        for kind in KINDS:
            if kind in points:
                found[Site(layer, kind)] = _place(block, points[kind])
    return found


def _place(block: nn.Module, point: Point | Sum) -> Place:
    if isinstance(point, Point):
        return Place(_gate(block, point), _gate(block, point))
    return Place(read=_gate(block, point.seen), write=_gate(block, point.branch), base=_gate(block, point.base))


def _gate(parent: nn.Module, point: Point) -> Gate:
    return Gate(parent.get_submodule(point.module), point.side)


def input_width(module: nn.Module) -> int:
    """Width of what a projection takes in: an `nn.Linear`, or transformers' `Conv1D`, whose weight is transposed."""
    weight = module.get_parameter("weight")
    return int(weight.shape[1] if isinstance(module, nn.Linear) else weight.shape[0])
