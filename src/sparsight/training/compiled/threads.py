"""Ranges of rows on as many threads as torch uses, and memory to use again.

Compiled loops let go of the interpreter's lock.
"""

import math
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


class Room:
    """Memory that is used again at the next step: touching fresh pages costs more than filling them."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of that shape that nobody else uses under that name; what it holds is left over."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size:
            kept = self._kept[name] = torch.empty(size, dtype=dtype)
        return kept[:size].view(shape)


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sparsight")
