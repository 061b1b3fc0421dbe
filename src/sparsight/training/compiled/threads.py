"""Ranges of rows on as many threads as torch uses. Compiled loops let go of the interpreter's lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")

# Ranges for each thread: rows differ in what they cost.
RANGES = 4


def spread(n: int, work: Callable[[int, int], T]) -> list[T]:
    """`work(first, last)` on ranges that make up `0 .. n`; results in their order.

    The ranges do not depend on the number of threads, so that sums over their results do not either.
    """
    size = max(1, -(-n // 32))
    ranges = [(first, min(first + size, n)) for first in range(0, n, size)]
    threads = torch.get_num_threads()
    if threads == 1 or len(ranges) < 2:
        return [work(*each) for each in ranges]
    return list(_pool(threads).map(lambda each: work(*each), ranges))


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sparsight")
