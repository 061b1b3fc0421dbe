"""FVU and its relatives: the ends of the scale, what must not matter, and what must."""

import pytest
import torch

from sparsight.errors import UndefinedMetric
from sparsight.evaluation import metrics
from sparsight.evaluation.fvu import Fvu, FvuTokenMean, FvuUncentred
from sparsight.evaluation.pairs import float64_pair


@pytest.fixture
def x() -> torch.Tensor:
    """Correlated activations with a mean that is not zero."""
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=g, dtype=torch.float64)
    return torch.randn(101, 6, generator=g, dtype=torch.float64) @ mixing + torch.arange(6.0, dtype=torch.float64)


@pytest.fixture
def x_hat(x: torch.Tensor) -> torch.Tensor:
    return x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_answering_the_mean_scores_exactly_one(x):
    assert metrics.fvu(x, x.mean(dim=0).expand_as(x)) == 1.0


def test_a_perfect_reconstruction_scores_zero(x):
    assert metrics.fvu(x, x) == metrics.fvu_uncentred(x, x) == metrics.fvu_token_mean(x, x) == 0.0


def test_answering_zero_scores_one_uncentred_and_above_one_centred(x):
    zero = torch.zeros_like(x)
    assert metrics.fvu_uncentred(x, zero) == 1.0
    n, mean_sq = len(x), x.mean(dim=0).square().sum().item()
    variance = x.var(dim=0, correction=0).sum().item()
    assert metrics.fvu(x, zero) == pytest.approx(1 + mean_sq / variance, rel=1e-12)
    assert n == 101


def test_it_is_the_ratio_of_sums_that_the_definition_says(x, x_hat):
    variance = x.var(dim=0, correction=0).sum() * len(x)
    assert metrics.fvu(x, x_hat) == pytest.approx(((x - x_hat) ** 2).sum().item() / variance.item(), rel=1e-12)
    per_token = ((x - x_hat) ** 2).sum(1) / ((x - x.mean(0)) ** 2).sum(1)
    assert metrics.fvu_token_mean(x, x_hat) == pytest.approx(per_token.mean().item(), rel=1e-12)
    assert metrics.fvu_uncentred(x, x_hat) == pytest.approx(((x - x_hat) ** 2).sum().item() / (x**2).sum().item())


@pytest.mark.parametrize("name", ["fvu", "fvu_token_mean"])
def test_moving_the_origin_changes_nothing(x, x_hat, name):
    metric = getattr(metrics, name)
    assert metric(x + 1e6, x_hat + 1e6) == pytest.approx(metric(x, x_hat), rel=1e-8)


def test_moving_the_origin_flatters_the_uncentred_one(x, x_hat):
    """The reason why it is not the headline."""
    assert metrics.fvu_uncentred(x + 100, x_hat + 100) < metrics.fvu_uncentred(x, x_hat) / 10


@pytest.mark.parametrize("name", ["fvu", "fvu_token_mean", "fvu_uncentred"])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_units_do_not_matter(x, x_hat, name, scale):
    metric = getattr(metrics, name)
    assert metric(scale * x, scale * x_hat) == pytest.approx(metric(x, x_hat), rel=1e-9)


def test_how_the_tokens_were_batched_does_not_matter(x, x_hat):
    whole = Fvu.of(x, x_hat)
    for size in (1, 7, 100):
        parts = [Fvu.of(a, b) for a, b in zip(x.split(size), x_hat.split(size), strict=True)]
        joined = parts[0]
        for part in parts[1:]:
            joined = joined + part
        assert joined.value == pytest.approx(whole.value, rel=1e-12)
        torch.testing.assert_close(joined.mean, x.mean(dim=0))
    halves = FvuUncentred.of(x[:40], x_hat[:40]) + FvuUncentred.of(x[40:], x_hat[40:])
    assert halves.value == pytest.approx(metrics.fvu_uncentred(x, x_hat), rel=1e-12)
    mean = x.mean(dim=0)
    halves = FvuTokenMean.of(x[:40], x_hat[:40], mean=mean) + FvuTokenMean.of(x[40:], x_hat[40:], mean=mean)
    assert halves.value == pytest.approx(metrics.fvu_token_mean(x, x_hat), rel=1e-12)


def test_a_constant_error_is_seen(x):
    """The variance of the residual, which is sometimes put in its place, would be blind to it."""
    offset = torch.full((6,), 2.0, dtype=torch.float64)
    variance = x.var(dim=0, correction=0).sum().item()
    assert metrics.fvu(x, x + offset) == pytest.approx(offset.square().sum().item() / variance, rel=1e-12)


def test_independent_noise_of_known_variance_is_measured():
    g = torch.Generator().manual_seed(2)
    x = 3 * torch.randn(20_000, 8, generator=g)
    assert metrics.fvu(x, x + 0.6 * torch.randn(x.shape, generator=g)) == pytest.approx(0.04, rel=0.02)


def test_few_tokens_of_large_norm_rule_the_pooled_figure_and_not_the_token_mean(x):
    x = x.clone()
    x[0] *= 1000
    x_hat = x.clone()
    x_hat[0] = x.mean(dim=0)
    assert metrics.fvu(x, x_hat) > 0.98
    assert metrics.fvu_token_mean(x, x_hat) < 0.02


def test_activations_that_are_all_equal_are_refused():
    """0.1 is not a binary fraction: the mean of many copies differs from it by rounding."""
    x = torch.full((37, 5), 0.1, dtype=torch.float64)
    assert (x - x.mean(dim=0)).abs().max() > 0
    with pytest.raises(UndefinedMetric, match="all equal"):
        metrics.fvu(x, x + 1)
    parts = Fvu.of(x[:1], x[:1] + 1) + Fvu.of(x[1:], x[1:] + 1)
    with pytest.raises(UndefinedMetric, match="37 activations"):
        _ = parts.value
    with pytest.raises(UndefinedMetric, match="every activation is zero"):
        metrics.fvu_uncentred(torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(UndefinedMetric, match="1 of 3 tokens equal the mean"):
        metrics.fvu_token_mean(torch.tensor([[-1.0], [0.0], [1.0]]), torch.zeros(3, 1))


def test_an_empty_batch_and_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="at least one activation"):
        Fvu.of(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="x_hat must be finite, got 1 of 2 rows"):
        metrics.fvu(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [torch.nan]]))


def test_a_pair_that_would_only_broadcast_is_refused():
    with pytest.raises(ValueError, match=r"got \[4, 3\] and \[1, 3\]"):
        float64_pair(torch.zeros(4, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="flatten batch and position"):
        float64_pair(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3))
