"""Threads of the compiled step: who has how many, and that nothing of it is left behind."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch

from sparsight.training.compiled.threads import all_for_torch, available, one_for_torch, spread, together


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_torch_takes_one_thread_and_loops_take_all() -> None:
    with one_for_torch():
        assert (torch.get_num_threads(), available()) == (1, 3)
        with all_for_torch():
            assert (torch.get_num_threads(), available()) == (3, 3)
            with one_for_torch():
                assert (torch.get_num_threads(), available()) == (1, 3)
            assert torch.get_num_threads() == 3
        assert (torch.get_num_threads(), available()) == (1, 3)
    assert (torch.get_num_threads(), available()) == (3, 3)


@pytest.mark.parametrize("context", [one_for_torch, all_for_torch])
def test_an_error_leaves_threads_as_they_were(context: Callable[[], AbstractContextManager[None]]) -> None:
    with pytest.raises(KeyboardInterrupt), context():
        raise KeyboardInterrupt
    assert (torch.get_num_threads(), available()) == (3, 3)


def test_work_side_by_side_comes_back_in_order_and_has_torch_to_itself() -> None:
    with one_for_torch():
        found = together(lambda part: (part, torch.get_num_threads()), list(range(7)))
        assert torch.get_num_threads() == 1
    assert found == [(part, 1) for part in range(7)]
    assert torch.get_num_threads() == 3


def test_ranges_make_up_all_rows_whatever_their_number() -> None:
    for n in (0, 1, 15, 16, 17, 100):
        ranges = spread(n, lambda first, last: (first, last))
        assert [row for first, last in ranges for row in range(first, last)] == list(range(n))
