"""The lasso: where it is zero, its certificate, and how much it shrinks."""

import numpy as np
import pytest
import torch
from reference import pursuit as twin

from sparsight.coding import duality_gap, fista, refit


def case(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    problem = twin.planted(rng, twin.random_atoms(rng, 60, 24), 10, 4, noise=0.1)
    return torch.from_numpy(problem.x), torch.from_numpy(problem.atoms)


def largest(x: torch.Tensor, atoms: torch.Tensor, nonnegative: bool) -> torch.Tensor:
    scores = x @ atoms.T
    return (scores if nonnegative else scores.abs()).amax(dim=1)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_a_row_is_zero_exactly_when_its_penalty_reaches_its_largest_inner_product(nonnegative):
    x, atoms = case()
    limit = largest(x, atoms, nonnegative)
    assert (fista(x, atoms, limit, nonnegative=nonnegative).l0() == 0).all()
    assert (fista(x, atoms, 1.01 * limit, nonnegative=nonnegative).l0() == 0).all()
    assert (fista(x, atoms, 0.99 * limit, nonnegative=nonnegative, gap=1e-12).l0() > 0).all()


@pytest.mark.parametrize("nonnegative", [True, False])
def test_the_duality_gap_closes_and_the_optimality_conditions_hold(nonnegative):
    x, atoms = case()
    penalty = 0.3 * largest(x, atoms, nonnegative)
    code = fista(x, atoms, penalty, nonnegative=nonnegative, max_steps=20_000, gap=1e-14)
    assert duality_gap(x, code, atoms, penalty, nonnegative=nonnegative).abs().max() < 1e-10
    correlation = (x - code.decode(atoms)) @ atoms.T
    on_support = code.to_dense().sign()
    if nonnegative:
        assert (correlation - penalty.unsqueeze(1)).max() < 1e-6
    else:
        assert (correlation.abs() - penalty.unsqueeze(1)).max() < 1e-6
    assert ((correlation - penalty.unsqueeze(1) * on_support) * on_support.abs()).abs().max() < 1e-6


def test_the_gap_bounds_the_true_excess_of_an_unfinished_code():
    x, atoms = case()
    penalty = 0.3 * largest(x, atoms, True)

    def objective(code):
        return (x - code.decode(atoms)).square().sum(1) / 2 + penalty * code.values.sum(1)

    best = objective(fista(x, atoms, penalty, max_steps=20_000, gap=1e-14))
    early = fista(x, atoms, penalty, max_steps=5)
    excess = objective(early) - best
    assert (excess > 1e-6).all()
    assert (duality_gap(x, early, atoms, penalty) >= excess - 1e-12).all()


def test_the_penalty_shrinks_by_its_closed_form_and_refitting_undoes_it():
    """`z_S = z_refit,S - penalty (D_S D_S')^-1 1` on the lasso's support."""
    x, atoms = case()
    penalty = 0.3 * largest(x, atoms, True)
    code = fista(x, atoms, penalty, max_steps=50_000, gap=1e-15)
    debiased = refit(x, atoms, code.support(), nonnegative=False)
    for row in range(len(x)):
        used = code.values[row] > 0
        chosen = atoms[code.indices[row, used]]
        shrinkage = penalty[row] * torch.linalg.solve(chosen @ chosen.T, torch.ones(len(chosen), dtype=torch.float64))
        expected = debiased.values[row, used] - shrinkage
        torch.testing.assert_close(code.values[row, used], expected, rtol=0, atol=1e-6)


def test_codes_equal_those_of_many_steps_of_the_slow_twin():
    x, atoms = case()
    code = fista(x, atoms, 0.4, max_steps=20_000, gap=1e-14).to_dense()
    expected = np.stack([twin.fista(row, atoms.numpy(), 0.4, 5000) for row in x.numpy()])
    np.testing.assert_allclose(code.numpy(), expected, atol=1e-6)


def test_float32_reaches_its_default_gap():
    x, atoms = case()
    x, atoms = x.float(), atoms.float()
    code = fista(x, atoms, 0.4)
    assert (duality_gap(x, code, atoms, 0.4) <= 2e-6 * x.square().sum(1) / 2).all()


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_not_positive_is_refused(penalty):
    x, atoms = case()
    with pytest.raises(ValueError, match="penalty must be positive"):
        fista(x, atoms, penalty)


@pytest.mark.parametrize("arguments", [{"max_steps": 0}, {"gap": 0.0}, {"gap": 1.0}])
def test_steps_and_gap_out_of_range_are_refused(arguments):
    x, atoms = case()
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        fista(x, atoms, 1.0, **arguments)
