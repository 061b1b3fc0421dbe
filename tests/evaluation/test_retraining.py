"""The dictionary of a random model: weights drawn anew, the store's own texts read again, and both judged alike."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from sparsight.activations import harvest
from sparsight.dictionaries import TopK
from sparsight.errors import UndefinedMetric
from sparsight.evaluation import evaluate
from sparsight.evaluation.benchmarks.record import Benchmark, Score
from sparsight.evaluation.benchmarks.run import BenchmarkSuite, with_floors
from sparsight.evaluation.metrics import fvu
from sparsight.evaluation.record_values import Estimate, Resampling
from sparsight.evaluation.retraining import RANDOM_MODEL, SAME_RECIPE, read_anew, records_of, retrained
from sparsight.models import Site, load_model, organism, randomised

SITE = Site.parse("1.resid_post")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    lm = load_model("organism", device="cpu")
    documents = itertools.islice(organism.corpus(81, 100), 100)
    store = harvest(
        lm, documents, [SITE], tmp_path_factory.mktemp("anew") / "s", n_tokens=3000, heldout=0.3, dtype="float32"
    )
    dictionary = TopK(64, 4).build(lm.width(SITE), torch.Generator().manual_seed(1))
    dictionary.site, dictionary.model = SITE, lm.name
    return SimpleNamespace(lm=lm, store=store, dictionary=dictionary)


def test_redrawn_weights_keep_their_mean_and_spread_and_nothing_else(made):
    before = {name: weight.clone() for name, weight in made.lm.model.named_parameters()}
    other, again, another = (randomised(made.lm, seed) for seed in (3, 3, 4))
    for name, weight in other.model.named_parameters():
        old = before[name]
        assert torch.equal(dict(made.lm.model.named_parameters())[name], old)
        assert torch.equal(dict(again.model.named_parameters())[name], weight)
        assert not torch.equal(dict(another.model.named_parameters())[name], weight)
        if old.numel() > 10_000:
            assert float(weight.std()) == pytest.approx(float(old.std()), rel=0.05)
            assert float(weight.mean()) == pytest.approx(float(old.mean()), abs=0.05 * float(old.std()))
            cosine = torch.nn.functional.cosine_similarity((weight - weight.mean()).flatten(), old.flatten(), dim=0)
            assert abs(float(cosine)) < 0.1


def test_the_same_model_reads_what_the_store_holds_and_labels_stay_with_their_tokens(made):
    held = read_anew(made.lm, made.store, SITE, {"train": 800, "heldout": 10_000})
    for name, limit in (("train", 800), ("heldout", 10_000)):
        side, part = held.split(name), made.store.split(name)
        facts = part.tokens(slice(0, len(part)))
        place = {
            (d, p): i
            for i, (d, p) in enumerate(zip(facts.document_ids.tolist(), facts.positions.tolist(), strict=True))
        }
        mine = side.tokens(slice(0, len(side)))
        rows = [place[d, p] for d, p in zip(mine.document_ids.tolist(), mine.positions.tolist(), strict=True)]
        assert 0.5 * min(limit, len(part)) < len(rows) <= 1.5 * min(limit, len(part))
        expected = part.rows(SITE, torch.tensor(rows))
        torch.testing.assert_close(side.rows(SITE, slice(0, len(side))), expected, rtol=1e-4, atol=1e-4)
        labels = part.labels(torch.tensor(rows))
        assert all(torch.equal(side.labels(slice(0, len(side)))[key], labels[key]) for key in labels)
        for batch in side.context_batches(8):
            stored = batch.rows >= 0
            assert torch.equal(side.facts.token_ids[batch.rows[stored]], batch.tokens.ids[stored])


def test_both_recipes_stand_beside_the_baselines_with_what_they_cost(made):
    found = evaluate(made.dictionary, made.store, model=made.lm, random_model_tokens=4000, loss_tokens=512)
    rows = {row.baseline: row for row in found.baselines}
    assert list(rows)[-2:] == [SAME_RECIPE, RANDOM_MODEL]
    for name in (SAME_RECIPE, RANDOM_MODEL):
        assert 0 < rows[name].fvu.value < 1
        assert rows[name].l0 == pytest.approx(4, abs=0.5)
        assert "4,000 training tokens" in rows[name].what
    assert rows[SAME_RECIPE].fvu.value != rows[RANDOM_MODEL].fvu.value
    assert [row.baseline for row in evaluate(made.dictionary, made.store, loss_tokens=512).baselines][
        -1
    ] == "random atoms"


def test_the_random_model_is_judged_on_its_own_activations(made):
    first, second = retrained(made.dictionary, made.store, made.lm, SITE, n_tokens=2000, n_heldout=500, seed=5)
    assert (first.name, second.name) == (SAME_RECIPE, RANDOM_MODEL)
    assert torch.equal(first.store.facts.token_ids, second.store.facts.token_ids)
    assert not torch.allclose(first.store.x, second.store.x, atol=0.1)
    assert second.dictionary.model == second.store.model == "organism, weights redrawn"


def test_each_is_judged_on_held_out_documents_of_its_own_model(made):
    found = retrained(made.dictionary, made.store, made.lm, SITE, n_tokens=2000, n_heldout=500, seed=5)
    for one, record in zip(found, records_of(found, Resampling(n_resamples=10)), strict=True):
        x = one.store.x[one.store.heldout]
        code = one.dictionary.encode(x)
        assert record.fvu.value == pytest.approx(fvu(x, one.dictionary.decode(code).detach()), rel=1e-5)
        assert record.l0 == pytest.approx(float(code.l0().double().mean()))
        assert record.n_tokens == len(x)
        # A quarter of the tokens is read, and repeated.
        assert len(one.store) - len(x) == pytest.approx(500, rel=0.3)


def test_what_is_read_again_comes_from_everywhere(made):
    held = read_anew(made.lm, made.store, SITE, {"train": 400, "heldout": 200})
    for side in ("train", "heldout"):
        part = made.store.split(side)
        every = torch.unique(part.tokens(slice(0, len(part))).document_ids)
        read = torch.searchsorted(every, torch.unique(held.split(side).facts.document_ids)).double() / len(every)
        assert float(read.min()) < 0.2
        assert float(read.max()) > 0.8
        assert float(read.mean()) == pytest.approx(0.5, abs=0.15)


def test_a_model_that_cannot_be_redrawn_is_refused(made):
    with pytest.raises(UndefinedMetric, match="weights are drawn anew"):
        retrained(made.dictionary, made.store, None, SITE, n_tokens=100)


def test_scores_of_another_run_become_floors_by_name():
    def suite(value: float, *names: str) -> BenchmarkSuite:
        scores = tuple(Score(name=n, value=Estimate(value=value), better="higher", floors={"x": 0.1}) for n in names)
        one = Benchmark(
            benchmark="scr", question="", settings={}, scores=scores, details=(), left_out=(), metrics={}, seconds=0.0
        )
        return BenchmarkSuite(site="embed", model="tiny", n_latents=3, benchmarks=(one,), not_run=())

    merged = with_floors(suite(0.9, "N=2", "N=5"), "random model", suite(0.7, "N=5"))
    assert [s.floors for s in merged.benchmarks[0].scores] == [{"x": 0.1}, {"x": 0.1, "random model": 0.7}]
    assert merged.benchmarks[0].scores[1].value.value == 0.9
