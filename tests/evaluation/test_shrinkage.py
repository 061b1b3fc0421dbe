"""The shrinkage family: closed forms, identities, and projections, which are not shrunk."""

import math

import pytest
import torch

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.metrics import shrinkage
from sparsight.evaluation.shrinkage import ShrinkageSums
from sparsight.evaluation.token_scales import TokenScales


def pairs(seed: int = 0, n: int = 200, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstructions that correlate with activations, shrunk and off-centre."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) + 1
    return x, 0.7 * x + 0.5 * torch.randn(n, d, generator=g, dtype=torch.float64) + 0.2


def test_half_of_one_is_shrunk_by_half():
    s = shrinkage(torch.tensor([[1.0]]), torch.tensor([[0.5]]))
    assert (s.r, s.alpha, s.beta, s.rho, s.nu) == (0.5, 2.0, 0.5, 1.0, 0.5)
    assert s.gamma_v1 == pytest.approx(1 / math.sqrt(3), abs=1e-15)
    assert s.scale_gain == 0.25


@pytest.mark.parametrize("seed", range(5))
def test_the_identities_hold(seed):
    x, x_hat = pairs(seed)
    for centre in (None, x.mean(dim=0)):
        s = shrinkage(x, x_hat, centre=centre)
        assert s.alpha * s.beta == pytest.approx(s.rho**2, abs=1e-12)
        assert s.r == pytest.approx(s.nu / s.rho, abs=1e-12)
        assert s.alpha == pytest.approx(s.rho / s.nu, abs=1e-12)
        assert s.beta == pytest.approx(s.rho * s.nu, abs=1e-12)
        assert s.gamma_v1 == pytest.approx(math.sqrt(s.r / (2 - s.r)), abs=1e-12)


def test_every_scalar_is_the_minimum_it_claims_to_be():
    x, x_hat = pairs()
    s = shrinkage(x, x_hat)

    def loss(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a - b).square().sum().item()

    for h in (-1e-3, 1e-3):
        assert loss(s.alpha * x_hat, x) < loss((s.alpha + h) * x_hat, x)
        assert loss(x_hat / s.r, x) < loss(x_hat / (s.r + h), x)
        assert loss(x_hat, s.beta * x) < loss(x_hat, (s.beta + h) * x)
    gain = (loss(x_hat, x) - loss(s.alpha * x_hat, x)) / x.square().sum().item()
    assert s.scale_gain == pytest.approx(gain, abs=1e-12)


def test_gamma_v1_is_its_definition_from_the_plain_loss():
    x, x_hat = pairs(3)
    a, h, m = x.square().sum(), x_hat.square().sum(), (x - x_hat).square().sum()
    assert shrinkage(x, x_hat).gamma_v1 == pytest.approx(math.sqrt(h / (a - m)), abs=1e-12)


def test_an_orthogonal_projection_is_not_shrunk_though_its_norm_is_smaller():
    g = torch.Generator().manual_seed(4)
    x = torch.randn(4000, 16, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(16, 8, generator=g, dtype=torch.float64)).Q
    s = shrinkage(x, x @ basis @ basis.T)
    assert s.r == pytest.approx(1, abs=1e-12)
    assert s.scale_gain == pytest.approx(0, abs=1e-12)
    assert s.beta == pytest.approx(0.5, abs=0.02)
    assert s.nu == pytest.approx(0.5**0.5, abs=0.02)


def test_rotating_both_changes_nothing():
    x, x_hat = pairs()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).Q
    turned, plain = shrinkage(x @ turn, x_hat @ turn), shrinkage(x, x_hat)
    for name in ("rho", "nu", "r", "alpha", "beta", "gamma_v1", "scale_gain"):
        assert getattr(turned, name) == pytest.approx(getattr(plain, name), abs=1e-12)


def test_subtracting_a_penalty_from_orthonormal_codes_shrinks_as_computed():
    """Codes Exp(1), soft-thresholded at t = 0.2: E z'^2 = 2 e^-t and E z z' = (2 + t) e^-t, hence r = 2 / (2 + t)."""
    codes = -torch.rand(200_000, 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64).log()
    assert shrinkage(codes, (codes - 0.2).clamp_min(0)).r == pytest.approx(1 / 1.1, rel=2e-3)


def test_ratios_are_of_sums_not_means_of_ratios():
    """Large tokens shrunk more: the argmin of the expected loss is not the mean of the per-token argmins."""
    x = torch.tensor([[1.0], [10.0]])
    x_hat = torch.tensor([[1.0], [5.0]])
    assert shrinkage(x, x_hat).beta == pytest.approx((1 + 50) / (1 + 100), abs=1e-12)


