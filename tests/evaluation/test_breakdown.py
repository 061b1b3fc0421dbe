"""Tokens in groups: each group's numbers are those of its rows, and together they are the headline."""

import pytest
import torch
from evaluation_fake import SITE, MemoryStore, activations, topk_dictionary

from sparsight.evaluation import evaluate
from sparsight.evaluation.breakdown import Breakdown, by_label, by_position
from sparsight.evaluation.record_values import Resampling


@pytest.fixture(scope="module")
def store():
    x, ids = activations()
    return MemoryStore(x, ids, {"domain": ids % 3 - (ids % 9 == 0).long()})


@pytest.fixture(scope="module")
def result(store):
    return evaluate(topk_dictionary(site=SITE, model="tiny"), store, split="all", by=["position", "norm", "domain"])


def test_the_groups_of_each_breakdown_add_up_to_the_headline(store, result):
    assert [b.by for b in result.breakdowns] == ["position", "norm", "domain"]
    for breakdown in result.breakdowns:
        if breakdown.n_unlabelled:
            continue
        total = sum(g.share_of_variance * g.fvu.value for g in breakdown.groups)
        assert total == pytest.approx(result.fvu.value, rel=1e-9)
        assert sum(g.n_tokens for g in breakdown.groups) == result.n_tokens
        assert sum(g.share_of_residual for g in breakdown.groups) == pytest.approx(1)


def test_a_group_is_measured_on_its_own_rows_about_the_common_mean(store, result):
    dictionary = topk_dictionary(site=SITE, model="tiny")
    domain = result.breakdowns[2]
    assert domain.n_unlabelled == int((store.labels(slice(0, 900))["domain"] < 0).sum())
    rows = store.labels(slice(0, 900))["domain"] == 1
    x = store.x.double()
    with torch.no_grad():
        residual = (x - dictionary(store.x).double())[rows].square().sum()
    expected = residual / (x - x.mean(0))[rows].square().sum()
    group = next(g for g in domain.groups if g.group == "1")
    assert group.n_tokens == int(rows.sum())
    assert group.fvu.value == pytest.approx(expected.item(), rel=1e-6)
    assert group.fvu.low < group.fvu.value < group.fvu.high


def test_positions_double_from_group_to_group():
    grouping = by_position()
    places = torch.tensor([0, 1, 2, 3, 4, 7, 8, 1023, 1024, 5000])
    groups = grouping.assign(torch.zeros(10, 1), places, {})
    assert [grouping.names[i] for i in groups.tolist()] == [
        *("0", "1", "2 to 3", "2 to 3", "4 to 7", "4 to 7", "8 to 15", "512 to 1023", "1024 and later"),
        "1024 and later",
    ]


def test_labels_that_do_not_fit_the_tokens_are_refused():
    breakdown = Breakdown(by_label("domain", ["a", "b"]))
    one = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="one for each token, got 2 for 3 tokens"):
        breakdown.add(torch.tensor([0, 1]), torch.arange(3), one, one, one)
    with pytest.raises(ValueError, match="has 2 classes, got class 2"):
        breakdown.add(torch.tensor([0, 1, 2]), torch.arange(3), one, one, one)
    breakdown.add(torch.tensor([0, 0, -1]), torch.arange(3), one, one, one)
    record = breakdown.record(Resampling())
    assert (record.n_unlabelled, [g.group for g in record.groups]) == (1, ["a"])


def test_an_unknown_grouping_is_refused(store):
    with pytest.raises(ValueError, match=r"labels of the store \(domain\), got 'colour'"):
        evaluate(topk_dictionary(site=SITE, model="tiny"), store, by=["colour"])
