"""Post-hoc scales: planted ones come back, and only the joint fit brings them back."""

import pytest
import torch

from sparsight.coding import SparseCode, fit_scale


def planted(seed: int = 0, n: int = 400, n_latents: int = 30, d: int = 12):
    g = torch.Generator().manual_seed(seed)
    atoms = torch.randn(n_latents, d, generator=g, dtype=torch.float64)
    atoms /= atoms.norm(dim=1, keepdim=True)
    # latents 2i and 2i + 1 fire together more often than not
    pairs = torch.rand(n, n_latents // 2, generator=g).argsort(1)[:, :2]
    indices = torch.cat([2 * pairs, 2 * pairs + 1], dim=1)
    values = torch.rand(n, 4, generator=g, dtype=torch.float64) + 0.2
    values[:, 3] *= torch.rand(n, generator=g) < 0.7
    scales = torch.rand(n_latents, generator=g, dtype=torch.float64) + 0.5
    code = SparseCode(indices, values, n_latents)
    x = SparseCode(indices, values * scales[indices], n_latents).decode(atoms)
    return x, code, atoms, scales


def test_planted_scales_come_back_from_the_joint_fit():
    x, code, atoms, scales = planted()
    torch.testing.assert_close(fit_scale(x, code, atoms), scales, rtol=0, atol=1e-10)


def test_one_at_a_time_would_not_bring_them_back():
    """The others held at 1: a closed form per latent, off because latents fire together."""
    x, code, atoms, scales = planted()
    z = code.to_dense()
    residual = x - z @ atoms
    alone = 1 + torch.einsum("nj,jd,nd->j", z, atoms, residual) / z.square().sum(0)
    assert (alone - scales).abs().max() > 0.1
    assert (fit_scale(x, code, atoms) - scales).abs().max() < 1e-10


def test_the_joint_fit_solves_the_normal_equations_of_noisy_data():
    x, code, atoms, _ = planted()
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    z = code.to_dense()
    moments = (z.T @ z) * (atoms @ atoms.T)
    wanted = (z * (x @ atoms.T)).sum(0)
    torch.testing.assert_close(fit_scale(x, code, atoms), torch.linalg.solve(moments, wanted), rtol=1e-8, atol=1e-8)


def test_the_scalar_is_the_slope_of_the_data_on_its_reconstruction():
    x, code, atoms, _ = planted()
    x_hat = code.decode(atoms)
    torch.testing.assert_close(fit_scale(3 * x_hat, code, atoms, per_latent=False), torch.tensor(3.0).double())
    expected = (x * x_hat).sum() / x_hat.square().sum()
    torch.testing.assert_close(fit_scale(x, code, atoms, per_latent=False), expected)


def test_latents_that_never_fire_keep_scale_one():
    x, code, atoms, scales = planted()
    wide = SparseCode(code.indices, code.values, 33)
    more = torch.cat([atoms, torch.eye(12, dtype=torch.float64)[:3]])
    fitted = fit_scale(x, wide, more)
    assert (fitted[30:] == 1).all()
    torch.testing.assert_close(fitted[:30], scales, rtol=0, atol=1e-10)


@pytest.mark.parametrize("per_latent", [True, False])
def test_a_silent_code_keeps_scale_one_everywhere(per_latent):
    x, code, atoms, _ = planted()
    for rows in (slice(None), slice(0, 0)):
        silent = SparseCode(code.indices[rows], torch.zeros_like(code.values[rows]), 30)
        assert (fit_scale(x[rows], silent, atoms, per_latent=per_latent) == 1).all()


@pytest.mark.parametrize("unit", [1e-20, 1e20])
@pytest.mark.parametrize("per_latent", [True, False])
def test_scales_do_not_depend_on_the_unit_of_the_activations(unit, per_latent):
    x, code, atoms, _ = planted()
    x, atoms, values = x.float(), atoms.float(), code.values.float()
    once = fit_scale(x, SparseCode(code.indices, values, 30), atoms, per_latent=per_latent)
    again = fit_scale(unit * x, SparseCode(code.indices, unit * values, 30), atoms, per_latent=per_latent)
    torch.testing.assert_close(once, again, rtol=1e-4, atol=1e-5)


def test_two_latents_with_one_atom_that_always_fire_together_stay_finite_and_share():
    atoms = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]
    code = SparseCode(torch.tensor([[0, 1]] * 4), torch.ones(4, 2, dtype=torch.float64), 3)
    x = torch.tensor([[3.0, 0, 0]] * 4, dtype=torch.float64)
    torch.testing.assert_close(fit_scale(x, code, atoms)[:2], torch.tensor([1.5, 1.5], dtype=torch.float64))


def test_a_code_of_other_rows_is_refused():
    x, code, atoms, _ = planted()
    with pytest.raises(ValueError, match="the code must be of these 399 activations"):
        fit_scale(x[1:], code, atoms)
