"""Loss added: identities on a tiny random model, and direct computation with the Hugging Face model itself."""

import pytest
import torch
from evaluation_fake import SITE, contexts, store_of_model, tiny_gpt2

from sparsight.errors import ModelError, UndefinedMetric
from sparsight.evaluation.loss import LossAdded, next_token_kl, next_token_loss
from sparsight.evaluation.splice import ablations, loss_added, measure_losses, replaced_losses


@pytest.fixture(scope="module")
def lm():
    return tiny_gpt2()


@pytest.fixture(scope="module")
def batch(lm):
    return contexts(n_batches=1, lm=lm)[0]


def direct_loss(lm, tokens, vector: torch.Tensor | None) -> float:
    """Mean loss of counted tokens, with a vector put in at counted tokens by a hook written here."""

    def hook(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = torch.where(tokens.counted[..., None], vector.to(hidden), hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = lm.model.transformer.h[1].register_forward_hook(hook) if vector is not None else None
    try:
        log_p = lm.model(input_ids=tokens.ids).logits[:, :-1].log_softmax(-1)
    finally:
        if handle is not None:
            handle.remove()
    losses = -log_p.gather(-1, tokens.ids[:, 1:, None])[..., 0]
    return losses[tokens.counted[:, 1:]].mean().item()


def test_a_perfect_reconstruction_adds_no_loss(lm, batch):
    found = loss_added(lm, batch.tokens, SITE, lambda x: x.clone(), torch.zeros(8))
    assert found.value == 0.0
    assert found.kl == 0.0
    assert found.fraction_of_mean == 0.0


def test_ablations_equal_their_direct_computation(lm, batch):
    mean = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = loss_added(lm, batch.tokens, SITE, torch.zeros_like, mean)
    clean = direct_loss(lm, batch.tokens, None)
    assert found.clean == pytest.approx(clean, abs=1e-12)
    assert found.added_by_zero == pytest.approx(direct_loss(lm, batch.tokens, torch.zeros(8)) - clean, abs=1e-12)
    assert found.added_by_mean == pytest.approx(direct_loss(lm, batch.tokens, mean) - clean, abs=1e-12)
    assert found.added_by_zero == pytest.approx(found.value, abs=1e-15)  # zero was spliced in
    assert found.n == int(batch.tokens.counted[:, 1:].sum())


def test_divergence_is_taken_from_the_clean_model(lm, batch):
    found = loss_added(lm, batch.tokens, SITE, torch.zeros_like, torch.zeros(8))
    counted = batch.tokens.counted
    edits = {SITE: lambda x: torch.where(counted[..., None], 0.0, x)}
    log_p = lm.logits(batch.tokens)[:, :-1].log_softmax(-1)
    log_q = lm.logits(batch.tokens, edits=edits)[:, :-1].log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)[counted[:, 1:]].mean().item()
    assert found.kl == pytest.approx(expected, rel=1e-9)


def test_answering_the_mean_is_exactly_as_bad_as_mean_ablation(lm, batch):
    mean = torch.ones(8, dtype=torch.float64)
    found = loss_added(lm, batch.tokens, SITE, lambda x: mean.expand_as(x), mean)
    assert found.value == found.added_by_mean > 0
    assert found.fraction_of_mean == 1.0


def test_padding_and_special_tokens_are_never_given_to_the_replacement(lm, batch):
    seen = []

    def remember(x):
        seen.append(x.clone())
        return x

    replaced_losses(lm, batch.tokens, SITE, {"spliced": remember})
    expected = lm.activations(batch.tokens, [SITE])[SITE][batch.tokens.counted]
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=0)


def test_divergence_is_its_definition_and_finite_for_extreme_logits():
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 2, 5, 7, generator=g, dtype=torch.float64)
    p, q = a.softmax(-1), b.softmax(-1)
    expected = (p * (p / q).log()).sum(-1)[:, :-1]
    torch.testing.assert_close(next_token_kl(a, b), expected)
    assert (next_token_kl(a, b) > 0).all()
    extreme = next_token_kl(1e4 * a, -1e4 * b)
    assert torch.isfinite(extreme).all()


def test_the_loss_of_a_certain_prediction_is_known():
    """Logits that put log-odds of log 3 on one of four tokens: probability 3 / 6."""
    logits = torch.zeros(1, 3, 4)
    logits[..., 2] = torch.tensor(3.0).log()
    ids = torch.tensor([[0, 2, 1]])
    expected = torch.tensor([[2.0, 6.0]]).log()
    torch.testing.assert_close(next_token_loss(logits, ids), expected)
    torch.testing.assert_close(next_token_loss(logits.bfloat16(), ids), expected, atol=1e-2, rtol=0)


def test_sums_over_contexts_are_those_of_all_contexts_at_once(lm):
    batches = contexts()
    store = store_of_model(lm, batches)
    mean = store.x.mean(dim=0)
    replacements = {"half": lambda x: x / 2, **ablations(mean)}
    documents, columns = measure_losses(lm, store, SITE, replacements)
    totals = documents.sums.sum(dim=0)
    parts = [loss_added(lm, b.tokens, SITE, replacements["half"], mean) for b in batches]
    whole = sum(parts[1:], parts[0])
    assert totals[0].item() == whole.n
    assert totals[columns["half"]].item() == pytest.approx(whole.sum_spliced, rel=1e-12)
    assert totals[columns["half"] + 1].item() == pytest.approx(whole.sum_kl, rel=1e-12)
    assert totals[columns["mean"]].item() == pytest.approx(whole.sum_mean, rel=1e-12)
    assert len(documents) == 18


def test_a_limit_takes_batches_spread_over_the_whole(lm):
    batches = contexts(n_batches=10)
    store = store_of_model(lm, batches)
    documents, _ = measure_losses(lm, store, SITE, {}, limit=len(store) // 5)
    assert len(documents) == 2 * 3
    assert documents.sums[:, 0].sum() == sum(int(batches[i].tokens.counted[:, 1:].sum()) for i in (0, 5))


def test_fractions_exist_only_where_the_ablation_hurts():
    hurt = LossAdded(n=2, sum_clean=2.0, sum_spliced=3.0, sum_zero=12.0, sum_mean=4.0, sum_kl=0.5)
    assert (hurt.value, hurt.fraction_of_zero, hurt.fraction_of_mean, hurt.kl) == (0.5, 0.1, 0.5, 0.25)
    helped = LossAdded(n=2, sum_clean=2.0, sum_spliced=3.0, sum_zero=1.0, sum_mean=2.0, sum_kl=0.5)
    for name in ("fraction_of_zero", "fraction_of_mean"):
        with pytest.raises(UndefinedMetric, match="ablation changes the loss by"):
            getattr(helped, name)
    with pytest.raises(UndefinedMetric, match="no token was predicted"):
        _ = LossAdded(0, 0.0, 0.0, 0.0, 0.0, 0.0).value
    assert (hurt + helped).n == 4


def test_a_model_without_a_causal_loss_is_refused(batch):
    lm = tiny_gpt2()
    lm._family = type("Family", (), {"has_causal_loss": False, "name": "bert"})()
    with pytest.raises(ModelError, match="no causal loss"):
        replaced_losses(lm, batch.tokens, SITE, {})


def test_contexts_in_which_nothing_is_predicted_have_no_loss(lm):
    batches = contexts(n_batches=1, t=1, b=1)
    store = store_of_model(lm, contexts(n_batches=1))
    store._contexts = batches
    with pytest.raises(UndefinedMetric, match="longer contexts"):
        measure_losses(lm, store, SITE, {})
