"""The posterior near a point: its drift, its curvature, its noise; each against a closed form."""

import math

import pytest
import torch

from sparsight.theory.learning_coefficient import Chains, FunctionLoss, ModuleLoss, learning_coefficient
from sparsight.theory.learning_coefficient.posterior import posterior_near

A = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, -0.5], [0.0, -0.5, 1.0]], dtype=torch.float64)
POINT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
LOSS = FunctionLoss(lambda w: (w - POINT) @ A @ (w - POINT) / 2)
MASK = torch.tensor([True, False, True])


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def test_gradient_drift_and_hessian_are_those_of_the_masked_loss():
    near = posterior_near(LOSS, POINT, 10.0, 2.0, MASK)
    w = POINT + torch.tensor([[0.5, 0.0, -1.0], [2.0, 0.0, 0.1]], dtype=torch.float64)
    losses, gradient = near.gradient(w)
    expected = (w - POINT) @ A
    expected[:, 1] = 0
    torch.testing.assert_close(losses, LOSS.at(w))
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(near.drift(w, gradient), 10 * expected + 2 * (w - POINT))
    torch.testing.assert_close(near.energy(w, losses), 10 * losses + (w - POINT).square().sum(dim=1))
    vectors = torch.eye(3, dtype=torch.float64)[:2]
    turned = vectors @ A
    turned[:, 1] = 0
    turned[1] = 0  # a direction that does not vary is no direction
    torch.testing.assert_close(near.hessian_times(w, vectors * near.moves), turned * torch.tensor([[1.0], [0.0]]))
    assert near.dimension == 2


def test_curvature_is_the_largest_eigenvalue_also_in_another_shape():
    near = posterior_near(LOSS, POINT, 10.0, 2.0)
    m = 10 * A + 2 * torch.eye(3, dtype=torch.float64)
    w = POINT.expand(2, -1)
    shape = torch.diag(torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64))
    assert near.curvature(w, g(), iterations=100).tolist() == pytest.approx([float(torch.linalg.eigvalsh(m)[-1])] * 2)
    shaped = float(torch.linalg.eigvalsh(shape @ m @ shape)[-1])
    assert near.curvature(w, g(), shape=shape, iterations=100).tolist() == pytest.approx([shaped] * 2)


def test_curvature_of_minibatches_is_near_that_of_all_data():
    x = torch.randn(500, 2, generator=g(3), dtype=torch.float64)
    module = torch.nn.Linear(2, 1, bias=False).double().eval()

    def squared(model, x):
        return model(x).square().mean()

    loss = ModuleLoss(module, squared, (x,), batch_size=100)
    near = posterior_near(loss, loss.parameters(), 10.0, 2.0)
    expected = 10 * float(torch.linalg.eigvalsh(2 * x.T @ x / 500)[-1]) + 2
    found = near.curvature(loss.parameters().expand(200, -1), g())
    assert len(found.unique()) > 100
    assert float(found.mean()) == pytest.approx(expected, rel=0.1)  # the largest of two noisy ones is a little larger
    first, second = (near.curvature(loss.parameters()[None], g(5), iterations=n) for n in (60, 80))
    torch.testing.assert_close(first, second)  # one and the same minibatch in all iterations


def test_a_linear_loss_has_no_curvature_but_that_of_the_localisation():
    near = posterior_near(FunctionLoss(lambda w: w.sum()), POINT, 10.0, 2.0)
    assert near.curvature(POINT[None], g()).tolist() == pytest.approx([2.0])


@pytest.mark.parametrize("sampler", ["sgld", "mala"])
def test_chains_stay_near_the_point_and_not_near_the_origin(sampler):
    """On a flat loss the density is normal about `w*`: `E |w - w*|^2 = d / gamma`."""
    how = Chains(sampler=sampler, n_chains=500, n_draws=10, n_burn_in=250, steps_per_draw=4)
    found = learning_coefficient(FunctionLoss(lambda w: 0 * w.sum()), POINT, how, n_beta=5.0, gamma=4.0, generator=g())
    assert found.distance == pytest.approx(math.sqrt(3 / 4), rel=0.05)  # five of its own standard errors
    assert found.value == 0
    assert found.r_hat == 1


def test_the_variance_of_minibatch_gradients_falls_with_the_batch():
    """The gradient of the mean of `(w - x)^2` is `2 (w - mean x)`: variance `4 var(x) / m` with replacement."""
    x = torch.randn(300, generator=g(1), dtype=torch.float64)
    module = torch.nn.Linear(1, 1, bias=False).double().eval()

    def squared(model, x):
        return (model(torch.ones(1, dtype=x.dtype)) - x).square().mean()

    for size in (5, 20):
        loss = ModuleLoss(module, squared, (x,), batch_size=size)
        near = posterior_near(loss, loss.parameters(), 1.0, 1.0)
        expected = 4 * float(x.var(correction=0)) / size
        assert near.gradient_noise(g(2), repeats=2000) == pytest.approx(expected, rel=0.13)  # four standard errors
    assert posterior_near(ModuleLoss(module, squared, (x,)), loss.parameters(), 1.0, 1.0).gradient_noise(g()) == 0
