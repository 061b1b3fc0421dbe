"""Refit on a given support: optimality, agreement with scipy, and awkward supports."""

import numpy as np
import pytest
import torch
from reference import pursuit as twin

from sparsight.coding import SparseCode, refit


def random_case(seed: int, n: int, d: int, n_latents: int, k: int, mean: float = 0.0):
    rng = np.random.default_rng(seed)
    atoms = torch.from_numpy(twin.random_atoms(rng, n_latents, d, mean=mean))
    x = torch.from_numpy(rng.standard_normal((n, d)))
    support = torch.from_numpy(np.stack([rng.choice(n_latents, k, replace=False) for _ in range(n)]))
    return x, atoms, support


@pytest.mark.parametrize(("k", "mean"), [(1, 0.0), (6, 0.0), (16, 2.0), (30, 1.0)])
def test_nonnegative_weights_are_those_of_scipy_and_satisfy_kkt(k, mean):
    x, atoms, support = random_case(k, 40, 24, 60, k, mean)
    code = refit(x, atoms, support)
    gradient = torch.einsum("nkd,nd->nk", atoms[support], x - code.decode(atoms))
    assert (code.values >= 0).all()
    assert torch.maximum((code.values * gradient).abs(), gradient).max() < 1e-8
    for row in range(len(x)):
        expected = twin.solve(x[row].numpy(), atoms[support[row]].numpy(), nonnegative=True)
        fitted = expected @ atoms[support[row]].numpy()
        np.testing.assert_allclose(code.decode(atoms)[row].numpy(), fitted, atol=1e-9)
        if k <= 16:
            np.testing.assert_allclose(code.values[row].numpy(), expected, atol=1e-8)


def test_signed_weights_are_those_of_lstsq():
    x, atoms, support = random_case(1, 40, 24, 60, 10)
    code = refit(x, atoms, support, nonnegative=False)
    for row in range(len(x)):
        expected = twin.solve(x[row].numpy(), atoms[support[row]].numpy(), nonnegative=False)
        np.testing.assert_allclose(code.values[row].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_planted_weights_are_recovered_whatever_the_order_of_the_columns(nonnegative):
    x, atoms, support = random_case(2, 30, 24, 60, 8)
    weights = torch.rand(30, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = SparseCode(support, weights, 60).decode(atoms)
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [3, 1, 7, 5, 0, 2, 6, 4]):
        code = refit(x, atoms, support[:, order], nonnegative=nonnegative)
        torch.testing.assert_close(code.values, weights[:, order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_copies_of_an_atom_change_nothing_but_who_carries_the_weight(nonnegative, dtype):
    x, atoms, support = random_case(3, 30, 24, 40, 6)
    x, atoms = x.to(dtype), atoms.to(dtype)
    doubled = torch.cat([atoms, atoms])
    once = refit(x, atoms, support, nonnegative=nonnegative)
    twice = refit(x, doubled, torch.cat([support, support + 40], dim=1), nonnegative=nonnegative)
    precision = 1e-8 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(twice.decode(doubled), once.decode(atoms), rtol=0, atol=precision)
    if not nonnegative:  # of all solutions, the one of least norm shares equally
        torch.testing.assert_close(twice.values[:, :6], twice.values[:, 6:], rtol=0, atol=precision)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_a_support_wider_than_the_space_fits_a_signed_row_exactly_and_stays_finite(nonnegative):
    x, atoms, support = random_case(4, 20, 8, 40, 30)
    code = refit(x, atoms, support, nonnegative=nonnegative)
    assert code.values.isfinite().all()
    if not nonnegative:
        torch.testing.assert_close(code.decode(atoms), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_empty_slots_and_repeated_latents_hold_zero(nonnegative):
    x, atoms, support = random_case(5, 10, 24, 40, 4)
    padded = torch.cat([support[:, :2], torch.full((10, 1), -1), support[:, 1:]], dim=1)
    code = refit(x, atoms, padded, nonnegative=nonnegative)
    assert (code.values[:, 2:4] == 0).all()  # the empty slot, and the second coming of slot 1
    expected = refit(x, atoms, support, nonnegative=nonnegative).to_dense()
    torch.testing.assert_close(code.to_dense(), expected, rtol=0, atol=1e-12)
    assert (code.support()[:, 2:4] == -1).all()


def test_a_row_with_no_support_gets_the_empty_code():
    x, atoms, _ = random_case(6, 5, 24, 40, 4)
    assert (refit(x, atoms, torch.full((5, 3), -1)).values == 0).all()
    assert refit(x, atoms, torch.zeros(5, 0, dtype=torch.int64)).values.shape == (5, 0)


def test_a_latent_that_does_not_exist_is_refused():
    x, atoms, support = random_case(7, 5, 24, 40, 4)
    with pytest.raises(ValueError, match=r"below n_latents=40, got 40"):
        refit(x, atoms, support.clone().fill_(40))
