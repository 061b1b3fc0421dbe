"""The formulas of other evaluation code, restated, beside ours: equal where they are right; the case that decides else.

Their own code was run on the same arrays (`benchmarks/evaluation_peers.py`, docs/evaluation.md).
"""

import pytest
import torch

from sparsight.evaluation import metrics


def data(n: int = 2048, d: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(55)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    x = x - x.mean(dim=0)
    return x, x + 0.3 * torch.randn(n, d, generator=g, dtype=torch.float64)


def saebench_explained_variance(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    """Mean squares where squared means belong."""
    variance = x.square().sum(dim=1).mean() - x.square().mean(dim=0).mean() ** 2
    return float(1 - (x - x_hat).square().sum(dim=1).mean() / variance)


def saebench_mse(x: torch.Tensor, x_hat: torch.Tensor, batch: int) -> float:
    """Divided by the tokens of a batch, and then averaged over tokens."""
    parts = [(a - b).square().sum(dim=1) / len(a) for a, b in zip(x.split(batch), x_hat.split(batch), strict=True)]
    return float(torch.cat(parts).mean())


def legacy_explained_variance(x: torch.Tensor, x_hat: torch.Tensor, batch: int) -> float:
    """Per token, about the mean of its own batch."""
    parts = [
        1 - (a - b).square().sum(dim=1) / (a - a.mean(dim=0)).square().sum(dim=1)
        for a, b in zip(x.split(batch), x_hat.split(batch), strict=True)
    ]
    return float(torch.cat(parts).mean())


def test_answering_the_mean_explains_nothing():
    x, _ = data()
    x = x + 5
    at_mean = x.mean(dim=0).expand_as(x)
    assert 1 - metrics.fvu(x, at_mean) == pytest.approx(0, abs=1e-12)
    assert saebench_explained_variance(x, at_mean) > 0.9


def test_units_do_not_change_the_explained_variance():
    x, x_hat = data()
    assert metrics.fvu(30 * x, 30 * x_hat) == pytest.approx(metrics.fvu(x, x_hat), rel=1e-12)
    assert saebench_explained_variance(2 * x, 2 * x_hat) != pytest.approx(
        saebench_explained_variance(x, x_hat), abs=0.01
    )
    assert saebench_explained_variance(6 * x, 6 * x_hat) > 1


def test_the_size_of_a_batch_does_not_change_a_squared_error():
    x, x_hat = data()
    expected = float((x - x_hat).square().sum(dim=1).mean())
    assert saebench_mse(x, x_hat, 512) == pytest.approx(expected / 512)
    assert saebench_mse(x, x_hat, 128) == pytest.approx(4 * saebench_mse(x, x_hat, 512))


def test_the_token_mean_about_one_mean_is_the_legacy_number_in_one_batch():
    x, x_hat = data()
    ours = 1 - metrics.fvu_token_mean(x, x_hat)
    assert legacy_explained_variance(x, x_hat, len(x)) == pytest.approx(ours, rel=1e-12)
    assert legacy_explained_variance(x, x_hat, 8) != pytest.approx(ours, abs=0.003)


def test_a_divergence_stays_finite_where_probabilities_underflow():
    logits = torch.zeros(1, 2, 3)
    far = torch.tensor([[[2000.0, 0, 0], [0, 0, 0]]])
    found = float(metrics.next_token_kl(logits, far).mean())
    assert found == pytest.approx(2000 * 2 / 3 - torch.log(torch.tensor(3.0)).item(), rel=1e-4)
    p, q = logits.softmax(-1), far.softmax(-1)
    assert not torch.isfinite((p * (p.log() - q.log())).sum(-1)).all()
