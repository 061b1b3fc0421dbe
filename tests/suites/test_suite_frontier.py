"""The Pareto frontier, on points whose frontier can be seen."""

from sparsight.suites.frontier import on_frontier


def test_a_point_that_another_beats_in_one_coordinate_and_equals_in_the_other_is_off_the_frontier():
    #        best L0   worse FVU  dominated  best FVU
    points = [(4, 0.5), (4, 0.6), (8, 0.55), (16, 0.1)]
    assert on_frontier(points) == [True, False, False, True]


def test_equal_points_are_on_the_frontier_together():
    assert on_frontier([(4, 0.5), (4, 0.5), (5, 0.5)]) == [True, True, False]
