"""Causal models that no table knows: their residual stream is found by running them, or they are refused."""

from typing import Any

import pytest
import torch
from tiny_models import _SHAPE, build_tokenizer, count_hooks, texts

from sparsight.errors import ModelError
from sparsight.models import LanguageModel, Site, Tokens, load_model

GROUPED = {"num_key_value_heads": 2}
UNLISTED: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": ("FalconConfig", {}),
    "bloom": ("BloomConfig", {}),  # ALiBi: takes no positions
    "gptj": ("GPTJConfig", {"rotary_dim": 4}),
    "mixtral": ("MixtralConfig", GROUPED),
    "cohere": ("CohereConfig", GROUPED | {"logit_scale": 0.5}),  # scales its logits behind the head
    "mamba": ("MambaConfig", {}),  # recurrent: keeps no keys and values
}


@pytest.fixture(params=list(UNLISTED))
def unlisted(request: pytest.FixtureRequest) -> LanguageModel:
    return _build(request.param)


def _build(name: str) -> LanguageModel:
    import transformers

    config_name, extra = UNLISTED[name]
    config = getattr(transformers, config_name)(**{**_SHAPE, **extra})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter_name, parameter in model.named_parameters():
        if "norm" not in parameter_name.lower() and name != "mamba":
            parameter.data.normal_(std=0.2)
    return LanguageModel(model.requires_grad_(False), build_tokenizer(ends=False), name=name)


def test_the_stream_is_what_transformers_calls_hidden_states(unlisted: LanguageModel) -> None:
    tokens = unlisted.tokenize("w1 w2 w3 w4 w5 w6")
    assert [str(s) for s in unlisted.sites()] == ["0.resid_pre", "0.resid_post", "1.resid_pre", "1.resid_post"]
    read = unlisted.activations(tokens, unlisted.sites())
    hidden = unlisted.model(tokens.ids, output_hidden_states=True).hidden_states
    listed = "resid_post" if unlisted.name == "mamba" else "resid_pre"  # Mamba's list leaves the embeddings out
    torch.testing.assert_close(read[Site(0, listed)], hidden[0], rtol=0, atol=1e-6)
    if unlisted.name != "mamba":  # whose last entry has passed the final norm
        torch.testing.assert_close(read[Site(1, listed)], hidden[1], rtol=0, atol=1e-6)
    assert torch.equal(read[Site(0, "resid_post")], read[Site(1, "resid_pre")])
    assert unlisted.width("1.resid_post") == 16


def test_an_edit_that_changes_nothing_changes_no_bit_and_one_that_does_reaches_the_logits(
    unlisted: LanguageModel,
) -> None:
    tokens = unlisted.tokenize(texts(3, seed=0))
    clean = unlisted.logits(tokens)
    assert torch.equal(unlisted.logits(tokens, edits={site: torch.clone for site in unlisted.sites()}), clean)
    assert not torch.allclose(unlisted.logits(tokens, edits={Site(1, "resid_pre"): lambda x: x.flip(-1)}), clean)
    assert count_hooks(unlisted.model) == 0


def test_the_loss_is_the_models_own(unlisted: LanguageModel) -> None:
    tokens = unlisted.tokenize("w1 w2 w3 w4 w5 w6")
    own = unlisted.model(tokens.ids, labels=tokens.ids).loss
    torch.testing.assert_close(unlisted.loss(tokens), own, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [name for name in UNLISTED if name != "mamba"])
def test_padding_on_the_left_gives_what_padding_on_the_right_gives(name: str) -> None:
    lm = _build(name)
    right = lm.tokenize(texts(4, seed=2))
    order = right.mask.to(torch.int8).argsort(dim=1, stable=True)
    left = Tokens(*(part.gather(1, order) for part in (right.ids, right.mask, right.special)))
    ours, theirs = lm.activations(right, lm.sites()), lm.activations(left, lm.sites())
    for site in lm.sites():
        torch.testing.assert_close(theirs[site][left.mask], ours[site][right.mask], rtol=0, atol=2e-5)


def test_generation_with_edits_is_the_full_pass_asked_again(unlisted: LanguageModel) -> None:
    edits = {Site(0, "resid_post"): lambda x: 0.7 * x + 0.5 * torch.sin(x)}
    tokens = unlisted.tokenize("w1 w2 w3")
    expected = tokens.ids
    for _ in range(5):
        so_far = Tokens(expected, torch.ones_like(expected, dtype=torch.bool), torch.zeros_like(expected) > 0)
        expected = torch.cat([expected, unlisted.logits(so_far, edits=edits)[:, -1:].argmax(-1)], dim=1)
        if int(expected[0, -1]) in unlisted._end_ids():
            break
    for per_token in (False, True):
        written = unlisted.generate(tokens, max_new_tokens=5, edits=edits, edits_per_token=per_token)
        assert torch.equal(written.ids, expected)


def test_a_model_whose_blocks_do_not_hand_on_one_stream_is_refused() -> None:
    from transformers import FalconConfig, FalconForCausalLM

    model = FalconForCausalLM(FalconConfig(**_SHAPE))
    first = model.transformer.h[0]
    original = first.forward
    # What block 0 hands on is not what block 1 takes in.
    model.transformer.h[1].register_forward_pre_hook(lambda _, args: (args[0] + 1, *args[1:]))
    with pytest.raises(ModelError, match="a block does not take in what the one before it handed on"):
        LanguageModel(model, build_tokenizer(ends=False), name="odd")
    first.forward = original
    del model.transformer.h
    model.transformer.h = [first]
    with pytest.raises(ModelError, match="no list of 2 blocks"):
        LanguageModel(model, build_tokenizer(ends=False), name="odd")


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Any) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    T5ForConditionalGeneration(T5Config(d_model=16, d_ff=24, num_layers=2, num_heads=4, vocab_size=64)).save_pretrained(
        tmp_path
    )
    build_tokenizer(ends=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no family for model type 't5'"):
        load_model(tmp_path)


def test_an_unlisted_model_loads_from_a_folder_like_any_other(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    AutoModelForCausalLM.from_config(MixtralConfig(**_SHAPE, **GROUPED)).save_pretrained(tmp_path)
    build_tokenizer(ends=False).save_pretrained(tmp_path)
    lm = load_model(tmp_path)
    assert (lm.family, lm.n_layers, lm.has_causal_loss) == ("generic", 2, True)
    with pytest.raises(ModelError, match=r"has no site 0.mlp_out; it has layers 0-1 × resid_pre, resid_post"):
        lm.activations(lm.tokenize("w1"), [Site(0, "mlp_out")])