def test_batches_add_up_about_any_centre():
    x, x_hat = pairs()
    joined = ShrinkageSums.of(x[:30], x_hat[:30]) + ShrinkageSums.of(x[30:], x_hat[30:])
    for centre in (torch.zeros(5, dtype=torch.float64), x.mean(dim=0)):
        ours, direct = joined.about(centre), shrinkage(x - centre, x_hat - centre)
        for name in ("rho", "nu", "r", "alpha", "beta", "gamma_v1", "scale_gain"):
            assert getattr(ours, name) == pytest.approx(getattr(direct, name), abs=1e-12)
    assert joined.value == joined.about(torch.zeros(5))


def test_overshooting_by_more_than_two_has_no_gamma_v1():
    s = shrinkage(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    assert s.r == 3.0
    assert s.gamma_v1 is None


@pytest.mark.parametrize(
    ("x", "x_hat", "reason"),
    [
        ([[0.0, 0.0]], [[1.0, 0.0]], "every activation"),
        ([[1.0, 0.0]], [[0.0, 0.0]], "every reconstruction"),
        ([[1.0, 0.0]], [[0.0, 1.0]], "do not correlate"),
    ],
)
def test_what_has_no_answer_is_refused(x, x_hat, reason):
    with pytest.raises(UndefinedMetric, match=reason):
        shrinkage(torch.tensor(x), torch.tensor(x_hat))


@pytest.mark.parametrize("silent", ["activations", "reconstructions"])
def test_vectors_that_are_all_at_the_centre_are_refused_though_rounding_leaves_something(silent):
    x, _ = pairs()
    centre = 1e3 * torch.randn(5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    there = centre.expand(200, 5).clone()
    joined = [(there, x), (x, there)][silent == "reconstructions"]
    sums = ShrinkageSums.of(joined[0][:70], joined[1][:70]) + ShrinkageSums.of(joined[0][70:], joined[1][70:])
    with pytest.raises(UndefinedMetric, match=f"every {silent[:-1]} is at the centre"):
        sums.about(centre)


def test_a_constant_reconstruction_is_judged_by_the_mean_activation():
    """`x_hat = v` for all tokens: `h = |v|^2` and `c = <mean, v>`."""
    x, _ = pairs()
    v = torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    assert shrinkage(x, v.expand_as(x)).r == pytest.approx((v @ v / (x.mean(dim=0) @ v)).item(), abs=1e-12)


def test_scale_gain_is_what_the_two_carrying_numbers_say():
    """`h (1 - alpha)^2 / a = (nu - rho)^2`: loss left on the table is the distance of the two numbers."""
    for seed in range(5):
        s = shrinkage(*pairs(seed))
        assert s.scale_gain == pytest.approx((s.nu - s.rho) ** 2, abs=1e-12)


def test_the_first_formula_is_tangent_to_the_right_one_where_nothing_is_shrunk():
    """`sqrt(r / (2 - r)) = r + (1 - r)^2 / 2 + O((1 - r)^3)`: why it looked right on mild shrinkage."""
    for factor in (0.99, 0.95, 1.05):
        s = shrinkage(torch.ones(1, 1).double(), torch.full((1, 1), factor).double())
        assert s.gamma_v1 == pytest.approx(s.r + (1 - s.r) ** 2 / 2, abs=abs(1 - factor) ** 3)


def test_per_token_ratios_are_means_of_ratios_and_not_the_minimisers():
    x, x_hat = torch.tensor([[1.0], [10.0]]), torch.tensor([[1.0], [5.0]])
    scales = TokenScales.of(x[:1], x_hat[:1]) + TokenScales.of(x[1:], x_hat[1:])
    assert (scales.norm_ratio, scales.beta) == (0.75, 0.75)
    assert shrinkage(x, x_hat).beta == pytest.approx(51 / 101)
    g = torch.Generator().manual_seed(4)
    x = torch.randn(4000, 16, generator=g, dtype=torch.float64)
    kept = torch.cat([x[:, :4], torch.zeros(4000, 12, dtype=torch.float64)], dim=1)
    assert TokenScales.of(x, kept).beta == pytest.approx(0.25, abs=0.01)
    assert TokenScales.of(1e100 * x, 1e100 * kept).norm_ratio == pytest.approx(TokenScales.of(x, kept).norm_ratio)


def test_per_token_ratios_of_a_zero_activation_are_refused():
    scales = TokenScales.of(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [1.0]]))
    with pytest.raises(UndefinedMetric, match="1 of 2 activations are zero"):
        _ = scales.beta
