"""Which members of a suite no other member beats."""

from collections.abc import Sequence

Number = float | int


def on_frontier(points: Sequence[tuple[Number, Number]]) -> list[bool]:
    """For each point whether it is on the Pareto frontier, both coordinates being better when smaller.

    A point is off the frontier when another is no worse in both coordinates and better in one; of equal points all are
    on it, or none.

    Args:
        points: Pairs such as (L0, FVU).
    """
    return [
        not any(other[0] <= p[0] and other[1] <= p[1] and (other[0] < p[0] or other[1] < p[1]) for other in points)
        for p in points
    ]
