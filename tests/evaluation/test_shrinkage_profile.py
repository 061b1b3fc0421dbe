"""Shrinkage by groups of tokens and by size of values: closed forms of both kinds."""

import pytest
import torch

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.metrics import shrinkage
from sparsight.evaluation.shrinkage_profile import GroupedShrinkageSums, ValueProfile, norm_deciles, norm_group

NAMES = ("rho", "nu", "r", "alpha", "beta", "gamma_v1", "scale_gain")
EDGES = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def pairs(n: int = 400, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x, 0.7 * x + 0.3 * torch.randn(n, d, generator=g, dtype=torch.float64)


def exponential(n: int = 200_000) -> torch.Tensor:
    return -torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log()


def test_each_group_has_the_family_of_its_rows_and_together_they_are_the_whole():
    x, x_hat = pairs()
    group = torch.arange(400) % 3
    whole = GroupedShrinkageSums.of(x, x_hat, group, 4)
    parts = [GroupedShrinkageSums.of(x[rows], x_hat[rows], group[rows], 4) for rows in torch.arange(400).split(130)]
    joined = parts[0] + parts[1] + parts[2] + parts[3]
    for sums in (whole, joined):
        *found, empty = sums.values
        assert empty is None
        assert int(sums.n.sum()) == 400
        for i, family in enumerate(found):
            direct = shrinkage(x[group == i], x_hat[group == i])
            assert [getattr(family, name) for name in NAMES] == pytest.approx(
                [getattr(direct, name) for name in NAMES], abs=1e-12
            )
        direct = shrinkage(x, x_hat)
        assert [getattr(sums.pooled, name) for name in NAMES] == pytest.approx(
            [getattr(direct, name) for name in NAMES], abs=1e-12
        )


def test_tokens_shrunk_by_their_norm_show_it_decile_by_decile():
    """`x_hat = x / (1 + decile)`: r of decile i is 1 / (1 + i), whatever the norms in it."""
    x, _ = pairs(1000)
    group = norm_group(x, norm_deciles(x))
    assert group.bincount().tolist() == [100] * 10
    norms = x.norm(dim=1)
    assert all(norms[group == i].max() <= norms[group == i + 1].min() for i in range(9))
    found = GroupedShrinkageSums.of(x, x / (1 + group.double().unsqueeze(1)), group, 10).values
    assert [family.r for family in found] == pytest.approx([1 / (1 + i) for i in range(10)], abs=1e-12)


def test_a_group_that_is_none_of_them_is_refused():
    x, x_hat = pairs(4)
    with pytest.raises(ValueError, match="groups must be between 0 and n_groups-1=2, got 0 to 3"):
        GroupedShrinkageSums.of(x, x_hat, torch.arange(4), 3)


def test_an_l1_penalty_on_orthonormal_atoms_takes_off_an_amount():
    """Soft thresholding at t = 0.2: one difference in all bins, a line of slope 1 and intercept -t."""
    should = exponential()
    value = should - 0.2
    on = value > 0
    profile = ValueProfile.of(value[on], should[on], EDGES)
    assert profile.difference == pytest.approx([-0.2] * 4, abs=1e-12)
    assert profile.line == pytest.approx((1.0, -0.2), abs=1e-10)
    assert profile.ratio == sorted(profile.ratio)
    assert profile.ratio[0] < 0.75 < 0.9 < profile.ratio[3]


def test_values_too_small_by_a_factor_have_one_ratio_in_all_bins():
    should = exponential()
    half = len(should) // 2
    profile = ValueProfile.of(0.7 * should[:half], should[:half], EDGES) + ValueProfile.of(
        0.7 * should[half:], should[half:], EDGES
    )
    assert profile.ratio == pytest.approx([0.7] * 4, abs=1e-12)
    assert profile.line == pytest.approx((0.7, 0.0), abs=1e-10)
    assert profile.difference == sorted(profile.difference, reverse=True)


def test_what_has_no_answer_is_none_or_refused():
    one = ValueProfile.of(torch.tensor([1.5, 1.0]), torch.tensor([1.5, 1.5]), EDGES)
    assert one.ratio == [None, pytest.approx(2.5 / 3), None, None]
    assert one.difference == [None, pytest.approx(-0.25), None, None]
    with pytest.raises(UndefinedMetric, match="2 values that should all be equal"):
        _ = one.line
    with pytest.raises(ValueError, match="different edges"):
        _ = one + ValueProfile.of(torch.ones(1), torch.ones(1), EDGES[:2])


def test_a_factor_explains_what_a_factor_did_and_an_amount_what_an_amount_did():
    should = exponential()
    by_factor = ValueProfile.of(0.7 * should, should, EDGES)
    by_amount = ValueProfile.of(should - 0.2, should, EDGES)
    assert by_factor.factor == pytest.approx(0.7, abs=1e-12)
    assert by_amount.amount == pytest.approx(0.2, abs=1e-12)
    assert by_factor.explained[0] == pytest.approx(1, abs=1e-12)
    assert by_amount.explained[1] == pytest.approx(1, abs=1e-10)
    # (E w)^2 / E w^2 = 1/2 for Exp(1): each explains half of what the other did.
    assert by_factor.explained[1] == pytest.approx(0.5, abs=0.01)
    assert by_amount.explained[0] == pytest.approx(0.5, abs=0.01)


def test_values_that_are_right_have_no_shrinkage_to_explain():
    should = exponential(100)
    with pytest.raises(UndefinedMetric, match="no value differs"):
        _ = ValueProfile.of(should, should, EDGES).explained
    nothing = ValueProfile.of(should[:0], should[:0], EDGES)
    for name in ("factor", "amount"):
        with pytest.raises(UndefinedMetric):
            getattr(nothing, name)
