"""Items made in advance by a thread: in order, no further ahead than said, and what is raised comes in its place."""

from collections.abc import Iterator
from time import monotonic, sleep

import pytest

from sparsight.activations.workers import ahead

PATIENCE = 20.0  # seconds


def made_of(made: list[int], n: int) -> Iterator[int]:
    for i in range(n):
        made.append(i)
        yield i


def test_all_items_come_in_order() -> None:
    assert list(ahead(range(50), 2)) == list(range(50))
    assert list(ahead([], 2)) == []


def test_the_next_items_are_made_while_one_is_used_and_no_more_than_said() -> None:
    made: list[int] = []
    items = ahead(made_of(made, 50), 2)
    assert next(items) == 0
    until = monotonic() + PATIENCE
    while len(made) < 4 and monotonic() < until:  # two wait, and one is at the door
        sleep(0.005)
    sleep(0.05)
    assert made == [0, 1, 2, 3]
    assert list(items) == list(range(1, 50))


def test_what_is_raised_comes_behind_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("here")

    items = ahead(broken(), 5)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(KeyError, match="here"):
        next(items)


def test_whoever_stops_early_stops_the_thread() -> None:
    made: list[int] = []
    items = ahead(made_of(made, 10**9), 2)
    next(items)
    items.close()
    sleep(0.2)
    n = len(made)
    sleep(0.2)
    assert len(made) == n <= 5
