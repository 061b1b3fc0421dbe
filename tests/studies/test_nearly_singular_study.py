"""The study of nearly singular models: its rules on constructed numbers, and the fast run."""

import pytest

from sparsight.studies import Options, run_study
from sparsight.studies.nearly_singular import (
    caught,
    finite_temperature,
    fixed_points,
    gaussians,
    is_wrong,
    near,
    weak_network,
)
from sparsight.studies.nearly_singular_measured import (
    GAUSSIAN_BETAS,
    POINTS,
    SHARES,
    SLOPES,
    STRENGTH_BETAS,
    gaussian_rows,
)
from sparsight.studies.record import UNDECIDED


def row(value, exact=None, n_beta=1e3, error=0.01, problems=()):
    return {"value": value, "exact": value if exact is None else exact, "standard_error": error, "n_beta": n_beta,
            "n_chains": 64, "problems": list(problems)}  # fmt: skip


def curves(values):
    rows = [row(v, n_beta=s) | {"share": s} for v, s in zip(values, SHARES, strict=True)]
    return {(slope, sampler): rows for slope in SLOPES for sampler in ("mala", "sgld")}


def test_a_curve_that_rises_through_the_middle_is_yes_and_a_flat_one_is_no():
    assert near(curves([0.26, 0.29, 0.37, 0.45, 0.49])).answer == "yes"
    assert near(curves([0.5, 0.5, 0.5, 0.5, 0.5])).answer == "no"
    assert near(curves([0.25, 0.25, 0.25, 0.25, 0.25])).answer == "no"
    assert near(curves([0.26, 0.37, 0.37, 0.45, 0.49])).answer == UNDECIDED


def test_a_weak_network_has_to_read_as_none_and_then_as_one():
    zero = [row(2.0, n_beta=t) for t in STRENGTH_BETAS]
    for values, answer in (((1.4, 1.9, 2.3, 4.4, 4.5), "yes"), ((4.5,) * 5, "no"), ((1.4, 1.9, 2, 2, 2), "no")):
        weak = [row(float(v), n_beta=t) for v, t in zip(values, STRENGTH_BETAS, strict=True)]
        assert weak_network({0.0: zero, 0.1: weak, 1.0: weak}).answer == answer


def points(*values):
    return {name: {"curve": [row(v)]} for name, v in zip(POINTS, values, strict=True)}


def test_units_are_singular_where_swapping_leaves_them_fixed_if_order_and_swap_hold():
    assert fixed_points(points(2.0, 2.01, 1.5, 1.2)).answer == "yes"
    assert fixed_points(points(2.0, 1.9, 1.5, 1.2)).answer == "no"  # swapping changed it
    assert fixed_points(points(2.0, 2.0, 1.2, 1.5)).answer == "no"  # another order
    assert fixed_points(points(2.0, 2.0, 1.5, 1.49)).answer == UNDECIDED


def test_a_crossing_counts_where_the_diagnostics_let_it():
    good = [row(0.29, n_beta=1e1), row(0.354, n_beta=1e2)]
    assert finite_temperature([*good, row(0.5, 0.41, problems=["short"])]).answer == "yes"
    assert finite_temperature([*good, row(0.5, 0.41)]).answer == "no"
    assert finite_temperature([good[0], row(0.5, 0.41, problems=["short"])]).answer == UNDECIDED


def test_gaussians_fail_by_kind_and_place():
    def rows(laplace, field):
        return [
            {"name": name, "n_beta": n_beta, "laplace": 1.0, "exact": 0.25, "laplace_divergence": laplace,
             "field_divergence": field[name]}
            for name in field for n_beta in GAUSSIAN_BETAS
        ]  # fmt: skip

    one_fits = gaussians(rows(1e4, {"w^4": 0.05, "(w1 w2)^2": 1.0}))
    assert one_fits.answer == "depends on which Gaussian, and on which singularity"
    assert gaussians(rows(1e4, {"w^4": 0.2, "(w1 w2)^2": 1.0})).answer == "yes"
    assert gaussians(rows(0.0, {"w^4": 0.0, "(w1 w2)^2": 0.09})).answer == "no"


@pytest.mark.slow
def test_gaussians_are_right_for_a_square_at_every_temperature_and_bic_and_laplace_bound_the_truth():
    rows = gaussian_rows()
    assert len(rows) == 16
    for r in rows:
        assert r["half_rank"] <= r["coefficient"] <= r["half_dimension"]
        if r["name"] == "w^2":
            assert max(r["laplace_divergence"], r["field_divergence"]) < 1e-6
        else:
            assert r["field_divergence"] <= r["laplace_divergence"] + 1e-9


def test_wrong_is_far_in_standard_errors_and_in_share():
    assert is_wrong(row(1.1, 1.0))
    assert not is_wrong(row(1.1, 1.0, error=0.05))
    assert not is_wrong(row(1.02, 1.0, error=0.001))
    right, missed, flagged = row(1.0), row(1.1, 1.0), row(1.1, 1.0, problems=["x"])
    assert caught([right, flagged]).answer == "yes"
    verdict = caught([right, right | {"problems": ["x"]}, missed, flagged])
    assert verdict.answer == "no"
    assert [effect.value for effect in verdict.effects] == [1, 1]
    assert caught([right]).answer == UNDECIDED


@pytest.mark.slow
def test_the_fast_run_ends_with_a_record(tmp_path):
    record = run_study("nearly-singular", tmp_path / "s", Options(fast=True, seed=1)).record
    assert [len(table.rows) for table in record.tables] == [15, 5, 4, 4, 20, 16]
    assert [verdict.answer for verdict in record.verdicts[:3]] == ["yes"] * 3
    assert len(record.figures) == 5
