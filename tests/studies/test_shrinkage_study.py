"""The study of shrinkage: its measurements on cases with known answers, its verdicts on constructed ones."""

from pathlib import Path

import pytest
import torch

from sparsight.codes import SparseCode
from sparsight.coding import fista, refit
from sparsight.dictionaries import ReLU
from sparsight.dictionaries.base import Normalization
from sparsight.evaluation import metrics
from sparsight.studies import Options, read_record, run_study
from sparsight.studies.planted import Planted, random_atoms
from sparsight.studies.record import UNDECIDED
from sparsight.studies.shrinkage import (
    _where_formulas_part,
    by_norm,
    coders_shrink,
    is_it_the_loss,
    looked_right,
    usual_measures,
    who_shrinks,
    whose_price,
)
from sparsight.studies.shrinkage_measured import (
    against_truth,
    bisected,
    constructed,
    identities,
    lasso_closed_form,
    minimiser,
    price,
)
from sparsight.training import Run

NAMES = ("ReLU", "Gated", "JumpReLU", "TopK", "BatchTopK")


@pytest.fixture(scope="module")
def cases():
    return [constructed(seed, n=500) for seed in (3, 4)]


def relu(offset: float, scale: float = 1.0, d: int = 4, gain: float = 1.0) -> Run:
    """`f = relu(scale x + offset)` over orthonormal atoms."""
    dictionary = ReLU(d, 0.1).build(d, torch.Generator().manual_seed(0))
    with torch.no_grad():
        dictionary.atoms.copy_(torch.eye(d))
        dictionary.W_enc.copy_(scale * torch.eye(d))
        dictionary.b_enc.fill_(offset)
    dictionary.normalization = Normalization(torch.zeros(d), 1.0)
    return Run(dictionary, [{"gain": gain}], Path("nowhere"))


def exponential(d: int = 4, n: int = 4000) -> torch.Tensor:
    return -torch.rand(n, d, generator=torch.Generator().manual_seed(5), dtype=torch.float64).clamp_min(1e-9).log()


def test_the_search_finds_the_scale_that_the_corrected_formula_gives():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_hat = 0.6 * x + 0.2
    assert minimiser(x, x_hat) == pytest.approx(metrics.shrinkage(x, x_hat).r, abs=1e-6)


def test_constructed_cases_have_the_answers_known_beforehand(cases):
    for c in cases:
        one = c["x = 1, x_hat = 1/2"]
        assert (one["r"], one["beta"], one["gamma_v1"]) == pytest.approx((0.5, 0.5, 3**-0.5), abs=1e-12)
        half = c["projection on a random half"]
        assert half["r"] == pytest.approx(1, abs=1e-12)
        assert max(half[m] for m in ("nu", "beta", "token norm ratio", "token beta")) < 0.85
        assert half["beta"] == pytest.approx(half["nu"] ** 2, abs=1e-12)
        same = c["all of x, at the same norm ratio"]
        assert (same["nu"], same["r"]) == pytest.approx((half["nu"], half["nu"]), abs=1e-12)
        assert c["the projection, times 0.8"]["r"] == pytest.approx(0.8, abs=1e-12)
        assert c["rank 32"]["nu"] == pytest.approx(1, abs=1e-12)
        tails = c["heavy tails, long tokens shrunk"]
        assert tails["token beta"] - tails["beta"] > 0.2
        assert c["nearly perpendicular"]["gamma_v1"] is None


def test_the_identities_hold_in_double_precision():
    assert max(identities(1).values()) < 1e-12


def test_the_closed_form_of_the_lasso_is_the_lasso_and_gives_its_bias():
    planted = random_atoms(2, 12, 24, 3, 0.05, 60)
    code = fista(planted.x, planted.atoms, 0.3, gap=1e-12, max_steps=20_000)
    closed = lasso_closed_form(planted.x, planted.atoms, code, 0.3)
    assert float((closed.values - code.values).abs().max()) < 1e-5
    residual = planted.x - closed.decode(planted.atoms)
    on = closed.to_dense() != 0
    assert (residual @ planted.atoms.T)[on].sub(0.3).abs().max() < 1e-12
    h = closed.decode(planted.atoms).square().sum().item()
    bias = metrics.shrinkage(planted.x, closed.decode(planted.atoms)).r
    assert bias == pytest.approx(h / (h + 0.3 * closed.values.sum().item()), abs=1e-12)
    debiased = refit(planted.x, planted.atoms, code.support())
    assert metrics.shrinkage(planted.x, debiased.decode(planted.atoms)).r == pytest.approx(1, abs=1e-12)


def test_the_price_of_length_is_the_shrinkage_where_the_objective_rests():
    """`E (x - s x)^2 + l1 s E x` over `s` is least at `s = 1 - l1 E x / (2 E x^2)`: there the two are equal."""
    x = exponential()
    l1 = 0.1 * 3
    s = 1 - l1 * float(x.mean() / (2 * x.square().mean()))
    found = price(relu(0.0, s, gain=3.0), x)
    assert found["l1"] == pytest.approx(l1)
    assert found["measured"] == pytest.approx(1 - s, abs=1e-6)
    assert found["predicted"] == pytest.approx(found["measured"], abs=1e-6)


