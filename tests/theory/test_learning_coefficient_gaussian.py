"""Gaussian approximations against closed forms, and where they must fail."""

import math

import pytest
import torch

from sparsight.errors import UndefinedMetric
from sparsight.theory.learning_coefficient import (
    FunctionLoss,
    gaussian_coefficients,
    laplace_fit,
    local_coefficient,
    mean_field_fit,
)

H = torch.tensor([4.0, 1.0, 0.25, 0.0], dtype=torch.float64)
QUADRATIC = FunctionLoss(lambda w: (H * w.square()).sum() / 2)


def crossing(a, b):
    return (a * b) ** 2


def test_a_quadratic_has_the_rank_and_the_laplace_value_of_its_eigenvalues():
    found = gaussian_coefficients(QUADRATIC, torch.zeros(4, dtype=torch.float64), n_beta=10.0, gamma=2.0)
    assert (found.half_rank, found.half_dimension) == (1.5, 2)
    assert found.laplace == pytest.approx(40 / 84 + 10 / 24 + 2.5 / 9)
    assert (found.largest, found.least, found.flat) == pytest.approx((4, 0, 0.25))
    assert "25% of 4 directions have no curvature" in found.verdict


def test_the_hessian_is_taken_in_a_rotated_and_masked_space():
    g = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64)).Q
    loss = FunctionLoss(lambda w: (H * (turn @ w).square()).sum() / 2)
    zero = torch.zeros(4, dtype=torch.float64)
    assert gaussian_coefficients(loss, zero, n_beta=1e6).laplace == pytest.approx(1.5, abs=1e-5)
    mask = torch.tensor([True, False, True, False])
    block = (turn.T * H @ turn)[mask][:, mask]
    found = gaussian_coefficients(loss, zero, n_beta=1e6, mask=mask)
    assert found.largest == pytest.approx(float(torch.linalg.eigvalsh(block)[-1]))
    assert found.half_dimension == 1


def test_tanh_units_lose_rank_where_permuting_them_changes_nothing_and_where_one_is_dead():
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)

    def rank(*w_star):
        point = torch.tensor(w_star, dtype=torch.float64)

        def output(w):
            return w[0] * torch.tanh(w[1] * x) + w[2] * torch.tanh(w[3] * x)

        loss = FunctionLoss(lambda w: (output(w) - output(point)).square().mean())
        return 2 * gaussian_coefficients(loss, point, n_beta=1e4).half_rank

    assert rank(1.0, 1.0, 0.6, -2.0) == 4
    assert rank(0.6, -2.0, 1.0, 1.0) == 4
    assert rank(0.6, 1.0, 0.4, 1.0) == 2
    assert rank(1.0, 1.0, 0.0, -2.0) == 3


def test_laplace_and_mean_field_are_exact_for_a_square_and_both_wrong_for_a_crossing():
    for fit in (laplace_fit, mean_field_fit):
        square = fit(lambda w: w**2, 100.0, dimension=1, gamma=1.0)
        assert square.divergence == pytest.approx(0, abs=1e-8)
        assert square.coefficient == pytest.approx(100 / 201, abs=1e-6)
    exact = local_coefficient(crossing, 100.0, dimension=2, gamma=1.0)
    laplace = laplace_fit(crossing, 100.0, dimension=2, gamma=1.0)
    assert laplace.coefficient == pytest.approx(100)  # the prior alone: E w1^2 w2^2 = 1
    assert exact == pytest.approx(0.354, abs=1e-3)
    variance = (math.sqrt(1 + 8 * 100) - 1) / (4 * 100)  # 2 t s^2 + s = 1
    mean_field = mean_field_fit(crossing, 100.0, dimension=2, gamma=1.0)
    assert mean_field.sd == pytest.approx([math.sqrt(variance)] * 2, rel=1e-4)
    assert mean_field.coefficient == pytest.approx(100 * variance**2, rel=1e-4)
    assert 0.1 < mean_field.divergence < laplace.divergence


def test_laplace_takes_correlations_into_account():
    tilted = laplace_fit(lambda a, b: a * a + a * b + b * b, 50.0, dimension=2, gamma=1.0)
    assert tilted.divergence == pytest.approx(0, abs=1e-6)
    assert mean_field_fit(lambda a, b: a * a + a * b + b * b, 50.0, dimension=2, gamma=1.0).divergence > 0.1


def test_a_point_that_is_no_minimum_has_no_gaussian():
    saddle = FunctionLoss(lambda w: w[0] ** 2 - w[1] ** 2)
    with pytest.raises(UndefinedMetric, match="no minimum"):
        gaussian_coefficients(saddle, torch.zeros(2), n_beta=100.0)


def test_wrong_arguments_are_refused():
    zero = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(ValueError, match="restrict them with mask"):
        gaussian_coefficients(FunctionLoss(lambda w: w.square().sum()), torch.zeros(5000), n_beta=1.0)
    with pytest.raises(ValueError, match="tolerance"):
        gaussian_coefficients(QUADRATIC, zero, n_beta=1.0, tolerance=1.0)
    for fit in (laplace_fit, mean_field_fit):
        with pytest.raises(ValueError, match="gamma must be above 0"):
            fit(crossing, 10.0, dimension=2, gamma=0.0)
