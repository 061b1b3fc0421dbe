"""Answers from constructed effects."""

import math

import pytest

from sparsight.studies.deciding import all_on_one_side, mean_effect, n_needed, power_note, side
from sparsight.studies.record import UNDECIDED, Effect


def effect(value: float, half: float | None, n: int = 100) -> Effect:
    ends = {} if half is None else {"low": value - half, "high": value + half}
    return Effect(name=f"at {value}", value=value, **ends, n=n, unit="FVU")


BELOW, ABOVE, OPEN = effect(-2, 1), effect(2, 1), effect(0.5, 1)


def test_an_interval_is_on_a_side_only_as_a_whole():
    assert [side(e) for e in (BELOW, ABOVE, OPEN, effect(-2, None), effect(0, None))] == [-1, 1, 0, -1, 0]
    assert [side(e, margin=1.5) for e in (BELOW, ABOVE)] == [0, 0]


@pytest.mark.parametrize(
    ("effects", "answer"),
    [
        ([BELOW, BELOW], "yes"),
        ([ABOVE, ABOVE], "no"),
        ([BELOW, ABOVE], "depends on k"),
        ([BELOW, OPEN, ABOVE], "depends on k"),
        ([BELOW, OPEN], UNDECIDED),
        ([OPEN], UNDECIDED),
    ],
)
def test_the_answer_follows_from_the_sides(effects, answer):
    assert all_on_one_side(effects, wanted=-1, on="k") == answer


def test_no_effect_is_no_question():
    with pytest.raises(ValueError, match="not empty"):
        all_on_one_side([], wanted=-1, on="k")


def test_four_times_the_units_halve_the_interval():
    assert n_needed(effect(0.5, 1.0, n=100)) == 401
    assert n_needed(effect(-0.5, 1.0, n=100)) == 401
    assert n_needed(effect(0.0, 1.0)) is None
    assert "401" in power_note([BELOW, effect(0.5, 1.0)])


def test_where_all_is_decided_the_nearest_interval_is_named():
    assert "at -1" in power_note([effect(-1.0, 0.5), effect(-9.0, 1.0)])


def test_the_interval_of_a_mean_is_student_s():
    """Of 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027."""
    found = mean_effect([1.0, 2.0, 3.0], "x", "u")
    assert found.value == pytest.approx(2)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)
    assert mean_effect([1.0], "x", "u").low is None
