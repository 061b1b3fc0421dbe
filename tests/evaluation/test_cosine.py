"""Cosine: known angles, what it is blind to, and vectors without a direction."""

import pytest
import torch

from sparsight.errors import UndefinedMetric
from sparsight.evaluation import metrics
from sparsight.evaluation.cosine import Cosine


def test_known_angles_give_their_cosines():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    x_hat = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [5.0, 5.0]])
    assert metrics.cosine(x, x_hat) == pytest.approx((1 + 0 - 1 + 0.5**0.5) / 4, abs=1e-12)


def test_length_does_not_matter_token_by_token():
    g = torch.Generator().manual_seed(0)
    x, x_hat = torch.randn(2, 50, 4, generator=g, dtype=torch.float64)
    lengths = torch.rand(50, 1, generator=g, dtype=torch.float64) + 0.1
    assert metrics.cosine(x, lengths * x_hat) == pytest.approx(metrics.cosine(x, x_hat), rel=1e-12)
    assert metrics.cosine(x, lengths * x) == pytest.approx(1, abs=1e-12)


def test_a_common_mean_flatters_unless_it_is_subtracted():
    g = torch.Generator().manual_seed(1)
    x, unrelated = torch.randn(2, 4000, 8, generator=g, dtype=torch.float64)
    mean = torch.full((8,), 10.0, dtype=torch.float64)
    assert metrics.cosine(x + mean, unrelated + mean) > 0.98
    assert abs(metrics.cosine(x + mean, unrelated + mean, centre=mean)) < 0.02


def test_a_silent_reconstruction_counts_as_zero_and_a_zero_activation_not_at_all():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    x_hat = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    sums = Cosine.of(x, x_hat)
    assert (sums.n, sums.n_zero, sums.value) == (2, 1, 0.5)
    assert (Cosine.of(x[:1], x_hat[:1]) + Cosine.of(x[1:], x_hat[1:])) == sums
    with pytest.raises(UndefinedMetric, match="all 3 activations are zero"):
        metrics.cosine(torch.zeros(3, 2), torch.ones(3, 2))
