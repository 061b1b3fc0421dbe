"""Work on as many threads as torch uses. Compiled loops and torch's products let go of the interpreter's lock."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")
T = TypeVar("T")

# So many that threads end together though rows differ in what they cost, so few that starting one costs nothing.
RANGES = 16

_AVAILABLE: ContextVar[int | None] = ContextVar("_AVAILABLE", default=None)


def available() -> int:
    """Threads for loops and products: as many as torch uses, or used before `one_for_torch`."""
    return _AVAILABLE.get() or torch.get_num_threads()


@contextmanager
def one_for_torch() -> Iterator[None]:
    """Within, torch's own operations take one thread, and loops and products side by side all.

    An operation that torch shares among threads leaves them waiting busily for the next, for some milliseconds, and so
    without a processor for compiled loops. It gains less than that where it is small.
    """
    threads = available()
    token = _AVAILABLE.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _AVAILABLE.reset(token)


@contextmanager
def all_for_torch() -> Iterator[None]:
    """Within `one_for_torch`: large operations of torch that take all threads after all."""
    before = torch.get_num_threads()
    torch.set_num_threads(available())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spread(n: int, kernel: Callable[..., T], *arguments: Any) -> list[T]:
    """`kernel(first, last, *arguments)` on ranges that make up `0 .. n`; results in their order.

    Args:
        n: Rows.
        kernel: A compiled loop.
        arguments: The rest of its arguments; tensors become arrays that share their memory.
    """
    given = _arrays(arguments)
    size = max(1, -(-n // RANGES))
    ranges = [(first, min(first + size, n)) for first in range(0, n, size)]
    threads = available()
    if threads == 1 or len(ranges) < 2:
        return [kernel(*each, *given) for each in ranges]
    return list(_pool(threads).map(lambda each: kernel(*each, *given), ranges))


def over(kernel: Callable[..., T], *arguments: Any) -> T:
    """`kernel(0, n, *arguments)` in the calling thread, on all `n` rows of its first argument."""
    return kernel(0, len(arguments[0]), *_arrays(arguments))


def _arrays(arguments: Sequence[Any]) -> list[Any]:
    return [argument.numpy() if isinstance(argument, Tensor) else argument for argument in arguments]


def together(work: Callable[[S], T], parts: Sequence[S]) -> list[T]:
    """`work` on each part, on as many threads as torch uses, each of which has torch to itself; results in order.

    Products of one thread side by side need no common end, after which torch's threads would wait busily for the next
    one and keep a processor from compiled loops.
    """
    threads = available()
    if threads == 1 or len(parts) < 2:
        return [work(part) for part in parts]
    return list(_pool(threads).map(work, parts))


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in whose calls torch takes one thread. To say so in a thread sets what later threads begin with, too."""
    pool, all_begun = ThreadPoolExecutor(threads, thread_name_prefix="sparsight"), Barrier(threads)

    def begin(_: int) -> None:
        torch.get_num_threads()  # the first call in a thread would undo what comes next
        torch.set_num_threads(1)
        all_begun.wait()

    before = torch.get_num_threads()
    list(pool.map(begin, range(threads)))
    torch.set_num_threads(before)
    return pool
