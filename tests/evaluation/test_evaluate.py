"""`evaluate`: equal to the pure metrics on whole arrays, whatever the batches; and what it refuses."""

import json

import pytest
import torch
from evaluation_fake import SITE, MemoryStore, activations, contexts, store_of_model, tiny_gpt2, topk_dictionary

from sparsight.coding import gradient_pursuit
from sparsight.errors import DataError, UndefinedMetric
from sparsight.evaluation import Evaluation, evaluate, metrics
from sparsight.evaluation.density import Density
from sparsight.evaluation.l0 import L0
from sparsight.evaluation.splice import KnownLosses, loss_added
from sparsight.models import Site


@pytest.fixture(scope="module")
def store():
    return MemoryStore(*activations())


@pytest.fixture(scope="module")
def dictionary():
    return topk_dictionary(site=SITE, model="tiny")


def heldout(store):
    return store.split("heldout").x


def test_every_number_is_that_of_the_pure_metric_on_the_whole_array(store, dictionary):
    result = evaluate(dictionary, store, batch_size=37)
    x = heldout(store)
    with torch.no_grad():
        code = dictionary.encode(x)
        x_hat = dictionary.decode(code)
    mean = x.double().mean(dim=0)
    assert result.fvu.value == pytest.approx(metrics.fvu(x, x_hat), rel=1e-9)
    assert result.fvu_uncentred.value == pytest.approx(metrics.fvu_uncentred(x, x_hat), rel=1e-9)
    assert result.fvu_token_mean.value == pytest.approx(metrics.fvu_token_mean(x, x_hat), rel=1e-9)
    assert result.cosine.value == pytest.approx(metrics.cosine(x, x_hat), rel=1e-9)
    assert result.cosine_centred.value == pytest.approx(metrics.cosine(x, x_hat, centre=mean), rel=1e-9)
    assert result.l0.mean.value == metrics.l0(code)
    assert (result.l0.median, result.l0.p99) == (L0.of(code).median, L0.of(code).percentile(99))
    density = Density.of(code)
    assert result.density.dead_fraction == density.dead_fraction
    assert result.density.dense_fraction == density.dense_fraction()
    assert result.density.histogram_counts == density.histogram().counts.tolist()
    assert result.density.dead_bound == 3 / len(x)
    for found, centre in ((result.shrinkage, None), (result.shrinkage_centred, dictionary.b_dec.detach())):
        expected = metrics.shrinkage(x, x_hat, centre=centre)
        for name in ("rho", "nu", "r", "alpha", "beta", "gamma_v1", "scale_gain"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)
    assert (result.n_tokens, result.n_documents, result.split) == (len(x), 10, "heldout")


def test_batches_do_not_matter(store, dictionary):
    small, large = (evaluate(dictionary, store, batch_size=size).model_dump() for size in (13, 4096))
    for name in ("fvu", "cosine", "fvu_token_mean", "l0", "density", "shrinkage"):
        assert json.dumps(small[name]) != ""
        torch.testing.assert_close(torch.tensor(flat(small[name])), torch.tensor(flat(large[name])))


def flat(value: object) -> list[float]:
    if isinstance(value, dict):
        return [x for item in value.values() for x in flat(item)]
    if isinstance(value, list | tuple):
        return [x for item in value for x in flat(item)]
    return [float(value)]


def test_intervals_are_over_documents_and_hold_the_value(store, dictionary):
    result = evaluate(dictionary, store)
    for found in (result.fvu, result.cosine, result.fvu_uncentred):
        assert found.low < found.value < found.high
        assert 0 < found.standard_error < found.high - found.low
    assert evaluate(dictionary, store, seed=1).fvu.low != result.fvu.low
    assert evaluate(dictionary, store, seed=0).fvu == result.fvu


