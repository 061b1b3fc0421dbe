"""Factors for each latent from streaming sums: planted ones come back, and agree with the fit from all rows."""

import pytest
import torch

from sparsight.codes import SparseCode
from sparsight.coding import fit_scale, refit
from sparsight.evaluation import JointScaleSums, RefitSlopes, metrics


def planted(seed: int = 0, n: int = 600, n_latents: int = 30, d: int = 12):
    """Latents 2i and 2i + 1 fire together more often than not; one latent in ten never does."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(n_latents + 3, d, generator=g, dtype=torch.float64), dim=1)
    pairs = torch.rand(n, n_latents // 2, generator=g).argsort(1)[:, :2]
    indices = torch.cat([2 * pairs, 2 * pairs + 1], dim=1)
    values = torch.rand(n, 4, generator=g, dtype=torch.float64) + 0.2
    values[:, 3] *= torch.rand(n, generator=g) < 0.7
    scales = torch.cat([torch.rand(n_latents, generator=g, dtype=torch.float64) + 0.5, torch.ones(3).double()])
    x = SparseCode(indices, values * scales[indices], n_latents + 3).decode(atoms)
    return x, SparseCode(indices, values, n_latents + 3), atoms, scales


def streamed(x, code, atoms, size: int = 130) -> JointScaleSums:
    parts = [JointScaleSums.of(x[i : i + size], code[slice(i, i + size)], atoms) for i in range(0, len(x), size)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


@pytest.mark.parametrize("seed", range(3))
def test_planted_scales_come_back_from_sums_that_stream(seed):
    x, code, atoms, scales = planted(seed)
    sums = streamed(x, code, atoms)
    torch.testing.assert_close(sums.scales(atoms), scales, rtol=0, atol=1e-10)
    assert sums.residual(atoms, sums.scales(atoms)) == pytest.approx(0, abs=1e-9)
    assert sums.n == 600


def test_sums_over_pairs_give_what_the_fit_from_all_rows_gives_on_noisy_data():
    x, code, atoms, _ = planted()
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    sums = streamed(x, code, atoms)
    torch.testing.assert_close(sums.scales(atoms), fit_scale(x, code, atoms), rtol=0, atol=1e-9)
    z = code.to_dense()
    direct = (x - (z * sums.scales(atoms)) @ atoms).square().sum().item()
    assert sums.residual(atoms, sums.scales(atoms)) == pytest.approx(direct, rel=1e-10)
    alone = metrics.shrinkage(x, code.decode(atoms)).scale_gain
    assert sums.gain(atoms) == pytest.approx(
        ((x - z @ atoms).square().sum().item() - direct) / x.square().sum().item(), rel=1e-9
    )
    assert sums.gain(atoms) > alone


def test_only_pairs_that_fire_together_are_kept():
    x, code, atoms, _ = planted()
    z = code.to_dense()
    together = ((z.T @ z) != 0).triu().sum().item()
    assert len(streamed(x, code, atoms).pairs) == together


def test_a_silent_code_keeps_scale_one_and_gains_nothing():
    x, code, atoms, _ = planted()
    silent = SparseCode(code.indices, torch.zeros_like(code.values), code.n_latents)
    sums = JointScaleSums.of(x, silent, atoms)
    assert (sums.scales(atoms) == 1).all()
    assert sums.gain(atoms) == 0
    assert JointScaleSums.of(x[:0], code[slice(0, 0)], atoms).gain(atoms) == 0


def test_two_latents_with_one_atom_that_always_fire_together_share():
    atoms = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]
    code = SparseCode(torch.tensor([[0, 1]] * 4), torch.ones(4, 2, dtype=torch.float64), 3)
    x = torch.tensor([[3.0, 0, 0]] * 4, dtype=torch.float64)
    expected = torch.tensor([1.5, 1.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(JointScaleSums.of(x, code, atoms).scales(atoms), expected)


def test_a_code_of_other_rows_is_refused():
    x, code, atoms, _ = planted()
    with pytest.raises(ValueError, match="the code must be of these 599 activations over 33 atoms"):
        JointScaleSums.of(x[1:], code, atoms)


def test_slopes_of_refitted_values_tell_a_factor_from_an_amount_latent_by_latent():
    """On data without noise refitting finds the planted values: `z / scale` and `z - 0.1` have known lines."""
    x, code, atoms, scales = planted(d=40)
    for half, slope, intercept in (
        (SparseCode(code.indices, code.values, 33), scales, torch.zeros(33).double()),
        (SparseCode(code.indices, code.values * scales[code.indices] - 0.1 * (code.values != 0), 33), None, None),
    ):
        refitted = refit(x, atoms, half.support())
        slopes = RefitSlopes.of(half[slice(0, 250)], refitted[slice(0, 250)])
        slopes = slopes + RefitSlopes.of(half[slice(250, None)], refitted[slice(250, None)])
        used = slopes.n > 0
        wanted = torch.ones(33).double() if slope is None else slope
        taken = torch.where(used, 0.1, 0.0).double() if intercept is None else intercept
        torch.testing.assert_close(slopes.line[0], wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(slopes.line[1], taken, rtol=0, atol=1e-9)
        if slope is not None:
            torch.testing.assert_close(slopes.slope, slope, rtol=0, atol=1e-9)


def test_slopes_of_other_slots_are_refused():
    code = planted()[1]
    other = SparseCode(code.indices.roll(1, dims=1), code.values, 33)
    with pytest.raises(ValueError, match="the same slots"):
        RefitSlopes.of(code, other)
    with pytest.raises(ValueError, match="the same slots"):
        RefitSlopes.of(code, code[slice(0, 5)])
