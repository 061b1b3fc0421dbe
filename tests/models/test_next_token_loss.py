"""The loss is the model's own, in nats, over real tokens."""

import math

import pytest
import torch
from tiny_models import N_VOCABULARY, texts

from sparsight.errors import ModelError, UndefinedMetric
from sparsight.models import LanguageModel, Site, Tokens, prediction


@pytest.mark.usefixtures("exact")
def test_the_mean_loss_is_that_of_transformers(causal_lm: LanguageModel) -> None:
    tokens = causal_lm.tokenize(texts(4, seed=0))
    labels = tokens.ids.masked_fill(~tokens.mask, -100)
    theirs = causal_lm.model(tokens.ids, attention_mask=tokens.mask.long(), labels=labels).loss
    # transformers casts the logits to float32 first
    torch.testing.assert_close(causal_lm.loss(tokens), theirs.double(), rtol=1e-5, atol=1e-6)


def test_the_loss_of_each_token_is_minus_its_log_probability(causal_lm: LanguageModel) -> None:
    tokens = causal_lm.tokenize(texts(4, seed=1))
    log_p = causal_lm.logits(tokens).log_softmax(-1)[:, :-1].gather(-1, tokens.ids[:, 1:, None])[..., 0]
    losses = causal_lm.loss(tokens, reduction="none")
    assert losses.shape == (4, tokens.ids.shape[1] - 1)
    assert (losses[~tokens.mask[:, 1:]] == 0).all()
    real = tokens.mask[:, 1:]
    torch.testing.assert_close(losses[real], -log_p[real], rtol=0, atol=1e-10)
    torch.testing.assert_close(causal_lm.loss(tokens), losses[real].mean(), rtol=0, atol=1e-10)


def test_chunks_do_not_change_the_loss(tiny, monkeypatch) -> None:
    lm = tiny("gemma2")
    tokens = lm.tokenize(texts(4, seed=2))
    whole = lm.loss(tokens, reduction="none")
    monkeypatch.setattr(prediction, "_CHUNK", 3 * N_VOCABULARY)
    torch.testing.assert_close(lm.loss(tokens, reduction="none"), whole, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("exact")
def test_padding_does_not_change_the_loss(causal_lm: LanguageModel) -> None:
    together = texts(4, seed=3)
    tokens = causal_lm.tokenize(together)
    losses = causal_lm.loss(tokens, reduction="none")
    for row, text in enumerate(together):
        alone = causal_lm.loss(causal_lm.tokenize(text), reduction="none")[0]
        torch.testing.assert_close(losses[row, : len(alone)], alone, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("exact")
def test_padding_on_the_left_gives_the_same_loss(causal_lm: LanguageModel) -> None:
    """The first real token of a row follows padding: nothing predicts it, and it must not count."""
    right = causal_lm.tokenize(texts(4, seed=4))
    order = right.mask.to(torch.int8).argsort(dim=1, stable=True)
    left = Tokens(*(part.gather(1, order) for part in (right.ids, right.mask, right.special)))
    torch.testing.assert_close(causal_lm.loss(left), causal_lm.loss(right), rtol=0, atol=1e-10)


def test_a_model_that_says_nothing_pays_the_log_of_the_vocabulary(tiny) -> None:
    lm = tiny("gemma2")
    edits = {Site(1, "resid_post"): torch.zeros_like}
    assert lm.loss(lm.tokenize("w1 w2 w3"), edits=edits).item() == pytest.approx(math.log(N_VOCABULARY))


def test_the_loss_is_differentiable_through_an_edit(tiny) -> None:
    lm = tiny("gpt2")
    tokens = lm.tokenize("w1 w2 w3 w4")
    shift = torch.zeros(16, dtype=torch.float64, requires_grad=True)

    def loss(d: torch.Tensor) -> torch.Tensor:
        return lm.loss(tokens, edits={Site(0, "resid_mid"): lambda x: x + d})

    assert torch.autograd.gradcheck(loss, (shift,))


def test_the_loss_of_a_low_precision_model_is_computed_in_float32(tiny) -> None:
    lm = tiny("llama", "bfloat16")
    tokens = lm.tokenize("w1 w2 w3")
    loss = lm.loss(tokens)
    assert loss.dtype == torch.float32
    logits = lm.logits(tokens)[0, :-1].float()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, tokens.ids[0, 1:]))


def test_a_sequence_of_one_token_has_no_loss(tiny) -> None:
    lm = tiny("gpt2")
    tokens = lm.tokenize("w1")
    one = type(tokens)(tokens.ids[:, :1], tokens.mask[:, :1], tokens.special[:, :1])
    assert lm.loss(one, reduction="none").shape == (1, 0)
    with pytest.raises(UndefinedMetric, match="no sequence has two tokens"):
        lm.loss(one)


def test_an_unknown_reduction_is_refused(tiny) -> None:
    with pytest.raises((ValueError, TypeError)):
        tiny("gpt2").loss(tiny("gpt2").tokenize("w1 w2"), reduction="sum")


def test_an_encoder_has_no_causal_head_and_says_so(tiny) -> None:
    lm = tiny("bert")
    tokens = lm.tokenize("w1 w2")
    assert not lm.has_causal_loss
    for call in (lm.logits, lm.loss, lambda t: lm.generate(t, max_new_tokens=1)):
        with pytest.raises(ModelError, match="no causal head"):
            call(tokens)
