"""Matching pursuit against its slow twin and its closed form."""

import numpy as np
import pytest
import torch
from reference import pursuit as twin

from sparsight.coding import matching_pursuit


def case(mean: float) -> twin.Planted:
    rng = np.random.default_rng(1)
    return twin.planted(rng, twin.random_atoms(rng, 96, 24, mean=mean), 20, 5, noise=0.1)


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_matching_pursuit_equals_its_slow_twin(mean, nonnegative):
    problem = case(mean)
    x, atoms = torch.from_numpy(problem.x), torch.from_numpy(problem.atoms)
    code = matching_pursuit(x, atoms, 12, nonnegative=nonnegative).to_dense()
    expected = np.stack([twin.matching_pursuit(y, problem.atoms, 12, nonnegative=nonnegative) for y in problem.x])
    np.testing.assert_allclose(code.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_each_step_lowers_the_squared_norm_by_the_square_of_the_score(nonnegative):
    problem = case(0.0)
    x, atoms = torch.from_numpy(problem.x), torch.from_numpy(problem.atoms)
    residual = x
    for k in range(1, 10):
        scores = residual @ atoms.T
        best = scores.amax(1) if nonnegative else scores.abs().amax(1)
        after = x - matching_pursuit(x, atoms, k, nonnegative=nonnegative).decode(atoms)
        drop = residual.square().sum(1) - after.square().sum(1)
        torch.testing.assert_close(drop, best.square(), rtol=1e-12, atol=1e-12)
        residual = after


def test_an_atom_that_comes_again_adds_to_its_weight():
    """Two atoms at 60 degrees, a signal in their plane and two atoms outside it: steps alternate between the two."""
    third = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    plane = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.75**0.5, 0.0]], dtype=torch.float64)
    atoms = torch.stack([*plane, third, -third])
    x = torch.tensor([[3.0, 2.0, 0.0]], dtype=torch.float64)
    loss = [(x - matching_pursuit(x, atoms, k, nonnegative=False).decode(atoms)).norm() for k in (2, 3, 4)]
    assert loss[2] < loss[1] < loss[0]
    code = matching_pursuit(x, atoms, 4, nonnegative=False)
    assert code.l0().item() == 2
    assert (code.to_dense()[0, 2:] == 0).all()
