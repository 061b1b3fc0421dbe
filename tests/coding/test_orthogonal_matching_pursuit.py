"""Orthogonal matching pursuit against scikit-learn, its slow twin and the optimality conditions."""

import numpy as np
import pytest
import torch
from reference import pursuit as twin
from sklearn.linear_model import orthogonal_mp

from sparsight.coding import kkt_residual, orthogonal_matching_pursuit
from sparsight.coding.kernels.search import DenseSearch
from sparsight.coding.orthogonal_matching_pursuit import CholeskyFactors
from sparsight.coding.supports import Supports


def case(mean: float, noise: float = 0.1) -> twin.Planted:
    rng = np.random.default_rng(2)
    return twin.planted(rng, twin.random_atoms(rng, 96, 24, mean=mean), 20, 5, noise=noise)


def tensors(problem: twin.Planted) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(problem.x), torch.from_numpy(problem.atoms)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_signed_codes_equal_those_of_scikit_learn(mean):
    problem = case(mean)
    code = orthogonal_matching_pursuit(*tensors(problem), 8, nonnegative=False).to_dense()
    expected = orthogonal_mp(problem.atoms.T, problem.x.T, n_nonzero_coefs=8).T
    np.testing.assert_allclose(code.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_orthogonal_pursuit_equals_its_slow_twin(mean, nonnegative):
    problem = case(mean)
    code = orthogonal_matching_pursuit(*tensors(problem), 10, nonnegative=nonnegative).to_dense()
    expected = np.stack(
        [twin.orthogonal_matching_pursuit(y, problem.atoms, 10, nonnegative=nonnegative) for y in problem.x]
    )
    np.testing.assert_allclose(code.numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_weights_are_optimal_on_their_support_so_the_residual_is_orthogonal_to_the_active_atoms(nonnegative, mean):
    x, atoms = tensors(case(mean))
    code = orthogonal_matching_pursuit(x, atoms, 12, nonnegative=nonnegative)
    assert kkt_residual(x, code, atoms, support=code.indices, nonnegative=nonnegative).max() < 1e-8


def test_a_copy_of_a_chosen_atom_is_never_worth_choosing():
    x, atoms = tensors(case(0.0))
    once = orthogonal_matching_pursuit(x, atoms, 8, nonnegative=False)
    doubled = torch.cat([atoms, atoms])
    twice = orthogonal_matching_pursuit(x, doubled, 8, nonnegative=False)
    assert torch.equal(twice.indices % 96, once.indices)
    torch.testing.assert_close(twice.values, once.values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_atom_that_depends_on_those_before_it_gets_no_weight(dtype):
    """Atoms 0 and 1, then one in their plane, which rounding alone keeps off it, then one outside."""
    atoms = torch.tensor([[1, 0, 0], [0.6, 0.8, 0], [0.8, 0.6, 0], [0, 0, 1]], dtype=dtype)
    x = torch.tensor([[2.0, 1.0, 3.0]], dtype=dtype)
    finder = DenseSearch(x, atoms, 4, nonnegative=False, repeats=False)
    support, factors = Supports(1, 4, x), CholeskyFactors(1, 4, x)
    alive = torch.tensor([True])
    for atom in range(4):
        support.add(finder, torch.tensor([atom]), alive)
        weights = factors.extend_and_solve(support, alive)
    torch.testing.assert_close(weights, torch.tensor([[1.25, 1.25, 0, 3]], dtype=dtype))


def test_signed_pursuit_with_more_steps_than_dimensions_ends_at_an_exact_row():
    x, atoms = tensors(case(0.0))
    code = orthogonal_matching_pursuit(x, atoms, 60, nonnegative=False)
    torch.testing.assert_close(code.decode(atoms), x, rtol=0, atol=1e-9)
    assert (code.l0() <= 24).all()