def test_values_against_the_truth_show_an_amount_taken_off():
    x = exponential()
    truth = Planted(x, torch.eye(4, dtype=torch.float64), SparseCode.from_dense(x))
    found = against_truth(relu(-0.2).dictionary, truth)
    assert (found["slope"], found["intercept"]) == pytest.approx((1.0, -0.2), abs=1e-5)
    assert found["by amount"] == pytest.approx(1, abs=1e-5)
    assert found["by factor"] < 0.7
    assert found["found"] == 1


def test_a_falling_function_is_solved_by_bisection():
    assert bisected(lambda p: 8 - p, 5.0, 0.0, 8.0, steps=40) == pytest.approx(3)


def model(r: dict[str, float], repaired: float = 0.05, norms: tuple[float, float] = (0.9, 0.9), predicted: float = 0.1):
    """One seed's measurements: only what verdicts read."""
    panel = {"by_norm": [{"family": {"r": value}} for value in norms]}
    fvu = {"own": 0.06, "one scale": repaired, "joint scales": repaired, "refit": 0.03}
    dictionaries = {
        name: {
            "measures": {"r": v, "gamma_v1": (v / (2 - v)) ** 0.5, "nu": 0.9},
            "fvu": {**fvu, "own": 0.06 if name == "ReLU" else 0.04},
            "price": {"measured": 0.1, "predicted": predicted},
            "panel": panel,
        }
        for name, v in r.items()
    }
    coders = {"lasso": {"r": r["ReLU"]}, "lasso, debiased": {"r": r["TopK"]}}
    return {"dictionaries": dictionaries, "coders": {"coders": coders, "closed form": {"values": 1e-9}}}


def seeds(relu_r: float, other: float = 1.0, **kwargs):
    return [model({n: (relu_r if n == "ReLU" else other) + e for n in NAMES}, **kwargs) for e in (-1e-4, 0.0, 1e-4)]


def test_relu_alone_is_shrunk_only_if_no_other_is():
    assert who_shrinks(seeds(0.95)).answer == "yes"
    assert who_shrinks(seeds(0.95, 0.95)).answer == "depends on the architecture"
    assert who_shrinks(seeds(0.9995)).answer == UNDECIDED


def test_the_wrong_figure_reads_alike_while_shrinkage_is_mild():
    assert looked_right(seeds(0.95)).answer == "no"
    assert looked_right(seeds(0.6)).answer == "yes"
    limit = _where_formulas_part(0.01)
    assert (limit / (2 - limit)) ** 0.5 - limit == pytest.approx(0.01, abs=1e-9)


def test_usual_measures_fail_the_projection_control(cases):
    assert usual_measures(cases, seeds(0.95)).answer == "no"
    told = [{"projection on a random half": dict.fromkeys(c["rank 4"], 1.0 + e)} for c, e in
            zip(cases, (-1e-6, 1e-6), strict=True)]  # fmt: skip
    assert usual_measures(told, seeds(0.95)).answer == UNDECIDED


@pytest.mark.parametrize(("predicted", "answer"), [(0.1, "yes"), (0.05, "no"), (0.2, "no"), (0.08, UNDECIDED)])
def test_a_penalty_explains_shrinkage_if_its_price_is_about_that(predicted, answer):
    found = [model(dict.fromkeys(NAMES, 1.0), predicted=predicted * (1 + e)) for e in (-0.01, 0.0, 0.01)]
    assert whose_price(found).answer == answer


def test_a_lasso_must_shrink_and_least_squares_must_end_it():
    exact = [model({**dict.fromkeys(NAMES, 1.0), "ReLU": 0.9 + e}) for e in (-1e-3, 1e-3)]
    assert coders_shrink(exact).answer == "yes"
    assert coders_shrink(seeds(0.9)).answer == "no"


@pytest.mark.parametrize(("repaired", "answer"), [(0.058, "no"), (0.045, "yes"), (0.05, UNDECIDED)])
def test_scales_make_up_the_loss_if_they_make_up_more_than_half(repaired, answer):
    found = [model(dict.fromkeys(NAMES, 1.0), repaired=repaired + e) for e in (-1e-4, 0.0, 1e-4)]
    assert is_it_the_loss(found).answer == answer


def test_short_and_long_activations_are_compared_by_their_ends():
    assert by_norm(seeds(0.9, norms=(0.6, 0.95))).answer == "no"
    assert by_norm(seeds(0.9, norms=(0.95, 0.951))).answer == "yes"


@pytest.mark.slow
def test_the_fast_study_of_shrinkage_runs_from_seed_to_page(tmp_path):
    record = run_study("shrinkage", tmp_path / "s", Options(fast=True, seed=1)).record
    assert read_record(tmp_path / "s") == record
    assert "sparsight study shrinkage --fast --seed 1" in (tmp_path / "s" / "page.md").read_text()
    assert all(verdict.effects for verdict in record.verdicts)
