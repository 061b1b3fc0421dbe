"""Several dictionaries on the same documents: real differences are told from none, and all is shown."""

import pytest
import torch
from evaluation_fake import SITE, MemoryStore, activations, topk_dictionary

from sparsight.errors import DataError
from sparsight.evaluation import SideBySide, evaluate_side_by_side
from sparsight.evaluation.benchmarks.layout import nearest_cosine, of_evaluation
from sparsight.evaluation.measuring import Settings
from sparsight.evaluation.record_values import Resampling
from sparsight.interpretation.evaluation_page import render
from sparsight.models import Site


@pytest.fixture(scope="module")
def found():
    x, ids = activations()
    store = MemoryStore(x, ids, {"domain": ids % 2})
    made = {
        "good": topk_dictionary(site=SITE, model="tiny"),
        "twin": topk_dictionary(site=SITE, model="tiny"),
        "bad": topk_dictionary(site=SITE, model="tiny"),
        "sparse": topk_dictionary(k=2, site=SITE, model="tiny"),
    }
    with torch.no_grad():
        made["twin"].b_dec += 1e-4
        made["bad"].atoms.neg_()
    return made, evaluate_side_by_side(made, store, settings=Settings(), resampling=Resampling(200))


def test_a_better_dictionary_is_told_at_equal_l0_and_only_there(found):
    _, result = found
    verdict = {(d.first, d.second): d.verdict for d in result.differences}
    assert len(verdict) == 6
    assert verdict["good", "bad"] == "good"
    assert verdict["good", "sparse"] == "not comparable"
    difference = next(d for d in result.differences if (d.first, d.second) == ("good", "bad"))
    values = result.evaluations["good"].fvu.value, result.evaluations["bad"].fvu.value
    assert difference.fvu.value == pytest.approx(values[0] - values[1])
    assert difference.l0_ratio == 1


def test_a_paired_difference_is_known_far_better_than_either_number(found):
    _, result = found
    twins = next(d for d in result.differences if (d.first, d.second) == ("good", "twin"))
    assert twins.fvu.standard_error < 0.01 * result.evaluations["good"].fvu.standard_error


def test_the_record_survives_json_and_shows_as_table_and_page(found):
    _, result = found
    assert SideBySide.model_validate_json(result.to_json()) == result
    table = result.to_table()
    assert "not comparable" in table
    assert "explained variance" in table
    page = render(result)
    for name in ("good", "twin", "bad", "sparse"):
        assert f"{name} by domain" in page
    assert page.count("<figure>") == 3
    assert "principal components" in page


def test_core_numbers_in_the_published_layout_mean_what_their_keys_say(found):
    made, result = found
    e = result.evaluations["good"]
    metrics = of_evaluation(e, made["good"], "good")["eval_result_metrics"]
    assert metrics["reconstruction_quality"]["explained_variance"] == 1 - e.fvu.value
    assert metrics["reconstruction_quality"]["mse"] == e.mse.value
    assert metrics["sparsity"] == {"l0": 4.0, "l1": e.l1.value}
    assert "model_performance_preservation" not in metrics
    assert 0 < metrics["misc_metrics"]["average_max_decoder_cosine_sim"] <= 1
    assert nearest_cosine(torch.eye(3)) == 0


def test_a_dictionary_of_another_site_is_refused_unless_forced():
    store = MemoryStore(*activations())
    other = {"other": topk_dictionary(site=Site.parse("2.resid_post"), model="tiny")}
    with pytest.raises(DataError, match=r"made for 2\.resid_post"):
        evaluate_side_by_side(other, store, site=SITE)
    forced = evaluate_side_by_side(other, store, site=SITE, settings=Settings(force=True))
    assert forced.evaluations["other"].site == str(SITE)
    with pytest.raises(ValueError, match="at least one dictionary"):
        evaluate_side_by_side({}, store)
