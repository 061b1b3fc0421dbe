"""Diagnostics on codes whose answer can be written down."""

import math

import pytest
import torch

from sparsight.coding import (
    SparseCode,
    compare_span_overlap,
    interference_floor,
    kkt_residual,
    small_weight_mass,
    small_weight_precision,
    span_overlap,
    threshold_code,
    threshold_for_l0,
    threshold_over_floor,
    threshold_sweep,
)
from sparsight.coding.diagnostics.overlap import _by_factor, _by_steps
from sparsight.errors import UndefinedMetric


def code(indices: list[list[int]], values: list[list[float]], n_latents: int) -> SparseCode:
    return SparseCode(torch.tensor(indices), torch.tensor(values, dtype=torch.float64), n_latents)


SQUARE_ROOT_HALF = math.sqrt(0.5)
# e1, e2, the diagonal between them, e3
ATOMS = torch.tensor(
    [[1, 0, 0, 0], [0, 1, 0, 0], [SQUARE_ROOT_HALF, SQUARE_ROOT_HALF, 0, 0], [0, 0, 1, 0]], dtype=torch.float64
)


def test_span_overlap_is_the_cosine_with_the_span_of_earlier_atoms():
    overlaps = span_overlap(code([[0, 2, 1, 3]], [[1, 1, 1, 1]], 4), ATOMS)
    expected = torch.tensor([[0, SQUARE_ROOT_HALF, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(overlaps, expected, rtol=0, atol=1e-12)


def test_empty_slots_neither_span_nor_overlap():
    overlaps = span_overlap(code([[0, 2, 1]], [[1, 0, 1]], 4), ATOMS)
    assert (overlaps == 0).all()


def test_probes_are_projected_onto_the_spans_of_the_code():
    probed = span_overlap(code([[0, 1]], [[1, 1]], 4), ATOMS, probes=torch.tensor([[3, 2]]))
    torch.testing.assert_close(probed, torch.tensor([[0, SQUARE_ROOT_HALF]], dtype=torch.float64))


def test_overlaps_by_one_factor_are_those_by_steps():
    """Random rows with empty slots, probed and not; rows with dependent atoms are left to the steps."""
    g = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(40, 12, generator=g, dtype=torch.float64), dim=1)
    atoms[1] = atoms[0]
    picks = torch.rand(50, 40, generator=g).argsort(dim=1)[:, :7]
    picks[0, :3] = torch.tensor([0, 5, 1])
    probes = torch.randint(40, (50, 7), generator=g)
    chosen = atoms[picks] * (torch.rand(50, 7, generator=g) > 0.2).unsqueeze(2)
    chosen[0, :3] = atoms[picks[0, :3]]
    for probed in (chosen, atoms[probes]):
        found, known = _by_factor(chosen, probed)
        assert known.sum() > 40
        assert not known[0]
        torch.testing.assert_close(found[known], _by_steps(chosen, probed)[known], rtol=0, atol=1e-10)


def test_the_comparison_averages_rows_from_their_second_atom_on():
    picks = code([[0, 2], [0, 1], [0, 1]], [[1, 1], [1, 1], [1, 0]], 4)
    result = compare_span_overlap(picks, ATOMS, generator=torch.Generator().manual_seed(0), given=picks)
    assert result.chosen == pytest.approx(SQUARE_ROOT_HALF / 2)
    assert result.given == pytest.approx(result.chosen)
    assert result.n_rows == 2
    with pytest.raises(UndefinedMetric, match="two latents in use"):
        compare_span_overlap(code([[0, 1]], [[1, 0]], 4), ATOMS, generator=torch.Generator())


def test_kkt_residual_is_the_largest_violation():
    x = torch.tensor([[2.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    half = code([[0]], [[1.5]], 4)
    assert kkt_residual(x, half, ATOMS).item() == pytest.approx(0.5)
    best = code([[0]], [[2.0]], 4)
    assert kkt_residual(x, best, ATOMS).item() == 0
    # had atom 1 been allowed, its gradient 1 would be a violation; of a signed code also when negative
    assert kkt_residual(x, best, ATOMS, support=torch.tensor([[0, 1]])).item() == 1
    negative = torch.tensor([[2.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
    assert kkt_residual(negative, best, ATOMS, support=torch.tensor([[1, -1]])).item() == 0
    assert kkt_residual(negative, best, ATOMS, support=torch.tensor([[1, -1]]), nonnegative=False).item() == 1


def test_small_weight_mass_counts_values_below_a_share_of_their_latents_quantile():
    """Latent 0 has quantile 100 and one value of 8; latent 1, ten times smaller, has quantile 10 and one of 0.8."""
    values = torch.cat([torch.full((99,), 100.0), torch.tensor([8.0])]).double()
    picks = SparseCode(torch.tensor([[0, 1]] * 100), torch.stack([values, values / 10], 1), 2)
    torch.testing.assert_close(small_weight_mass(picks), torch.tensor([0, 0.01, 0.01], dtype=torch.float64))


def test_small_weight_mass_ignores_the_scale_of_each_latent_and_empty_slots():
    g = torch.Generator().manual_seed(0)
    indices = torch.rand(200, 20, generator=g).argsort(1)[:, :5]
    values = torch.randn(200, 5, generator=g, dtype=torch.float64).relu()
    scales = torch.rand(20, generator=g, dtype=torch.float64) + 0.1
    once = small_weight_mass(SparseCode(indices, values, 20))
    again = small_weight_mass(SparseCode(indices, values * scales[indices], 20))
    torch.testing.assert_close(once, again)
    with pytest.raises(UndefinedMetric):
        small_weight_mass(SparseCode(indices, torch.zeros_like(values), 20))


def test_small_weights_that_are_interference_have_low_precision():
    found = code([[0, 1], [0, 1]], [[10, 10], [0.5, 10]], 3)
    truth = code([[0, 1], [2, 1]], [[1, 1], [1, 0]], 3)
    result = small_weight_precision(found, truth)
    assert (result.n_small, result.small) == (1, 0.0)
    assert (result.n_large, result.large) == (3, pytest.approx(2 / 3))
    assert small_weight_precision(found[:1], truth[:1]).small is None


def test_the_interference_floor_is_what_random_atoms_read():
    g = torch.Generator().manual_seed(0)
    d = 64
    atoms = torch.randn(4000, d, generator=g, dtype=torch.float64)
    atoms /= atoms.norm(dim=1, keepdim=True)
    atoms[:3] = torch.eye(d, dtype=torch.float64)[:3]  # orthogonal, so that |x|^2 is 1 + 4 + 9
    picks = code([[0, 1, 2]], [[1.0, 2.0, 3.0]], 4000)
    read = (picks.decode(atoms) @ atoms.T)[0, 3:]
    floor = interference_floor(picks, d).item()
    assert floor == pytest.approx(math.sqrt(14 / 64))
    assert read.std().item() == pytest.approx(floor, rel=0.05)
    relative = threshold_over_floor(torch.full((4000,), 2 * floor, dtype=torch.float64), picks, d)
    torch.testing.assert_close(relative, torch.full_like(relative, 2))


def test_thresholding_drops_what_lies_below_and_the_matched_threshold_meets_its_l0():
    picks = code([[0, 1, 2], [0, 1, 2]], [[1, -2, 3], [4, 5, 6]], 3)
    assert threshold_code(picks, 2.0).values.tolist() == [[0, -2, 3], [4, 5, 6]]
    per_latent = torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64)
    assert threshold_code(picks, per_latent).values.tolist() == [[0, -2, 3], [0, 5, 6]]
    for l0, left in [(3, 6), (2, 4), (1.5, 3), (0, 0)]:
        assert int(threshold_code(picks, threshold_for_l0(picks, l0)).l0().sum()) == left
    assert threshold_for_l0(picks, 3) == 0
    tied = code([[0, 1], [0, 1]], [[1, 1], [1, 2]], 2)
    assert int(threshold_code(tied, threshold_for_l0(tied, 1)).l0().sum()) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda c: threshold_code(c, -1.0),
        lambda c: threshold_code(c, torch.zeros(2, dtype=torch.float64)),
        lambda c: threshold_for_l0(c, -1),
        lambda c: small_weight_mass(c, [0.0]),
        lambda c: small_weight_precision(c, c, fraction=2.0),
        lambda c: interference_floor(c, 0),
        lambda c: threshold_over_floor(torch.ones(2, dtype=torch.float64), c, 4),
        lambda c: span_overlap(c, ATOMS[:2]),
    ],
)
def test_wrong_arguments_of_diagnostics_are_refused(call):
    with pytest.raises(ValueError, match=r"tau|l0|fraction|d must|thresholds|n_latents"):
        call(code([[0, 1]], [[1, 1]], 4))


def test_a_sweep_drops_the_smallest_values_first():
    """Orthonormal atoms: dropping a value v costs v squared, and solving the others anew changes nothing."""
    x = torch.tensor([[4, 1, 0, 0], [3, 2, 0, 0]], dtype=torch.float64)
    exact = code([[0, 1], [0, 1]], [[4, 1], [3, 2]], 4)
    whole, three, none = threshold_sweep(x, exact, torch.eye(4, dtype=torch.float64), [2, 1.5, 0])
    variance = 2 * 0.25 + 2 * 0.25
    assert (whole.threshold, whole.l0, whole.fvu) == (0, 2, 0)
    assert whole.fvu_refitted == pytest.approx(0, abs=1e-20)
    assert (three.l0, three.fvu, three.fvu_refitted) == pytest.approx((1.5, 1 / variance, 1 / variance))
    assert 1 < three.threshold < 1.0001
    assert (none.l0, none.fvu) == pytest.approx((0, 30 / variance))
    with pytest.raises(UndefinedMetric, match="all equal"):
        threshold_sweep(torch.ones(2, 4, dtype=torch.float64), exact, torch.eye(4, dtype=torch.float64), [1])


def test_a_sweep_refits_what_is_left():
    """Two atoms at 60 degrees: with one dropped, the other's best value is its inner product with the activation."""
    atoms = torch.tensor([[1, 0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    weights = code([[0, 1], [0, 1]], [[2, 1], [1, 3]], 2)
    (point,) = threshold_sweep(weights.decode(atoms), weights, atoms, [1])
    variance = (weights.decode(atoms) - weights.decode(atoms).mean(0)).square().sum().item()
    assert point.fvu == pytest.approx(2 / variance)
    assert point.fvu_refitted == pytest.approx(2 * 0.75 / variance)
