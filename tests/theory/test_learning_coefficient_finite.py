"""What a faultless sampler reads at a finite temperature: printed tables, other integrators, closed forms."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from sparsight.theory.learning_coefficient import (
    evidence_slope,
    local_coefficient,
    log_evidence,
    quadratic_sgld,
    zero_rank_regression,
)


def crossing(a, b):
    return (a * b) ** 2


def nearly(a):
    return lambda w: a * w**2 + w**4


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("n_beta", [1e3, 1e6])
def test_a_power_reads_its_coefficient_at_every_temperature(k, n_beta):
    found = local_coefficient(lambda w: w ** (2 * k), n_beta, dimension=1, half_width=1.0)
    assert found == pytest.approx(1 / (2 * k), abs=1e-7)


def test_a_crossing_reads_far_less_than_one_half():
    temperatures = (1e2, 1e3, 1e4, 1e6, 1e8)
    found = [local_coefficient(crossing, t, dimension=2, half_width=1.0) for t in temperatures]
    assert found == pytest.approx([0.348, 0.387, 0.411, 0.437, 0.451], abs=5e-4)


def test_a_crossing_in_a_box_agrees_with_an_adaptive_rule_over_one_coordinate():
    """Over the other coordinate the integrals are an error function."""
    t = 1e3

    def weight(w):
        return math.sqrt(math.pi / t) * math.erf(math.sqrt(t) * w) / w  # of exp(-t w^2 x^2) over |x| <= 1

    def excess(w):  # of x^2 w^2 exp(-t w^2 x^2)
        return weight(w) / (2 * t) - math.exp(-t * w * w) / t

    mean = quad(excess, 1e-12, 1, limit=400)[0] / quad(weight, 1e-12, 1, limit=400)[0]
    assert local_coefficient(crossing, t, dimension=2, half_width=1.0) == pytest.approx(t * mean, rel=1e-7)


@pytest.mark.parametrize(
    ("a", "known"), [(0.01, (0.255, 0.266, 0.297, 0.367, 0.454, 0.493)), (0.001, (None, None, 0.255))]
)
def test_a_nearly_singular_model_crosses_over_where_n_beta_is_one_over_a_squared(a, known):
    for i, value in enumerate(known):
        if value is not None:
            found = local_coefficient(nearly(a), 10.0 ** (i + 1), dimension=1, half_width=10.0)
            assert found == pytest.approx(value, abs=5e-4)


def test_a_nearly_singular_curve_depends_on_a_squared_n_beta_alone():
    """With `w = sqrt(a) u`, `K = a^2 (u^2 + u^4)`."""
    values = [local_coefficient(nearly(a), 3 / a**2, dimension=1, half_width=30.0) for a in (1.0, 0.1, 0.01)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-8)


def test_the_local_slope_of_the_evidence_is_the_finite_temperature_value():
    """Two routes: a difference of log integrals, and a mean under the posterior; and the printed table."""
    table = {
        "square": (lambda w: w**2, 1, (0.498, 0.500, 0.500, 0.500)),
        "fourth": (lambda w: w**4, 1, (0.242, 0.247, 0.249, 0.250)),
        "crossing": (crossing, 2, (0.354, 0.390, 0.412, 0.438)),
    }
    for excess, dimension, known in table.values():
        for n, value in zip((1e2, 1e3, 1e4, 1e6), known, strict=True):
            slope = evidence_slope(excess, n, dimension=dimension)
            assert slope == pytest.approx(value, abs=6e-4)
            assert slope == pytest.approx(local_coefficient(excess, n, dimension=dimension, gamma=1.0), abs=1e-6)


def test_the_evidence_of_a_square_is_that_of_a_gaussian():
    assert log_evidence(lambda w: w**2, 50.0, dimension=1, gamma=2.0) == pytest.approx(-math.log(51) / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("gamma", "step", "noise", "known"),
    [(1.0, 1e-3, 0.0, 4.297), (100.0, 1e-3, 0.0, 2.055), (1.0, 5e-3, 0.0, 4.965), (1.0, 1e-3, 0.01, 4.404)],
)
def test_sgld_on_a_quadratic_has_its_printed_values(gamma, step, noise, known):
    h = (1.0, 1.0, 0.5, 0.1, 0.01, 2.0, 3.0, 1.0, 1.0, 0.0)
    assert quadratic_sgld(h, 100.0, gamma=gamma, step=step, noise_variance=noise) == pytest.approx(known, abs=5e-4)


def test_sgld_on_a_quadratic_becomes_exact_as_the_step_vanishes():
    found = quadratic_sgld((2.0, 0.01), 100.0, gamma=1.0, step=1e-9)
    assert found == pytest.approx(200 / 402 + 1 / 4, rel=1e-6)


def test_a_step_at_which_a_quadratic_diverges_is_refused():
    with pytest.raises(ValueError, match="lower step"):
        quadratic_sgld((1.0,), 100.0, gamma=0.0, step=0.04)
    with pytest.raises(ValueError, match="raise gamma"):
        quadratic_sgld((0.0,), 100.0, gamma=0.0, step=0.01)
    with pytest.raises(ValueError, match="n_beta and step must be above 0"):
        quadratic_sgld((1.0,), 0.0, gamma=1.0, step=0.01)


@pytest.mark.parametrize(("m", "n", "h"), [(4, 6, 1), (3, 3, 2), (5, 4, 2)])
def test_regression_on_nothing_agrees_with_random_matrices(m, n, h):
    """`E[K]` weighted by `det(1 + s A A^T)^(-N/2)` over normal `A`: 100,000 draws, margin four standard errors."""
    rng = np.random.default_rng(m)
    a = rng.standard_normal((100_000, h, m))
    s = 0.5
    eigenvalues = s * np.linalg.eigvalsh(a @ a.transpose(0, 2, 1))
    weights = np.prod(1 + eigenvalues, axis=1) ** (-n / 2)
    values = n / 2 * (eigenvalues / (1 + eigenvalues)).sum(axis=1)
    mean = (weights * values).sum() / weights.sum()
    error = float(np.sqrt((weights**2 * (values - mean) ** 2).sum()) / weights.sum())
    assert abs(zero_rank_regression(m, n, h, s * 9, gamma=3.0) - mean) < 4 * error
    assert error < 0.01


def test_regression_on_nothing_approaches_its_learning_coefficient():
    assert zero_rank_regression(4, 6, 1, 1e9, gamma=1.0) == pytest.approx(2.0, abs=1e-4)  # multiplicity 1
    assert zero_rank_regression(3, 3, 2, 1e9, gamma=1.0) == pytest.approx(2.5, abs=1e-3)
    reads = zero_rank_regression(4, 4, 1, 1e9, gamma=1.0)  # multiplicity 2: below by about 1 / log n_beta
    assert 2 - reads == pytest.approx(1 / math.log(1e9), rel=0.1)


def test_what_has_no_value_is_refused():
    with pytest.raises(ValueError, match="nothing bounds w"):
        local_coefficient(crossing, 10.0, dimension=2)
    with pytest.raises(ValueError, match="dimension must be 1 or 2"):
        local_coefficient(crossing, 10.0, dimension=3, gamma=1.0)
    with pytest.raises(ValueError, match="half_width above"):
        local_coefficient(crossing, 10.0, dimension=2, half_width=-1.0)
    with pytest.raises(ValueError, match="hidden must be 1 or 2"):
        zero_rank_regression(4, 4, 3, 10.0, gamma=1.0)
    with pytest.raises(ValueError, match="gamma must be above 0"):
        zero_rank_regression(4, 4, 2, 10.0, gamma=0.0)
