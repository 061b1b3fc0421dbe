"""Work of fixed shapes in fixed memory: recorded once, then played back."""

from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

import torch

T = TypeVar("T")

# Times that work is done as it stands before it is recorded: kernels are compiled, and memory is taken, by then.
WARM = 3


class Recording(Protocol):
    """What a device can do again without being told each operation."""

    def replay(self) -> None:
        """Do all of it again: what the work returned when it was recorded now holds its new results."""


# Does nothing of the work but note it; returns what the work returned.
Record = Callable[[Callable[[], Any]], tuple[Any, Recording]]


def cuda_graph(work: Callable[[], T]) -> tuple[T, Recording]:
    """Record a CUDA graph of what `work` would do, without doing it; other threads may go on using the device."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = work()
    return found, graph


class Recorded(Generic[T]):
    """Work that depends, but for what its tensors hold, on a key only.

    It reads and writes the same memory each time, and nothing of it waits for the device.

    Args:
        record: Makes a recording: `cuda_graph`.
        warm: Times that it is done as it stands first.

    Attributes:
        played: How often a recording was played back.
    """

    def __init__(self, record: Record, warm: int = WARM) -> None:
        self._record, self._warm = record, warm
        self.played = 0
        self.forget()

    def forget(self) -> None:
        """Drop the recording: memory that it read or wrote has been exchanged."""
        self._last: Hashable = None
        self._times = 0
        self._kept: tuple[Hashable, Callable[[], T], T, Recording] | None = None

    def __call__(self, key: Hashable, work: Callable[[], T]) -> tuple[T, bool]:
        """What `work` returns, and whether that came from a recording, so that the next call writes over it."""
        self._times = self._times + 1 if key == self._last else 1
        self._last = key
        if self._kept is None or self._kept[0] != key:
            if self._times <= self._warm:
                return work(), False
            # With the work, as its memory must live as long as the recording does.
            self._kept = (key, work, *self._record(work))
        _, _, found, recording = self._kept
        recording.replay()
        self.played += 1
        return found, True