def test_tokens_of_outlying_norm_are_counted_and_said(dictionary):
    x, ids = activations()
    x[0] *= 1000
    clean = evaluate(dictionary, MemoryStore(x[1:], ids[1:]))
    assert clean.n_outliers == 0
    assert clean.fvu_without_outliers == clean.fvu
    result = evaluate(dictionary, MemoryStore(x, ids))
    assert result.n_outliers == 1
    assert result.fvu_without_outliers.value == pytest.approx(clean.fvu.value, rel=1e-6)
    assert abs(result.fvu.value - clean.fvu.value) > 0.05 * clean.fvu.value
    assert any("1 of 300 tokens have more than 10 times" in note for note in result.notes)


def test_another_coder_measures_that_coder(store, dictionary):
    x = heldout(store)
    result = evaluate(dictionary, store, coder="gradient_pursuit", k=3)
    with torch.no_grad():
        code = gradient_pursuit(x - dictionary.b_dec, dictionary.atoms, 3)
        expected = metrics.fvu(x, dictionary.decode(code))
    assert result.fvu.value == pytest.approx(expected, rel=1e-6)
    assert (result.coder, result.k, result.l0.mean.value) == ("gradient_pursuit", 3, metrics.l0(code))


def test_a_few_tokens_are_taken_from_everywhere(store, dictionary):
    result = evaluate(dictionary, store, n_tokens=160)
    assert result.n_tokens == 160
    assert result.n_documents == 10


def test_the_loss_is_that_of_the_contexts_of_the_split():
    lm = tiny_gpt2()
    batches = contexts(lm=lm)
    store = store_of_model(lm, batches)
    dictionary = topk_dictionary(site=SITE, model="tiny").double()
    result = evaluate(dictionary, store, model=lm)

    def reconstruct(x):
        with torch.no_grad():
            return dictionary.decode(dictionary.encode(x))

    mean = store.x.float().double().mean(dim=0)
    parts = [loss_added(lm, b.tokens, SITE, reconstruct, mean) for b in batches]
    whole = sum(parts[1:], parts[0])
    assert result.no_loss_because is None
    assert result.loss.n_tokens == whole.n
    assert result.loss.clean == pytest.approx(whole.clean, rel=1e-9)
    assert result.loss.added.value == pytest.approx(whole.value, rel=1e-6)
    assert result.loss.added_by_mean.value == pytest.approx(whole.added_by_mean, rel=1e-6)
    assert result.loss.fraction_of_mean.value == pytest.approx(whole.fraction_of_mean, rel=1e-6)
    assert result.loss.fraction_of_zero.value == pytest.approx(whole.fraction_of_zero, rel=1e-6)
    assert result.loss.kl.value == pytest.approx(whole.kl, rel=1e-6)
    assert result.loss.added.low < result.loss.added.value < result.loss.added.high
    assert "loss added / mean ablation" in result.to_table()


@pytest.mark.parametrize(("clean_bytes", "n_later"), [(2**28, 1), (0, 2)])
def test_passes_that_no_dictionary_changes_are_made_once_for_all_dictionaries(monkeypatch, clean_bytes, n_later):
    lm = tiny_gpt2()
    batches = contexts(lm=lm)
    store = store_of_model(lm, batches)
    dictionaries = [topk_dictionary(site=SITE, model="tiny", seed=seed).double() for seed in (0, 1)]
    lone = {"gap_tokens": 0, "baseline_tokens": 0}
    alone = [evaluate(dictionary, store, model=lm, **lone) for dictionary in dictionaries]
    passes, logits = [], lm.logits
    monkeypatch.setattr(lm, "logits", lambda *args, **kwargs: (passes.append(1), logits(*args, **kwargs))[1])
    known = KnownLosses(clean_bytes=clean_bytes)
    for dictionary, expected, n in zip(dictionaries, alone, (4, n_later), strict=True):
        passes.clear()
        assert evaluate(dictionary, store, model=lm, known=known, **lone).loss == expected.loss
        assert len(passes) == n * len(batches) + 2  # each activation spliced in its own place, and clean
    assert alone[0].loss != alone[1].loss
    with pytest.raises(ValueError, match="known losses are of another model, site, store"):
        evaluate(dictionaries[0], store, model=lm, known=known, loss_tokens=10)


