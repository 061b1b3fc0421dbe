"""The study of Gated's loss: identities, comparison along a frontier, verdicts on constructed numbers, a fast run."""

import math
from typing import Any

import pytest
import torch

from sparsight.dictionaries import Gated, ReLU
from sparsight.studies import Options, read_record, run_study
from sparsight.studies import gated_loss_exact as exact
from sparsight.studies.gated_loss_compared import better_weight, beyond, excess, excess_effects, note, place
from sparsight.studies.gated_loss_rescaled import fit_rescaling
from sparsight.studies.gated_loss_shown import panels
from sparsight.studies.gated_loss_trained import (
    NO_STEP,
    PUBLISHED,
    RELU,
    RESCALED,
    SHIFTED,
    SPREADS,
    UNFROZEN,
    VARIANTS,
    WITHOUT,
    Data,
    configurations,
    fixed_name,
    frontier_names,
    measured,
)
from sparsight.studies.gated_loss_verdicts import exact_verdicts, misses, shuts, trained_verdicts
from sparsight.studies.record import UNDECIDED, Effect

TARGET = 8.0


def effect(value: float, half: float = 0.001, name: str = "a") -> Effect:
    return Effect(name=name, value=value, low=value - half, high=value + half, n=5, unit="over seeds")


def arm(l0: float, fvu: float, documents: int, gate: float = 1.0) -> dict[str, Any]:
    shares = [1.2, 0.8] * (documents // 2) if documents > 1 else [1.0]
    return {"l0": l0, "error": [fvu * share for share in shares], "gate": gate, "r": 1.0, "silent": 0.0}


def run(factors: dict[str, float], *, documents: int, l0s: dict[str, float] | None = None, gate: float = 1.0) -> Any:
    """A stream on which the published FVU is `1 / L0`, and other arms have that times a factor at their own L0."""
    l0s = l0s or {}
    arms = {}
    for name in (PUBLISHED, RELU, RESCALED, SHIFTED):
        for spread, at in zip(SPREADS[PUBLISHED if name == PUBLISHED else RELU], frontier_names(name), strict=True):
            arms[at] = arm(TARGET * spread, factors.get(name, 1.0) / (TARGET * spread), documents)
    for name in VARIANTS:
        if name != PUBLISHED:
            at = l0s.get(name, TARGET)
            arms[name] = arm(at, factors.get(name, 1.0) / at, documents)
    arms[fixed_name(PUBLISHED)] = arm(20.0, 0.05, documents)
    arms[fixed_name(WITHOUT)] = arm(l0s.get(fixed_name(WITHOUT), 1.0), 0.9, documents, gate)
    return {"energy": [1.0] * documents, "arms": arms}


def data(planted: float, model: float, name: str = UNFROZEN, **options: Any) -> dict[str, list[Any]]:
    """Five seeds of each kind of data whose excesses scatter by 0.001 about those given."""
    return {
        where: [run({name: 1 + value + d}, documents=documents, **options) for d in (-0.002, -0.001, 0, 0.001, 0.002)]
        for where, value, documents in (("planted", planted, 1), ("model", model, 40))
    }


def verdict(found: dict[str, list[Any]], about: str) -> Any:
    return next(v for v in trained_verdicts(found) if about in v.question)


def test_every_cell_of_the_gradient_table_is_what_is_published_and_zeros_are_exact():
    for seed in range(3):
        table = exact.gradient_table(seed)
        assert exact.agrees(table) == 24
        assert table["b_gate"]["reconstruction"] == table["atoms"]["third term"] == table["r_mag"]["sparsity"] == 0.0
        assert table["b_dec"]["third term"] > 0.1
        assert table["b_dec"][exact.HELD] == 0.0
        assert exact.smallest_push_shut(seed) >= 0


def test_the_expected_reconstruction_does_move_with_the_gates_though_autograd_says_not():
    found = exact.unseen_slope(0, n=50_000)
    assert found["autograd"] == 0.0
    assert found["slope"] > 10 * found["error"]
    assert exact.unseen_slope(0, n=50_000, step=0.025)["slope"] == pytest.approx(found["slope"], rel=0.1)


def test_the_scale_symmetry_holds_to_rounding_and_the_third_term_breaks_it():
    for row in exact.scale_symmetry(1):
        assert max(row["code"], row["reconstruction"], row["sparsity"]) < 1e-13
        assert abs(row["third term"] - 1) > 0.1


def test_both_readings_have_the_gradient_of_the_encoder_and_neither_that_of_the_decoder():
    for name, found in exact.perspectives(2).items():
        assert found["P1"] == pytest.approx(found["P2"], abs=1e-14)
        assert (found["P2"] > 0.05) == (name in ("atoms", "b_dec"))
        assert max(found["P2, decoder of q held"], found["explained"], found["masked"]) < 1e-13


def test_exact_verdicts_turn_with_what_was_computed():
    found = {
        "table": exact.gradient_table(0),
        "least_push": 0.0,
        "slope": {"slope": 0.5, "error": 0.01, "autograd": 0.0},
        "symmetry": exact.scale_symmetry(0),
        "perspectives": exact.perspectives(0),
    }
    cells, free, reading = exact_verdicts(found)
    assert (cells.answer, free.answer) == ("yes", "yes")
    assert reading.answer.startswith("depends on the parameter")
    found["table"]["b_gate"]["reconstruction"] = 1e-3
    found["symmetry"][0]["code"] = 1e-3
    found["perspectives"]["W_enc"]["P1"] = 1e-3
    assert [v.answer for v in exact_verdicts(found)] == ["no", "no", "no"]


def test_a_value_is_placed_between_its_neighbours_in_logarithms():
    assert place(4.0, [8.0, 2.0, 1.0]) == (1, 0, pytest.approx(0.5))
    assert place(2.0, [1.0, 2.0])[2] == pytest.approx(1.0)
    assert place(0.9, [1.0, 2.0]) is None
    assert place(2.1, [1.0, 2.0]) is None


def test_an_arm_is_compared_with_the_published_loss_at_the_l0_it_reached():
    """The published FVU is 1 / L0, straight in logarithms: interpolation is exact."""
    off = run({UNFROZEN: 1.25}, documents=1, l0s={UNFROZEN: 5.3})
    assert excess(off, UNFROZEN) == pytest.approx(0.25)
    assert excess(off, PUBLISHED) == pytest.approx(0)
    beyond_it = run({}, documents=1, l0s={UNFROZEN: 17.0})
    assert excess(beyond_it, UNFROZEN) is None
    lost = excess_effects({"planted": [beyond_it, off]}, UNFROZEN)
    assert [(e.value, e.unit) for e in lost] == [(0.5, "share of seeds")]


def test_excess_has_an_interval_over_seeds_and_on_documents_one_over_them():
    seeds, documents = excess_effects({"model": data(0.1, 0.1)["model"]}, UNFROZEN)
    assert (seeds.n, documents.n) == (5, 40)
    assert (seeds.value, documents.value) == pytest.approx((0.1, 0.1))
    # Every document has the same ratio of errors, so that drawing others changes nothing.
    assert documents.high - documents.low < 1e-9


@pytest.mark.parametrize(
    ("planted", "model", "answer"),
    [
        (0.1, 0.05, "yes"),
        (0.01, -0.1, "no"),
        (0.1, -0.1, "depends on the data"),
        (0.1, 0.02, UNDECIDED),
    ],
)
def test_a_change_costs_variance_only_if_it_does_on_all_data_beyond_the_margin(planted, model, answer):
    assert verdict(data(planted, model), "train the decoder").answer == answer


def test_an_l0_that_cannot_be_had_counts_as_a_cost():
    found = data(0, 0, NO_STEP, l0s={NO_STEP: 60.0})
    assert verdict(found, "step function").answer == "yes"
    assert "100% of seeds" in verdict(found, "step function").because


def test_intervals_over_seeds_and_documents_must_agree():
    assert beyond([effect(0.1), effect(0.3)], 0.02, wanted=1) == "yes"
    assert beyond([effect(0.1), effect(0.3, 1.0)], 0.02, wanted=1) == UNDECIDED
    assert beyond([effect(0.1), effect(-0.1)], 0.02, wanted=1) == UNDECIDED
    assert beyond([effect(0.1), effect(-0.1, name="b")], 0.02, wanted=1) == "depends on the data"
    assert "about 5 units" not in note([effect(0.1)], 0.02)
    assert "instead of 5" in note([effect(0.03, 0.02)], 0.02)


def test_another_weight_is_better_only_if_it_is_on_all_data():
    worse, better, unclear = effect(0.1), effect(-0.1), effect(-0.02, 0.01)
    assert better_weight({0.1: [worse, worse], 3.0: [better, better]}) == "yes"
    assert better_weight({0.1: [worse, worse], 3.0: [effect(-0.01), worse]}) == "no"
    assert better_weight({0.1: [worse, worse], 3.0: [worse, better]}) == "depends on the data"
    assert better_weight({0.1: [worse, worse], 3.0: [unclear, better]}) == UNDECIDED


def test_gated_is_held_against_relu_along_its_own_frontier():
    found = verdict({"planted": [run({RELU: 2.0 + d}, documents=1) for d in (0, 0.01)]}, "better than ReLU")
    assert found.answer == "yes"
    # Twice the published FVU at L0 8 is the published one at L0 4.
    assert found.effects[-1].value == pytest.approx(0.5, abs=0.01)


def test_an_l0_is_missed_if_it_is_in_most_seeds_of_all_data():
    targets = {"planted": TARGET, "model": TARGET}
    away, there = data(0, 0, WITHOUT, l0s={WITHOUT: 3.0}), data(0, 0, WITHOUT, l0s={WITHOUT: 7.0})
    assert misses(away, targets).answer == "yes"
    assert misses(there, targets).answer == "no"
    assert misses({"planted": away["planted"], "model": there["model"]}, targets).answer == "depends on the data"


@pytest.mark.parametrize(("l0", "gate", "answer"), [(1.0, 0.9, "yes"), (1.0, 0.1, "no"), (15.0, 0.9, "no")])
def test_gates_that_shut_are_told_from_weights_that_vanish(l0, gate, answer):
    assert shuts(data(0, 0, l0s={fixed_name(WITHOUT): l0}, gate=gate)).answer == answer


def test_all_arms_differ_and_none_has_a_fourth_term_but_the_revived_one():
    made = configurations(16, 4.0, 1000)
    assert len(set(made.values())) == len(made) == len(VARIANTS) + 3 + 3 + 2
    assert [name for name, config in made.items() if config.aux > 0] == ["no third term, revival"]


def test_a_known_rescaling_is_found_and_is_the_best_there_is():
    """Atoms at an angle, read without interference; each latent is shrunk by a scale and a shift of its own."""
    g = torch.Generator().manual_seed(0)
    dictionary = ReLU(3, 0.1).build(8, torch.Generator().manual_seed(1)).double().requires_grad_(False)
    dictionary.b_dec.copy_(torch.randn(8, generator=g, dtype=torch.float64))
    shrinks = torch.tensor([0.5, 0.8, 1.0], dtype=torch.float64)
    dictionary.W_enc.copy_(torch.linalg.pinv(dictionary.atoms) * shrinks)
    dictionary.b_enc.copy_(torch.tensor([-0.1, -0.2, -0.3]))
    true = (1 + torch.rand(500, 3, generator=g, dtype=torch.float64)) * (torch.rand(500, 3, generator=g) > 0.5)
    x = true @ dictionary.atoms + dictionary.b_dec
    code = dictionary.encode_dense(x)
    found = fit_rescaling(dictionary, x, shift=True)
    torch.testing.assert_close(found.scale, 1 / shrinks, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.shift, torch.tensor([0.2, 0.25, 0.3]).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.of(code), true, rtol=1e-3, atol=1e-9)
    only = fit_rescaling(dictionary, x, shift=False)
    assert not bool(only.shift.any())

    def error(scale: torch.Tensor) -> float:
        return float((x - dictionary.b_dec - code * scale @ dictionary.atoms).square().sum())

    for j in range(3):
        for step in (-1e-3, 1e-3):
            moved = only.scale.clone()
            moved[j] += step
            assert error(moved) > error(only.scale)


def test_measurements_of_a_dictionary_are_those_done_by_hand():
    dictionary = Gated(2, 0.1).build(2, torch.Generator().manual_seed(0)).requires_grad_(False)
    for parameter, value in ((dictionary.atoms, torch.eye(2)), (dictionary.W_enc, torch.eye(2))):
        parameter.copy_(value)
    dictionary.b_gate.fill_(-1.0)
    x = torch.tensor([[2.0, 0.5], [0.5, 0.5], [3.0, -1.0], [0.0, 0.0]])
    found = measured({"a": dictionary}, Data(x, torch.tensor([7, 7, 9, 9]), x))
    only = found["arms"]["a"]
    assert only["l0"] == 0.5
    assert only["error"] == pytest.approx([0.75, 1.0])
    assert (only["silent"], only["gate"]) == (0.5, 1.0)
    mean = torch.tensor([1.375, 0.0])
    assert sum(found["energy"]) == pytest.approx(float((x - mean).square().sum()))


def test_an_arm_beyond_the_frontier_leaves_a_gap_in_the_drawing():
    found = panels(data(0.1, 0.1, l0s={UNFROZEN: 60.0}))
    assert len(found) == 6
    assert UNFROZEN not in found[0].lines[0].x
    assert math.isclose(found[2].lines[0].y[2], 0, abs_tol=1e-12)


@pytest.mark.slow
def test_the_fast_run_answers_every_question(tmp_path):
    run_study("gated-loss", tmp_path / "s", Options(fast=True))
    record = read_record(tmp_path / "s")
    assert len(record.verdicts) == 16
    assert [v.answer for v in record.verdicts[2:4]] == ["yes", "yes"]
    assert (tmp_path / "s" / "figure.png").is_file()
