"""Tiny models of every family, with random weights and a word-level tokenizer."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

N_WORDS = 60
N_VOCABULARY = N_WORDS + 4
PAD, BOS, EOS, UNK = range(4)

_SHAPE = {
    "vocab_size": N_VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2, "head_dim": 6}  # 4 heads of 6: attn_z is wider than the stream
_OPT = {key: value for key, value in _SHAPE.items() if key != "intermediate_size"} | {"ffn_dim": 24}

# Name of a tiny model: family, name of its config in transformers, settings.
TINY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "gpt2",
        "GPT2Config",
        {"vocab_size": N_VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24, "n_positions": 32}
        | {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS},
    ),
    "gpt_neox": ("gpt_neox", "GPTNeoXConfig", {**_SHAPE, "use_parallel_residual": True}),
    "gpt_neox_sequential": ("gpt_neox", "GPTNeoXConfig", {**_SHAPE, "use_parallel_residual": False}),
    "llama": ("llama", "LlamaConfig", _GROUPED),
    "mistral": ("llama", "MistralConfig", {**_GROUPED, "sliding_window": 4}),
    "qwen2": ("llama", "Qwen2Config", {**_SHAPE, "num_key_value_heads": 2}),
    "qwen3": ("llama", "Qwen3Config", _GROUPED),
    "gemma": ("llama", "GemmaConfig", _GROUPED),
    "gemma2": (
        "gemma2",
        "Gemma2Config",
        {**_GROUPED, "sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
        | {"query_pre_attn_scalar": 6},
    ),
    "gemma3_text": ("gemma2", "Gemma3TextConfig", {**_GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 6}),
    "phi3": ("llama", "Phi3Config", {**_SHAPE, "num_key_value_heads": 2}),
    "phi": ("phi", "PhiConfig", {**_SHAPE, "num_key_value_heads": 2}),
    "opt": ("opt", "OPTConfig", _OPT),
    "opt_norms_behind": ("opt", "OPTConfig", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    "bert": ("bert", "BertConfig", {k: v for k, v in _SHAPE.items() if k not in ("bos_token_id", "eos_token_id")}),
    "roberta": ("roberta", "RobertaConfig", {**_SHAPE, "max_position_embeddings": 33}),  # positions begin at pad + 1
}
ENCODERS = ("bert", "roberta")
CAUSAL = [name for name, (family, _, _) in TINY.items() if family not in ENCODERS]


def build_tokenizer(*, ends: bool, pads: bool = True) -> Any:
    """Words w0 ... w59; BOS before a text, EOS after it if asked for."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(N_WORDS))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>" if ends else "<bos> $A", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=32,
        **({"pad_token": "<pad>"} if pads else {}),
    )


def save_tiny(name: str, folder: Path) -> Path:
    """Write a tiny model where `load_model` finds it. No weight is at a value that would hide a mistake."""
    import transformers

    family, config_name, settings = TINY[name]
    config = getattr(transformers, config_name)(**settings)
    loader = transformers.AutoModel if family in ENCODERS else transformers.AutoModelForCausalLM
    model = loader.from_config(config)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    for parameter_name, parameter in model.named_parameters():
        noise = 0.3 * torch.randn(parameter.shape, generator=generator)
        is_norm = "norm" in parameter_name.lower() or ".ln_" in parameter_name
        parameter.data = noise + 1 if is_norm and parameter_name.endswith("weight") else noise
    model.save_pretrained(folder)
    build_tokenizer(ends=family in ENCODERS).save_pretrained(folder)
    return folder


def texts(n: int, *, seed: int, shortest: int = 1, longest: int = 10) -> list[str]:
    """Random texts of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (n,), generator=generator).tolist()
    return [
        " ".join(f"w{i}" for i in torch.randint(N_WORDS, (length,), generator=generator).tolist()) for length in lengths
    ]


def norms_behind(lm: Any, block: Any) -> tuple[Any, Any] | None:
    """The norms that stand behind the sums, in the models that have them there."""
    if lm.family in ("bert", "roberta"):
        return block.attention.output.LayerNorm, block.output.LayerNorm
    if lm.family == "opt" and not lm.model.config.do_layer_norm_before:
        return block.self_attn_layer_norm, block.final_layer_norm
    return None


def in_float64(model: torch.nn.Module) -> torch.nn.Module:
    """The model in float64, but for the frequencies of rotations, which all releases of transformers have in float32.

    Not offered to users: some norms and softmaxes stay in float32.
    """
    model.double()
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            buffer.data = buffer.float()
    return model


def count_hooks(model: torch.nn.Module) -> int:
    """Forward hooks and pre-hooks on all modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class KeepFloat64:
    """Norms and softmaxes that transformers casts to float32 stay in float64, so that differences can be taken.

    What casts is replaced while this is entered: a mode that sees every operation doubles the time of small ones.
    """

    def __enter__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        for owner, name in ((torch.Tensor, "float"), (torch.Tensor, "to"), (torch.nn.functional, "softmax")):
            self._patch.setattr(owner, name, self._kept(getattr(owner, name)))

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _kept(self, cast: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(cast)
        def kept(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if x.dtype == torch.float64:
                if cast.__name__ == "float" or (cast.__name__ == "to" and torch.float32 in args):
                    return x
                if kwargs.get("dtype") == torch.float32:
                    kwargs["dtype"] = torch.float64
            return cast(x, *args, **kwargs)

        return kept
