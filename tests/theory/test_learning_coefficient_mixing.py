"""Split R-hat and effective sample size on chains whose answers are known."""

import pytest
import torch
from scipy.signal import lfilter

from sparsight.theory.learning_coefficient.mixing import autocovariance, effective_sample_size, growth, split_r_hat


def autoregression(rho, chains=8, n=20_000, seed=0):
    """Stationary chains `x' = rho x + noise`: an effective sample of `(1 - rho) / (1 + rho)` of the draws."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(chains, n + 200, generator=g, dtype=torch.float64) * (1 - rho**2) ** 0.5
    return torch.from_numpy(lfilter([1], [1, -rho], noise.numpy(), axis=1))[:, 200:]


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_an_autoregression_is_worth_what_theory_says(rho):
    draws = autoregression(rho)
    assert effective_sample_size(draws) == pytest.approx(draws.numel() * (1 - rho) / (1 + rho), rel=0.12)
    assert split_r_hat(draws) == pytest.approx(1, abs=5e-3)


def test_autocovariances_are_the_sums_that_define_them():
    x = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = x - x.mean(dim=1, keepdim=True)
    direct = torch.stack([(centred[:, : 50 - t] * centred[:, t:]).sum(dim=1) / 50 for t in range(50)], dim=1)
    torch.testing.assert_close(autocovariance(x), direct)


def test_chains_at_different_places_do_not_agree_and_count_for_little():
    draws = autoregression(0.0, n=1000) + 3 * torch.arange(8, dtype=torch.float64)[:, None]
    assert split_r_hat(draws) > 5
    assert effective_sample_size(draws) < 40


def test_a_drift_that_all_chains_share_shows_because_they_are_split():
    draws = autoregression(0.0, n=1000) + torch.linspace(0, 8, 1000, dtype=torch.float64)
    assert split_r_hat(draws) > 1.5


def test_chains_that_stand_still_agree_if_they_stand_at_one_place():
    still = torch.ones(3, 10, dtype=torch.float64)
    assert split_r_hat(still) == 1
    assert effective_sample_size(still) == 30
    assert split_r_hat(still * torch.arange(3)[:, None]) == float("inf")


def test_growth_is_the_share_by_which_the_second_half_is_larger():
    draws = 10 + autoregression(0.0, n=1000)
    share, z = growth(draws)
    assert abs(share) < 0.02
    assert abs(z) < 3
    share, z = growth(draws + torch.linspace(0, 8, 1000, dtype=torch.float64))
    assert share == pytest.approx(4 / 14, rel=0.02)
    assert z > 10
    assert growth(torch.ones(3, 10, dtype=torch.float64)) == (0, 0)
