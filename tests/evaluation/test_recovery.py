"""Recovery of a planted dictionary: exact, permuted, partial, doubled, reversed, random."""

import pytest
import torch

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.recovery import recovery


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def test_a_permuted_copy_is_recovered_whole_with_its_codes():
    truth = unit(10, 6, 0)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    z = torch.rand(50, 10, generator=torch.Generator().manual_seed(2)) * (
        torch.arange(50)[:, None] % 10 == torch.arange(10)
    )
    found = recovery(3 * truth[order], truth, SparseCode.from_dense(5 * z[:, order]), SparseCode.from_dense(z))
    assert found.matched_cosine == pytest.approx(1, abs=1e-12)
    assert found.mmcs_true_to_learned == pytest.approx(1, abs=1e-12)
    assert found.mmcs_learned_to_true == pytest.approx(1, abs=1e-12)
    assert found.fraction_recovered == 1
    assert found.codes is not None
    assert (found.codes.n, found.codes.f1) == (10, 1)
    assert found.codes.correlation == pytest.approx(1, abs=1e-6)


def test_a_dictionary_that_found_half_scores_half_over_the_truth():
    truth = torch.eye(8)
    found = recovery(truth[:4], truth)
    assert found.matched_cosine == found.mmcs_true_to_learned == found.fraction_recovered == 0.5
    assert found.matched_cosine_of_pairs == found.mmcs_learned_to_true == 1
    assert found.codes is None


def test_two_latents_cannot_both_be_matched_with_one_truth():
    truth = torch.eye(4)[:2]
    doubled = torch.stack([truth[0], truth[0]])
    found = recovery(doubled, truth)
    assert found.matched_cosine == 0.5
    assert found.mmcs_learned_to_true == 1
    assert found.fraction_recovered == 0.5


def test_a_reversed_atom_is_not_a_recovered_one():
    assert recovery(-torch.eye(3), torch.eye(3)).fraction_recovered == 0


def test_the_assignment_is_the_best_one_and_not_the_greedy_one():
    """Greedy pairs the largest cosine, 0.72, and is left with 0.1; the best total is 0.7 + 0.69."""
    truth = torch.eye(4, dtype=torch.float64)[:2]
    first, second = (0.72, 0.69), (0.7, 0.1)
    rest = [(1 - a * a - b * b) ** 0.5 for a, b in (first, second)]
    atoms = torch.tensor([[*first, rest[0], 0.0], [*second, 0.0, rest[1]]], dtype=torch.float64)
    assert recovery(atoms, truth).matched_cosine == pytest.approx((0.7 + 0.69) / 2, abs=1e-12)


def test_chance_is_what_random_atoms_score():
    """The largest of m independent cosines: cos^2 is Beta(1/2, (d - 1) / 2), so its mean is an integral."""
    from scipy.special import betainc

    d, m = 64, 512
    found = recovery(unit(m, d, 3), unit(2000, d, 4))
    x = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    below = 0.5 + 0.5 * x.sign() * torch.from_numpy(betainc(0.5, (d - 1) / 2, x.square().numpy()))
    expected = 1 - torch.trapezoid(below**m, x).item()
    assert found.chance_mmcs == pytest.approx(expected, abs=0.01)
    assert found.mmcs_true_to_learned == pytest.approx(expected, abs=0.01)


def test_code_agreement_counts_true_latents_without_a_partner_as_missed():
    truth = torch.eye(4)[:2]
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    found = recovery(truth[:1], truth, SparseCode.from_dense(z[:, :1]), SparseCode.from_dense(z)).codes
    assert found is not None
    assert (found.n, found.f1) == (2, 0.5)
    assert found.correlation == pytest.approx(0.5, abs=1e-6)


def test_what_cannot_be_compared_is_refused():
    truth, code = torch.eye(3), SparseCode.from_dense(torch.eye(3))
    with pytest.raises(ValueError, match="both or neither"):
        recovery(truth, truth, code)
    with pytest.raises(ValueError, match="got 2 and 3 rows"):
        recovery(truth, truth, code[:2], code)
    with pytest.raises(ValueError, match="over the atoms given"):
        recovery(truth[:2], truth, code, code)
    with pytest.raises(UndefinedMetric, match="non-zero directions, got 1 zero"):
        recovery(torch.diag(torch.tensor([1.0, 1.0, 0.0])), truth)
    silent = SparseCode.from_dense(torch.zeros(4, 3))
    with pytest.raises(UndefinedMetric, match="no true latent is ever in use"):
        recovery(truth, truth, silent, silent)
