"""Muon's step is the momentum with every singular value brought near one."""

import pytest
import torch

from sparsight.models.organism.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(*shape, generator=g, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonal(matrix) @ v.T
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()))
    assert turned.diagonal().min() > 0.6
    assert turned.diagonal().max() < 1.3


def test_the_size_of_the_gradient_does_not_matter():
    matrix = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(orthogonal(1e-3 * matrix), orthogonal(matrix))
    torch.testing.assert_close(orthogonal(0 * matrix), 0 * matrix)


def test_one_step_from_zero_moves_by_the_learning_rate_times_the_direction():
    """The first momentum is a multiple of the gradient, so it has the same direction; tall matrices move further."""
    weights = torch.nn.Parameter(torch.zeros(8, 2, dtype=torch.float64))
    weights.grad = torch.randn(8, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    Muon([weights], lr=0.1).step()
    torch.testing.assert_close(weights.detach(), -0.1 * 2 * orthogonal(weights.grad))
