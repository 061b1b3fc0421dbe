"""Guessed active sets: proven only where the optimality conditions hold, and the same answer without any guess."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from sparsight.coding import block_pivoting
from sparsight.coding.block_pivoting import guess_and_prove
from sparsight.coding.nonnegative_least_squares import nonnegative_least_squares


def problems(n: int, d: int, k: int, mean: float, dtype=torch.float64):
    g = torch.Generator().manual_seed(k)
    atoms = torch.randn(n, k, d, generator=g, dtype=torch.float64)
    atoms[:, :, 0] += mean * d**0.5
    atoms = atoms / atoms.norm(dim=2, keepdim=True)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    x = x + torch.einsum("nk,nkd->nd", torch.rand(n, k, generator=g, dtype=torch.float64), atoms)
    gram, target = atoms @ atoms.transpose(1, 2), torch.einsum("nkd,nd->nk", atoms, x)
    return x, atoms, gram.to(dtype), target.to(dtype)


@pytest.mark.parametrize(("d", "k", "mean"), [(96, 64, 0.0), (96, 64, 2.0), (64, 64, 0.5), (40, 64, 0.0)])
def test_weights_are_those_of_scipy_at_sixty_four_coordinates(d, k, mean):
    x, atoms, gram, target = problems(25, d, k, mean)
    weights = nonnegative_least_squares(gram, target, torch.ones_like(target, dtype=torch.bool))
    gradient = target - torch.einsum("nij,nj->ni", gram, weights)
    assert (weights >= 0).all()
    assert torch.maximum(gradient, (weights * gradient).abs()).max() < 1e-8
    for row in range(len(x)):
        _, distance = nnls(atoms[row].T.numpy(), x[row].numpy())
        fitted = (x[row] - weights[row] @ atoms[row]).norm().item()
        assert fitted == pytest.approx(distance, abs=1e-8)


@pytest.mark.parametrize("mean", [0.0, 1.0, 4.0])
def test_in_float32_the_gradient_is_within_a_millionth_of_the_largest_target(mean):
    _, _, gram, target = problems(40, 96, 48, mean, torch.float32)
    weights = nonnegative_least_squares(gram, target, torch.ones_like(target, dtype=torch.bool)).double()
    gradient = target.double() - torch.einsum("nij,nj->ni", gram.double(), weights)
    size = target.abs().amax(1, keepdim=True)
    # Storing the weights in float32 moves each gradient by half a unit of their sum.
    room = 1e-6 + 2**-24 * weights.sum(1, keepdim=True) / size
    assert (weights >= 0).all()
    assert (gradient <= room * size).all()
    assert ((gradient.abs() <= room * size) | (weights == 0)).all()


@pytest.mark.parametrize("exchanges", [0, 1, 2])
def test_rows_without_a_proof_get_the_same_answer(monkeypatch, exchanges):
    _, _, gram, target = problems(30, 48, 32, 1.0)
    used = torch.rand(30, 32, generator=torch.Generator().manual_seed(0)) < 0.9
    expected = nonnegative_least_squares(gram, target, used)
    monkeypatch.setattr(block_pivoting, "MOST_EXCHANGES", exchanges)
    torch.testing.assert_close(nonnegative_least_squares(gram, target, used), expected, rtol=0, atol=1e-9)
    assert (expected[~used] == 0).all()


def test_nothing_is_called_proven_that_is_not():
    """Free sets that are wrong and may not be exchanged: no row of them passes."""
    _, _, gram, target = problems(30, 48, 32, 1.0)
    used = torch.ones_like(target, dtype=torch.bool)
    tolerance = torch.full((30, 1), 1e-9, dtype=torch.float64)
    right, proven = guess_and_prove(gram, target, used, used, tolerance)
    assert proven.all()
    wrong = (right > 0).roll(1, dims=1)
    refined, claimed = block_pivoting._refined(
        block_pivoting._factors(gram.float(), wrong)[0], gram, target, used, wrong, tolerance
    )
    gradient = target - torch.einsum("nij,nj->ni", gram, refined)
    truly = (refined >= 0).all(1) & (gradient <= 1e-9).all(1) & ((gradient.abs() <= 1e-9) | (refined == 0)).all(1)
    assert not truly.any()
    assert not claimed.any()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_weights_scale_with_the_target(scale):
    _, _, gram, target = problems(10, 48, 16, 1.0)
    used = torch.ones_like(target, dtype=torch.bool)
    once = nonnegative_least_squares(gram, target, used)
    np.testing.assert_allclose(nonnegative_least_squares(gram, target * scale, used), once * scale, rtol=1e-8)


def test_most_planted_rows_are_proven_by_the_guess():
    _, _, gram, target = problems(60, 96, 64, 0.5, torch.float32)
    tolerance = 1e-6 * target.abs().amax(1, keepdim=True).double()
    used = torch.ones_like(target, dtype=torch.bool)
    assert guess_and_prove(gram, target, used, used, tolerance)[1].float().mean() > 0.9
