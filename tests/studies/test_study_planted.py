"""Planted problems are what they say, and what studies measure on them has known values."""

import pytest
import torch

from sparsight.coding import SparseCode, small_weight_mass
from sparsight.studies.low_activations_measured import quarters, relative_values
from sparsight.studies.orthogonality_quirk_measured import row_overlaps, score_violation
from sparsight.studies.planted import paired_atoms, random_atoms, tied_encoder
from sparsight.studies.pursuit_selects_better import PLANTED_ARMS, SETTINGS, _arms
from sparsight.studies.without_autoencoders import planted_rows


def test_without_noise_the_true_code_explains_everything():
    planted = random_atoms(0, 16, 40, 3, 0.0, 50)
    assert planted.fvu(planted.code.decode(planted.atoms)) == pytest.approx(0, abs=1e-28)
    assert planted.recall(planted.code) == 1
    assert planted.recall(SparseCode(planted.support[:, :1], planted.code.values[:, :1], 40)) == pytest.approx(1 / 3)
    assert planted.code.values.min() >= 1
    torch.testing.assert_close(planted.atoms.norm(dim=1), torch.ones(40, dtype=torch.float64))


def test_pairs_have_their_cosine_and_are_active_as_asked():
    planted = paired_atoms(0, 0.9, both=True, n=20, d=16, n_pairs=8)
    pairs = planted.atoms.unflatten(0, (8, 2))
    torch.testing.assert_close((pairs[:, 0] * pairs[:, 1]).sum(1), torch.full((8,), 0.9, dtype=torch.float64))
    partners = planted.support[:, :3] + 1
    assert torch.equal(partners, planted.support[:, 3:])
    assert paired_atoms(0, 0.9, both=False, n=20).k == 3


def test_orthogonal_atoms_are_read_exactly_by_the_tied_encoder():
    planted = random_atoms(0, 8, 8, 2, 0.0, 30)
    atoms = torch.linalg.qr(planted.atoms).Q
    exact = type(planted)(planted.code.decode(atoms), atoms, planted.code)
    code = tied_encoder(exact, 2)
    assert exact.recall(code) == 1
    assert exact.fvu(code.decode(atoms)) < 1e-28


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_the_arms_come_out_as_an_independent_program_found_them(setting):
    """Another draw of atoms and signals: the order and the size, not the digits."""
    found = _arms(setting.draw(7, 300))
    for arm, (fvu, recall) in zip(PLANTED_ARMS, setting.reference, strict=True):
        assert found[arm][1] == pytest.approx(recall, abs=0.06), arm
        if arm != "OMP":  # one signal that it gets wrong is most of its loss
            assert 0.6 * fvu <= found[arm][0] + 1e-12 <= 1.6 * fvu + 2e-12, arm
    assert found["OMP"][0] < found["GP"][0] < found["encoder refitted"][0] < found["encoder scaled"][0]


def test_a_score_never_exceeds_the_residual_times_the_sine_to_the_span():
    planted = random_atoms(1, 16, 64, 4, 0.1, 40)
    assert score_violation(planted.x, planted.atoms, 4) < 1e-12


def test_overlaps_count_used_slots_from_the_second_on():
    """Atoms e1, e2, and one at 45 degrees between them: overlaps 0, then 1 (it lies in their span)."""
    atoms = torch.tensor([[1.0, 0, 0], [0, 1, 0], [2**-0.5, 2**-0.5, 0]], dtype=torch.float64)
    code = SparseCode(torch.tensor([[0, 1, 2], [2, 0, 1]]), torch.tensor([[1.0, 1, 1], [1, 1, 0]]).double(), 3)
    torch.testing.assert_close(
        row_overlaps(code, atoms), torch.tensor([[1.0, 2.0], [2**-0.5, 1.0]], dtype=torch.float64)
    )


def test_quarters_are_equal_and_by_size():
    assert quarters(torch.tensor([8.0, 1, 7, 2, 6, 3, 5, 4])).tolist() == [3, 0, 3, 0, 2, 1, 2, 1]
    assert quarters(torch.empty(0)).tolist() == []


def test_relative_values_are_those_of_the_small_weight_mass():
    g = torch.Generator().manual_seed(0)
    z = torch.rand(300, 12, generator=g, dtype=torch.float64) * (torch.rand(300, 12, generator=g) < 0.3)
    code = SparseCode.from_dense(z)
    used = relative_values(code)[code.values != 0]
    expected = small_weight_mass(code, (0.05, 0.1, 0.2))
    assert [float((used < q).double().mean()) for q in (0.05, 0.1, 0.2)] == pytest.approx(expected.tolist())


def test_planted_rows_are_sums_of_four_atoms_within_the_noise():
    x, atoms = planted_rows(200, 0)
    assert x.shape == (200, 32)
    assert atoms.shape == (64, 32)
    # Four weights of mean 1 on nearly orthogonal unit atoms: the energy is near 4 (1 + 1/12) + 32 * 0.05^2.
    assert float(x.square().sum(1).mean()) == pytest.approx(4.41, rel=0.15)
