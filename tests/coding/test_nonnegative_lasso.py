"""The non-negative lasso by working sets: the minimum that FISTA approaches, and its certificate."""

import pytest
import torch

from sparsight.coding import SparseCode, duality_gap, fista, nonnegative_lasso, refit
from sparsight.studies.planted import paired_atoms, random_atoms


def case(coherence: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    planted = random_atoms(3, 32, 200, 5, 0.1, 60, coherence=coherence)
    return planted.x, planted.atoms


def largest(x: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    return (x @ atoms.T).amax(dim=1)


@pytest.mark.parametrize("coherence", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_codes_are_those_that_fista_approaches(share, coherence):
    x, atoms = case(coherence)
    penalty = share * largest(x, atoms).clamp_min(1e-3)
    exact = nonnegative_lasso(x, atoms, penalty, gap=1e-10)
    slow = fista(x, atoms, penalty, gap=1e-10, max_steps=20_000)
    assert (duality_gap(x, exact, atoms, penalty) <= 1e-10 * x.square().sum(1) / 2).all()

    def objective(code: SparseCode) -> torch.Tensor:
        return (x - code.decode(atoms)).square().sum(1) / 2 + penalty * code.values.sum(1)

    torch.testing.assert_close(objective(exact), objective(slow), rtol=1e-9, atol=0)
    torch.testing.assert_close(exact.decode(atoms), slow.decode(atoms), rtol=0, atol=1e-4)


def test_the_optimality_conditions_hold():
    x, atoms = case()
    code = nonnegative_lasso(x, atoms, 0.3, gap=1e-14)
    correlation = (x - code.decode(atoms)) @ atoms.T
    used = code.to_dense() > 0
    assert used.sum(dim=1).double().mean() > 5
    assert (code.values >= 0).all()
    assert (correlation <= 0.3 + 1e-9).all()
    assert (correlation[used] - 0.3).abs().max() < 1e-9


def test_the_penalty_shrinks_by_its_closed_form():
    """`z_S = z_least_squares,S - penalty (D_S D_S')^-1 1` on the lasso's support."""
    x, atoms = case()
    code = nonnegative_lasso(x, atoms, 0.5, gap=1e-14)
    plain = refit(x, atoms, code.support(), nonnegative=False)
    for row in range(len(x)):
        used = code.values[row] > 0
        chosen = atoms[code.indices[row, used]]
        shrinkage = 0.5 * torch.linalg.solve(chosen @ chosen.T, torch.ones(len(chosen), dtype=torch.float64))
        torch.testing.assert_close(code.values[row, used], plain.values[row, used] - shrinkage, rtol=0, atol=1e-9)


def test_a_row_is_zero_exactly_when_its_penalty_reaches_its_largest_inner_product():
    x, atoms = case()
    limit = largest(x, atoms)
    assert (nonnegative_lasso(x, atoms, limit).l0() == 0).all()
    assert (nonnegative_lasso(x, atoms, 0.99 * limit, gap=1e-12).l0() > 0).all()


def test_a_start_changes_nothing_but_the_way():
    x, atoms = case()
    cold = nonnegative_lasso(x, atoms, 0.2, gap=1e-14).to_dense()
    for start in (nonnegative_lasso(x, atoms, 0.6), nonnegative_lasso(x, atoms, 0.05)):
        warm = nonnegative_lasso(x, atoms, 0.2, start=start, gap=1e-14).to_dense()
        torch.testing.assert_close(warm, cold, rtol=0, atol=1e-8)


def test_float32_reaches_its_gap_at_any_scale_and_among_near_duplicates():
    planted = paired_atoms(1, 0.999, both=True, n=50)
    atoms = torch.nn.functional.normalize(planted.atoms.float(), dim=1)
    for scale in (1e-18, 1.0, 1e18):
        x = scale * planted.x.float()
        code = nonnegative_lasso(x, atoms, 0.2 * scale, gap=1e-5)
        unit = x.double() / scale
        values = SparseCode(code.indices, code.values.double() / scale, code.n_latents)
        gap = duality_gap(unit, values, torch.nn.functional.normalize(atoms.double(), dim=1), 0.2)
        assert (gap <= 1.1e-5 * unit.square().sum(1) / 2).all()


def test_rows_do_not_depend_on_their_batch_and_zero_rows_are_empty():
    x, atoms = case()
    x[7] = 0
    whole = nonnegative_lasso(x, atoms, 0.3, gap=1e-12).to_dense()
    single = torch.cat([nonnegative_lasso(row[None], atoms, 0.3, gap=1e-12).to_dense() for row in x])
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-10)
    assert (whole[7] == 0).all()
    assert len(nonnegative_lasso(x[:0], atoms, 0.3)) == 0


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_not_positive_is_refused(penalty):
    x, atoms = case()
    with pytest.raises(ValueError, match="penalty must be positive"):
        nonnegative_lasso(x, atoms, penalty)


def test_a_gap_out_of_range_and_a_start_of_other_rows_are_refused():
    x, atoms = case()
    with pytest.raises(ValueError, match="gap must be in"):
        nonnegative_lasso(x, atoms, 1.0, gap=0.0)
    with pytest.raises(ValueError, match="the code must be of these 60 activations"):
        nonnegative_lasso(x, atoms, 1.0, start=nonnegative_lasso(x[:3], atoms, 1.0))
