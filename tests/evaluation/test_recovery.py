"""Recovery of a planted dictionary: exact, permuted, partial, doubled, reversed, random."""

import pytest
import torch

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.recovery import recovery, stability


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


def test_planted_duplicates_are_counted_over_the_atoms_that_were_found():
    truth = torch.eye(6)
    learned = torch.stack([truth[0], truth[0] + 0.05 * truth[5], truth[0], truth[1], truth[2]])
    found = recovery(learned, truth)
    assert found.duplicates_per_atom == pytest.approx(2 / 3)
    assert found.uniqueness == pytest.approx(3 / 5)
    assert recovery(truth, truth).duplicates_per_atom == 0
    assert recovery(truth, truth).uniqueness == 1


def test_planted_composites_are_several_true_atoms_in_one():
    truth = torch.eye(12)
    learned = torch.stack([truth[0], truth[1] + truth[2], truth[3] + truth[4] + truth[5], truth[6] + 0.1 * truth[7]])
    assert recovery(learned, truth).fraction_composite == 0.5
    # A direction near two true atoms but mostly outside their span is no composite of them.
    g = torch.Generator().manual_seed(4)
    outside = torch.nn.functional.normalize(torch.randn(12, generator=g), dim=0)
    outside[8:] = 0
    assert recovery(torch.stack([truth[8] + truth[9] + 3 * outside]), truth[8:10]).fraction_composite == 0


def test_precision_recall_and_f1_of_live_latents_tell_dead_partners_from_bad_ones():
    truth = torch.zeros(8, 2)
    truth[:4, 0] = truth[4:, 1] = 1.0
    found = truth.clone()
    found[:, 1] = 0  # the second partner is dead
    found[6, 0] = 1.0  # the first fires once too often
    codes = recovery(torch.eye(2), torch.eye(2), SparseCode.from_dense(found), SparseCode.from_dense(truth)).codes
    assert codes.precision == pytest.approx((4 / 5 + 0) / 2)
    assert codes.recall == pytest.approx((1 + 0) / 2)
    assert codes.f1_of_live == pytest.approx(2 * 4 / (5 + 4))
    assert codes.f1 == pytest.approx(codes.f1_of_live / 2)


def test_seeds_that_agree_up_to_order_are_stable_and_random_ones_are_at_chance():
    atoms = unit(20, 16, 5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(6))
    same = stability([atoms, 2 * atoms[order]])
    assert same.matched_cosine == pytest.approx(1)
    assert (same.fraction_shared, same.fraction_orphan) == (1, 0)
    random = stability([unit(20, 16, 7), unit(20, 16, 8), unit(20, 16, 9)])
    assert random.matched_cosine == pytest.approx(random.chance_cosine, abs=0.05)
    assert random.fraction_orphan > 0.5
    half = stability([atoms, torch.cat([atoms[:10], -atoms[10:]])])
    assert half.fraction_shared == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least two dictionaries, got 1"):
        stability([atoms])
