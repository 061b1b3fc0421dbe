"""Which tokens count: said, obeyed, and shown both ways where it matters."""

import pytest
import torch
from evaluation_fake import SITE, MemoryStore, activations, contexts, store_of_model, tiny_gpt2, topk_dictionary

from sparsight.errors import UndefinedMetric
from sparsight.evaluation import evaluate, metrics
from sparsight.evaluation.token_policy import FIRST, OUTLYING, CellSums, TokenPolicy


@pytest.fixture(scope="module")
def dictionary():
    return topk_dictionary(site=SITE, model="tiny")


def with_a_sink() -> MemoryStore:
    x, ids = activations()
    x[0] *= 1000
    return MemoryStore(x, ids)


def direct_fvu(dictionary, x):
    with torch.no_grad():
        return metrics.fvu(x, dictionary(x))


def test_leaving_outlying_tokens_out_measures_the_others_alone(dictionary):
    store = with_a_sink()
    result = evaluate(dictionary, store, policy=TokenPolicy(outliers=False), baseline_tokens=0)
    others = store.split("heldout").x[1:]
    assert result.n_tokens == len(others)
    assert result.fvu.value == pytest.approx(direct_fvu(dictionary, others), rel=1e-9)
    assert result.mse is not None
    assert "10 times the median norm out" in result.token_policy
    # What the headline leaves out is measured all the same.
    side = result.token_sides[0]
    assert (side.counted, side.n_tokens, side.differ) == (False, 1, True)
    assert side.fvu_with == pytest.approx(direct_fvu(dictionary, store.split("heldout").x), rel=1e-6)
    assert side.fvu_without == pytest.approx(result.fvu.value, rel=1e-9)


def test_a_kind_of_token_that_changes_the_headline_is_shown_with_and_without(dictionary):
    x, ids = activations()
    first = torch.arange(len(ids)) == torch.searchsorted(ids, ids)
    x[first] *= 6  # below ten times the median, but far from the others
    store = MemoryStore(x, ids)
    result = evaluate(dictionary, store, baseline_tokens=0)
    side = next(side for side in result.token_sides if side.tokens == "first in the context")
    heldout = store.split("heldout")
    here = heldout.tokens(slice(0, len(heldout))).positions == 0
    assert side.n_tokens == int(here.sum())
    assert side.fvu_with == pytest.approx(direct_fvu(dictionary, heldout.x), rel=1e-9)
    assert side.fvu_without == pytest.approx(direct_fvu(dictionary, heldout.x[~here]), rel=1e-9)
    assert side.differ
    assert any("first in the context, in the headline" in note for note in result.notes)
    without = evaluate(dictionary, store, policy=TokenPolicy(first=False), baseline_tokens=0)
    assert without.fvu.value == pytest.approx(side.fvu_without, rel=1e-9)


def test_special_tokens_are_read_from_the_model(dictionary):
    lm = tiny_gpt2()
    batches = contexts(lm=lm)
    store = store_of_model(lm, batches)
    made = topk_dictionary(site=SITE, model="tiny").double()
    result = evaluate(made, store, model=lm, split="all", baseline_tokens=0)
    side = result.token_sides[-1]
    assert side.tokens.startswith("special")
    assert not side.counted
    everything, counted = [], []
    for batch in batches:
        x = lm.activations(batch.tokens, [SITE])[SITE]
        everything.append(x[batch.tokens.mask])
        counted.append(x[batch.tokens.counted])
    assert side.n_tokens == sum(len(batch.tokens.ids) for batch in batches)
    assert side.fvu_with == pytest.approx(direct_fvu(made, torch.cat(everything)), rel=1e-9)
    assert side.fvu_without == pytest.approx(direct_fvu(made, torch.cat(counted)), rel=1e-9)


def test_cells_add_up_to_any_set_of_tokens():
    g = torch.Generator().manual_seed(11)
    x, x_hat = torch.randn(60, 5, generator=g).double() + 4, torch.randn(60, 5, generator=g).double()
    kinds = torch.randint(0, 4, (60,), generator=g)
    reference = torch.full((5,), 4.2, dtype=torch.float64)
    cells = CellSums(reference)
    for rows in torch.arange(60).split(17):
        shifted = x[rows] - reference
        residual = (x[rows] - x_hat[rows]).square().sum(1)
        cells.add(shifted, kinds[rows], torch.ones(len(rows)).double(), residual, shifted.square().sum(1))
    side = cells.side(OUTLYING, FIRST)
    no_first = (kinds & FIRST) == 0
    neither = kinds == 0
    assert side.fvu_with == pytest.approx(metrics.fvu(x[no_first], x_hat[no_first]), rel=1e-10)
    assert side.fvu_without == pytest.approx(metrics.fvu(x[neither], x_hat[neither]), rel=1e-10)
    assert (side.n_all, side.n_tokens) == (int(no_first.sum()), int(no_first.sum() - neither.sum()))


def test_a_policy_that_leaves_no_token_is_refused(dictionary):
    x, ids = activations(n=30, documents=30)  # every document is one token, the first of its context
    with pytest.raises(UndefinedMetric, match="no token is left"):
        evaluate(dictionary, MemoryStore(x, ids), policy=TokenPolicy(first=False))
    with pytest.raises(ValueError, match="outlier_norm must be above 1"):
        TokenPolicy(outlier_norm=1)
