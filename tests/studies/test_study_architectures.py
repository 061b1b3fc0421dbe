"""The study of architectures: frontiers read at an L0, reported relations judged on constructed frontiers."""

import math

import pytest
import torch

from sparsight.dictionaries import TopK, TopKDictionary
from sparsight.studies import Options, run_study
from sparsight.studies.architectures_decided import (
    MARGIN,
    REPORTED,
    REST,
    Reported,
    agrees,
    at_l0,
    matched,
    order_verdict,
    pooled,
    ratios,
)
from sparsight.studies.architectures_measured import NAMES, architectures, fixed_fvu, refitted
from sparsight.studies.record import UNDECIDED, Effect

# FVU at L0 10 in the order of the literature; every frontier falls as 1 / L0.
AS_REPORTED = {
    "ReLU": 0.30,
    "ReLU, free norms": 0.302,
    "ReLU, p annealed": 0.24,
    "Gated": 0.22,
    "JumpReLU": 0.199,
    "TopK": 0.20,
    "BatchTopK": 0.198,
    "Matryoshka": 0.215,
    "Pursuit": 0.10,
}


def frontiers(at_ten, *, noise=0.0, targets=(5, 10, 20)):
    """Three seeds of dictionaries that miss every L0 by 3 %, on frontiers `FVU = c / L0`."""
    return [
        [
            {"architecture": name, "target": t, "l0": 1.03 * t, "fvu": 10 * c * math.exp(shift) / (1.03 * t)}
            for name, c in at_ten.items()
            for t in targets
        ]
        for shift in (-noise, 0.0, noise)
    ]


def effect(low, high):
    return Effect(name="x", value=(low + high) / 2, low=low, high=high, n=3, unit="log ratio")


def test_a_frontier_that_is_a_power_law_is_read_exactly():
    points = [(x, 3 * x**-0.7) for x in (8.3, 15.1, 33.0)]
    for wanted in (8, 12.5, 15.1, 32, 36):
        assert at_l0(points, wanted) == pytest.approx(3 * wanted**-0.7)


def test_a_frontier_is_followed_15_percent_beyond_its_ends_and_no_further():
    points = [(10.0, 0.5), (20.0, 0.25)]
    assert at_l0(points, 8.8) == pytest.approx(5 / 8.8)
    assert at_l0(points, 8.6) is None
    assert at_l0(points, 22.9) == pytest.approx(5 / 22.9)
    assert at_l0(points, 23.1) is None


def test_two_points_of_one_l0_are_no_line():
    assert at_l0([(10.0, 0.5), (10.0, 0.4)], 10) is None


def test_frontiers_in_the_reported_order_are_found_to_be():
    verdict = order_verdict("a model", matched(frontiers(AS_REPORTED), (5, 10, 20)))
    assert verdict.answer == "yes"
    assert len(verdict.effects) == len(REPORTED)
    assert "none" not in verdict.because


def test_one_relation_the_other_way_is_named():
    swapped = {**AS_REPORTED, "Matryoshka": 0.15}
    verdict = order_verdict("a model", matched(frontiers(swapped), (5, 10, 20)))
    assert verdict.answer == "depends on the pair"
    assert "The other way: BatchTopK below Matryoshka." in verdict.because


def test_a_frontier_out_of_reach_decides_nothing_about_its_relations():
    rows = frontiers(AS_REPORTED)
    for seed in rows:
        for row in seed:
            if row["architecture"] == "JumpReLU":
                row["l0"] *= 10
    verdict = order_verdict("a model", matched(rows, (5, 10, 20)))
    assert verdict.answer == UNDECIDED
    assert "Not decided: JumpReLU not above Gated; JumpReLU not above TopK; BatchTopK about JumpReLU" in verdict.because


def test_ratios_are_paired_by_seed():
    """What shifts all architectures of a seed alike leaves their ratios exact."""
    at = matched(frontiers(AS_REPORTED, noise=0.5), (5, 10, 20))
    claim = Reported("TopK", "ReLU", "below", "")
    for found in [*ratios(at, claim).values(), pooled(at, claim)]:
        assert found.value == pytest.approx(math.log(2 / 3))
        assert found.high - found.low == pytest.approx(0, abs=1e-9)


