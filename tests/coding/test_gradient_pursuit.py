"""Gradient pursuit against its slow twin, closed forms and edges."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from reference import pursuit as twin

from sparsight.coding import gradient_pursuit


def tensors(problem: twin.Planted) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(problem.x), torch.from_numpy(problem.atoms)


def problem(mean: float = 0.0, noise: float = 0.1, seed: int = 0) -> twin.Planted:
    rng = np.random.default_rng(seed)
    return twin.planted(rng, twin.random_atoms(rng, 96, 24, mean=mean), 20, 5, noise=noise)


@pytest.mark.parametrize("mean", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_codes_equal_those_of_the_slow_twin(mean, nonnegative, inner_steps):
    """With 16 steps over coherent atoms some weights meet zero and later stay there or come back."""
    case = problem(mean)
    x, atoms = tensors(case)
    code = gradient_pursuit(x, atoms, 16, nonnegative=nonnegative, inner_steps=inner_steps).to_dense()
    kwargs = {"nonnegative": nonnegative, "inner_steps": inner_steps}
    expected = np.stack([twin.gradient_pursuit(row, case.atoms, 16, **kwargs) for row in case.x])
    np.testing.assert_allclose(code.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_each_step_lowers_the_loss_by_the_closed_form_and_leaves_nothing_along_its_direction(nonnegative):
    """One step from a known code: `<r, c> = |g|^2`, decrease `|g|^4 / |c|^2`, and then `<r', c> = 0`."""
    x, atoms = tensors(problem())
    before = gradient_pursuit(x, atoms, 1, nonnegative=nonnegative)
    after = gradient_pursuit(x, atoms, 2, nonnegative=nonnegative)
    residual = x - before.decode(atoms)
    chosen = torch.zeros(len(x), len(atoms), dtype=torch.bool).scatter(1, after.indices, True)
    gradient = torch.where(chosen, residual @ atoms.T, 0)
    direction = gradient @ atoms
    free = after.l0() == 2  # rows where no weight met zero took the whole step
    assert free.sum() >= 15
    slope = gradient.square().sum(1)
    torch.testing.assert_close((residual * direction).sum(1), slope, rtol=1e-12, atol=1e-12)
    left = x - after.decode(atoms)
    assert ((left * direction).sum(1).abs() / slope)[free].max() < 1e-12
    decrease = residual.square().sum(1) - left.square().sum(1)
    expected = slope.square() / direction.square().sum(1)
    torch.testing.assert_close(decrease[free], expected[free], rtol=1e-11, atol=0)


def test_polished_weights_satisfy_the_optimality_conditions_on_their_support():
    x, atoms = tensors(problem(mean=1.0))
    code = gradient_pursuit(x, atoms, 8, polish=True)
    correlation = (x - code.decode(atoms)) @ atoms.T
    on_support = torch.zeros_like(correlation).scatter_add(1, code.indices, (code.values > 0).double())
    assert (correlation * on_support).abs().max() < 1e-9


def test_all_loss_lies_below_that_of_smaller_codes():
    x, atoms = tensors(problem(mean=1.0))
    losses = [(x - gradient_pursuit(x, atoms, k).decode(atoms)).square().sum(1) for k in range(25)]
    assert all((after <= before + 1e-12).all() for before, after in pairwise(losses))
