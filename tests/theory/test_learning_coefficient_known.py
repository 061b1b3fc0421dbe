"""Exact learning coefficients: two theories agree, published examples come out, bounds hold."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsight.theory.learning_coefficient import Coefficient, deep_linear, normal_crossing, reduced_rank

SIZES = [(m, n, h, r) for m in range(1, 8) for n in range(1, 8) for h in range(1, 8) for r in range(min(m, n, h) + 1)]


def test_two_layers_are_reduced_rank_regression_in_value_and_multiplicity():
    """Two theorems, published nineteen years apart; all 1127 sizes up to 7."""
    assert len(SIZES) == 1127
    for m, n, h, r in SIZES:
        assert deep_linear((m, h, n), r) == reduced_rank(m, n, h, r), (m, n, h, r)


@pytest.mark.parametrize(
    ("case", "known"),
    [
        ((5, 5, 3, 0), (6.5, 2)),
        ((5, 5, 4, 0), (8, 1)),
        ((4, 8, 3, 0), (6, 1)),
        ((8, 4, 3, 0), (6, 1)),
        ((3, 4, 8, 0), (6, 1)),
        ((5, 5, 3, 3), (10.5, 1)),
    ],
)
def test_reduced_rank_regression_has_its_published_values(case, known):
    assert reduced_rank(*case) == known


def test_no_coefficient_exceeds_half_the_parameters_or_half_those_of_the_matrix():
    for m, n, h, r in SIZES:
        value, multiplicity = reduced_rank(m, n, h, r)
        assert r * (m + n - r) / 2 <= value <= min((m + n) * h, m * n) / 2  # below: the dimension of rank-r matrices
        assert multiplicity in (1, 2)


def test_a_linear_map_of_full_rank_is_regular():
    assert deep_linear((3, 4), 3) == Coefficient(6.0, 1)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.data())
def test_hidden_layers_may_be_put_in_any_order(widths, data):
    """The theorem only looks at the ends and at the set of spare widths."""
    rank = data.draw(st.integers(0, min(widths)))
    first, *hidden, last = widths
    found = {deep_linear((first, *order, last), rank) for order in permutations(hidden)}
    assert len(found) == 1
    assert deep_linear((last, *hidden, first), rank) in found


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.data())
def test_a_wide_layer_more_changes_nothing(widths, data):
    rank = data.draw(st.integers(0, min(widths)))
    assert deep_linear((widths[0], 100, *widths[1:]), rank) == deep_linear(widths, rank)


def test_normal_crossings_go_by_their_sharpest_coordinate():
    assert normal_crossing((1,)) == (0.5, 1)
    assert normal_crossing((2,)) == (0.25, 1)
    assert normal_crossing((1, 1)) == (0.5, 2)
    assert normal_crossing((0, 3, 1, 3)) == (1 / 6, 2)


def test_impossible_models_are_refused():
    with pytest.raises(ValueError, match="rank must be between 0 and the least width 2"):
        reduced_rank(3, 4, 2, 3)
    with pytest.raises(ValueError, match="widths"):
        deep_linear((3,), 0)
    with pytest.raises(ValueError, match="widths"):
        deep_linear((3, 0, 2), 0)
    for wrong in ((), (0, 0), (-1, 2)):
        with pytest.raises(ValueError, match="exponents"):
            normal_crossing(wrong)