def test_the_best_of_the_rest_is_the_least_at_each_l0():
    at = matched(frontiers(AS_REPORTED), (5, 10, 20))
    found = ratios(at, Reported("Pursuit", REST, "below", ""))
    assert [e.value for e in found.values()] == pytest.approx([math.log(0.10 / 0.198)] * 3)


@pytest.mark.parametrize(
    ("relation", "low", "high", "answer"),
    [
        ("below", -0.2, -0.01, "yes"),
        ("below", 0.01, 0.2, "no"),
        ("below", -0.01, 0.2, UNDECIDED),
        ("not above", -0.2, 0.9 * MARGIN, "yes"),
        ("not above", 1.1 * MARGIN, 0.2, "no"),
        ("not above", 0.0, 1.1 * MARGIN, UNDECIDED),
        ("about", -0.9 * MARGIN, 0.9 * MARGIN, "yes"),
        ("about", 1.1 * MARGIN, 0.2, "no"),
        ("about", -0.2, -1.1 * MARGIN, "no"),
        ("about", 0.0, 1.1 * MARGIN, UNDECIDED),
        ("about", -1.1 * MARGIN, 0.0, UNDECIDED),
    ],
)
def test_a_relation_is_judged_by_the_whole_interval(relation, low, high, answer):
    assert agrees([effect(low, high)], relation) == answer


def test_a_relation_must_hold_at_every_l0():
    below, above, open_one = effect(-0.2, -0.1), effect(0.1, 0.2), effect(-0.1, 0.1)
    assert agrees([below, below], "below") == "yes"
    assert agrees([below, above, open_one], "below") == "depends on L0"
    assert agrees([below, open_one], "below") == UNDECIDED
    assert agrees([], "below") == UNDECIDED


def test_reported_relations_are_about_architectures_that_are_trained():
    assert {name for c in REPORTED for name in (c.first, c.second)} - {REST} == set(NAMES)
    assert len({config.run_name for config in architectures(64, 8).values()}) == len(NAMES)


def planted_dictionary():
    """Orthonormal atoms read by their transpose, halved: right latents, wrong values."""
    d = TopK(4, k=2).build(4, torch.Generator().manual_seed(0))
    assert isinstance(d, TopKDictionary)
    with torch.no_grad():
        d.atoms.copy_(torch.eye(4))
        d.W_enc.copy_(torch.eye(4) / 2)
        d.b_dec.fill_(3.0)
    return d


def test_the_best_values_on_the_latents_of_a_code_undo_wrong_values():
    x = torch.tensor([[4.0, 5.0, 3.0, 3.0], [3.0, 3.0, 4.0, 7.0], [6.0, 3.0, 5.0, 3.0]])
    d = planted_dictionary()
    assert not torch.allclose(d(x), x, atol=0.4)
    torch.testing.assert_close(refitted(d, x), x)


def test_equal_l0_keeps_the_asked_number_of_latents_in_every_token():
    x = torch.tensor([[4.0, 5.0, 3.0, 3.0], [3.0, 3.0, 4.0, 7.0], [6.0, 3.0, 5.0, 3.0]])
    d = planted_dictionary()
    variance = (x - x.mean(dim=0)).square().sum()
    left = {1: (0.5**2 * (4 + 16 + 9) + 1 + 1 + 4) / variance, 2: 0.25 * (5 + 17 + 13) / variance}
    for k, expected in left.items():
        assert fixed_fvu(d, x, k) == pytest.approx(float(expected))
    assert fixed_fvu(architectures(8, 2)["Gated"].build(4), x, 1) is None


@pytest.mark.slow
def test_the_fast_study_measures_every_architecture_and_opens_again(tmp_path):
    out = tmp_path / "out"
    first = run_study("architectures", out, Options(fast=True, device="cpu"))
    assert len(first.record.verdicts) == 1
    table = next(t for t in first.record.tables if "every dictionary" in t.title)
    assert [row[0] for row in table.rows] == [name for name in NAMES for _ in range(2)]
    again = run_study("architectures", out, Options(fast=True, device="cpu"))
    assert again.found
    assert again.record == first.record
