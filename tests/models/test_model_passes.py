"""One batch, many lengths: padding is never seen, and a pass ends where it may."""

import pytest
import torch
from tiny_models import N_VOCABULARY, PAD, texts

from sparsight.models import LanguageModel, Site, Tokens


def _padded_left(tokens: Tokens) -> Tokens:
    order = tokens.mask.to(torch.int8).argsort(dim=1, stable=True)
    return Tokens(*(part.gather(1, order) for part in (tokens.ids, tokens.mask, tokens.special)))


@pytest.mark.usefixtures("exact")
def test_padding_does_not_change_the_activations_of_real_tokens(lm: LanguageModel) -> None:
    alone = texts(4, seed=0)
    batch = lm.tokenize(alone)
    assert not batch.mask.all()
    together = lm.activations(batch, lm.sites())
    for row, text in enumerate(alone):
        for site, value in lm.activations(lm.tokenize(text), lm.sites()).items():
            torch.testing.assert_close(together[site][row][batch.mask[row]], value[0], rtol=0, atol=1e-10)


def test_what_stands_under_padding_does_not_matter(lm: LanguageModel) -> None:
    batch = lm.tokenize(texts(4, seed=1))
    other = Tokens(batch.ids.masked_fill(~batch.mask, -100), batch.mask, batch.special)
    sites = [Site(1, "resid_post")]
    clean, changed = (lm.activations(tokens, sites)[sites[0]] for tokens in (batch, other))
    torch.testing.assert_close(changed[batch.mask], clean[batch.mask], rtol=0, atol=1e-12)


def test_padding_raises_no_false_alarm_in_transformers(lm: LanguageModel) -> None:
    """transformers warns of the padding token without a mask; under causal attention there is nothing to warn of."""
    batch, seen = lm.tokenize(texts(4, seed=1)), []
    handle = lm.model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs), with_kwargs=True)
    try:
        lm.activations(batch, [Site(0, "resid_pre")])
    finally:
        handle.remove()
    assert "attention_mask" in seen[0] or lm.model.config.pad_token_id not in seen[0]["input_ids"]


@pytest.mark.usefixtures("exact")
def test_padding_on_the_left_gives_what_padding_on_the_right_gives(lm: LanguageModel) -> None:
    right = lm.tokenize(texts(4, seed=2))
    left = _padded_left(right)
    assert not torch.equal(left.mask, right.mask)
    ours, theirs = lm.activations(right, lm.sites()), lm.activations(left, lm.sites())
    for site in lm.sites():
        torch.testing.assert_close(theirs[site][left.mask], ours[site][right.mask], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("names", "layers_begun"),
    [
        (["embed"], 0),
        (["0.resid_pre"], 0),
        (["0.mlp_act"], 1),
        (["0.resid_post"], 1),
        (["1.resid_pre", "0.attn_out"], 1),
        (["1.attn_z"], 2),
        (["1.resid_post"], 2),
    ],
)
def test_a_pass_stops_after_the_deepest_site(lm: LanguageModel, names: list[str], layers_begun: int) -> None:
    blocks = next(module for module in lm.model.modules() if isinstance(module, torch.nn.ModuleList))
    norms = {"gpt2": "ln_1", "bert": "attention", "roberta": "attention", "opt": "self_attn"}
    begun, headed = [], []
    # The first module inside a block runs only if the block goes on after what it takes in was read.
    handles = [
        block.get_submodule(norms.get(lm.family, "input_layernorm")).register_forward_pre_hook(
            lambda *_: begun.append(1)
        )
        for block in blocks
    ]
    if lm.has_causal_loss:
        handles.append(lm.model.get_output_embeddings().register_forward_pre_hook(lambda *_: headed.append(1)))
    try:
        read = lm.activations(lm.tokenize("w1 w2 w3"), [Site.parse(name) for name in names])
    finally:
        for handle in handles:
            handle.remove()
    assert (len(begun), len(headed)) == (layers_begun, 0)
    assert [str(site) for site in read] == names


def test_an_edit_behind_the_deepest_read_is_still_made(tiny) -> None:
    """The pass goes on to the deepest site of all, so that no edit given is silently left out."""
    lm, seen = tiny("llama"), []

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return x

    lm.activations(lm.tokenize("w1 w2"), [Site(0, "resid_pre")], edits={Site(1, "mlp_out"): watch})
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[1, N_VOCABULARY]], "token ids must be in"),
        ([[1, -1]], "token ids must be in"),
        ([[1] * 33], "at most 32 tokens, got 33"),
        ([[]], "at least one token"),
    ],
)
def test_tokens_that_do_not_fit_the_model_are_refused(tiny, ids: list[list[int]], said: str) -> None:
    lm = tiny("gpt2")
    tokens = Tokens.pad(ids, [[False] * len(row) for row in ids], PAD)
    with pytest.raises(ValueError, match=said):
        lm.logits(tokens)


def test_reading_nothing_is_refused(tiny) -> None:
    with pytest.raises(ValueError, match="at least one site"):
        tiny("gpt2").activations(tiny("gpt2").tokenize("w1"), [])