def test_a_model_without_a_causal_loss_is_said_and_the_rest_measured(store, dictionary):
    lm = tiny_gpt2()
    lm._family = type("Family", (), {"has_causal_loss": False, "name": "bert"})()
    result = evaluate(dictionary, store, model=lm)
    assert result.loss is None
    assert result.no_loss_because == "tiny (bert) has no causal loss"
    assert evaluate(dictionary, store).no_loss_because == "no model was given"


def test_one_document_has_no_interval_and_says_so(dictionary):
    x, ids = activations(documents=1)
    result = evaluate(dictionary, MemoryStore(x, ids))
    assert result.fvu.low is None
    assert result.notes == ["one document only: no interval is possible"]


def test_the_record_survives_json_and_names_its_conventions(store, dictionary):
    result = evaluate(dictionary, store)
    assert Evaluation.model_validate_json(result.to_json()) == result
    for name in ("fvu", "cosine", "density", "shrinkage", "loss", "l0"):
        assert name in result.conventions
    table = result.to_table()
    assert "FVU" in table
    assert "no loss added: no model was given" in table
    assert all(len(line) <= 110 for line in table.splitlines())


def test_a_dictionary_of_another_site_or_model_is_refused_unless_forced(store):
    elsewhere = topk_dictionary(site=Site.parse("2.resid_post"), model="tiny")
    with pytest.raises(DataError, match=r"holds 1\.resid_post, expected 2\.resid_post"):
        evaluate(elsewhere, store)
    with pytest.raises(DataError, match=r"made for 2\.resid_post, got activations of 1\.resid_post"):
        evaluate(elsewhere, store, site="1.resid_post")
    assert evaluate(elsewhere, store, site="1.resid_post", force=True).site == "1.resid_post"
    other = topk_dictionary(site=SITE, model="other")
    with pytest.raises(DataError, match="made for model other, got activations of tiny"):
        evaluate(other, store)
    assert evaluate(other, store, force=True).n_tokens == 300


def test_another_model_than_that_of_the_store_is_refused(dictionary):
    store = MemoryStore(*activations(), model="big")
    with pytest.raises(DataError, match="activations are of model big, got model tiny"):
        evaluate(topk_dictionary(), store, model=tiny_gpt2())


def test_a_model_folder_may_have_moved(store):
    made_elsewhere = topk_dictionary(site=SITE, model="/home/someone/models/tiny/")
    assert evaluate(made_elsewhere, store, model=tiny_gpt2()).n_tokens == 300


def test_wrong_arguments_are_refused(store, dictionary):
    with pytest.raises(ValueError, match=r"width 6, those at .* have 8"):
        evaluate(topk_dictionary(d_in=6), store)
    with pytest.raises(ValueError, match="k=3 needs a coder"):
        evaluate(dictionary, store, k=3)
    with pytest.raises(ValueError, match="needs k"):
        evaluate(dictionary, store, coder="pursuit")
    with pytest.raises(ValueError, match="between 1 and n_latents=24, got k=25"):
        evaluate(dictionary, store, coder="pursuit", k=25)
    with pytest.raises(ValueError, match="unknown coder 'magic'"):
        evaluate(dictionary, store, coder="magic", k=3)
    with pytest.raises(ValueError, match="split must be"):
        evaluate(dictionary, store, split="test")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate(dictionary, store, batch_size=0)


def test_a_split_without_rows_and_activations_that_do_not_vary_are_refused(dictionary):
    x, ids = activations()
    with pytest.raises(DataError, match="heldout split of the store has no rows"):
        evaluate(dictionary, MemoryStore(x, ids * 3 + 1))
    with pytest.raises(UndefinedMetric, match="all equal"):
        evaluate(dictionary, MemoryStore(torch.full_like(x, 0.1), ids))
