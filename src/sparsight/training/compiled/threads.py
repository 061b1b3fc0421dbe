"""Ranges of rows on as many threads as torch uses. Compiled loops let go of the interpreter's lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# So many that threads end together though rows differ in what they cost, so few that starting one costs nothing.
RANGES = 16


def spread(n: int, kernel: Callable[..., T], *arguments: Any) -> list[T]:
    """`kernel(first, last, *arguments)` on ranges that make up `0 .. n`; results in their order.

    Args:
        n: Rows.
        kernel: A compiled loop.
        arguments: The rest of its arguments; tensors become arrays that share their memory.
    """
    given = [argument.numpy() if isinstance(argument, Tensor) else argument for argument in arguments]
    size = max(1, -(-n // RANGES))
    ranges = [(first, min(first + size, n)) for first in range(0, n, size)]
    threads = torch.get_num_threads()
    if threads == 1 or len(ranges) < 2:
        return [kernel(*each, *given) for each in ranges]
    return list(_pool(threads).map(lambda each: kernel(*each, *given), ranges))


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sparsight")
