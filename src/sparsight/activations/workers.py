"""Who runs the model over windows: this process, with the text read ahead; `ray_readers` has others."""

from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Protocol, TypeVar, runtime_checkable

from sparsight.activations.contexts import Reads
from sparsight.activations.pieces import Context
from sparsight.activations.reading import Reading, Window, read_window

T = TypeVar("T")


@runtime_checkable
class Readers(Protocol):
    """What turns windows of contexts into windows of rows, in the same order."""

    def read(self, windows: Iterable[list[Context]], reading: Reading) -> Iterator[Window]:
        """Windows with their rows, as they are done, none left out."""
        ...


class Here:
    """This process runs the model; the next windows are read and tokenized meanwhile."""

    def __init__(self, lm: Reads) -> None:
        self.lm = lm

    def read(self, windows: Iterable[list[Context]], reading: Reading) -> Iterator[Window]:
        for window in ahead(windows, 2):
            yield read_window(self.lm, window, reading)


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, up to `depth` of them made in advance by a thread; what it raises is raised here in its place."""
    queue: Queue[tuple[T] | BaseException | None] = Queue(depth)  # an item, what was raised, or the end
    stopped = Event()

    def put(entry: tuple[T] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                queue.put(entry, timeout=0.1)
                return
            except Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put((item,))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = Thread(target=fill, name="text-reader", daemon=True)
    thread.start()
    try:
        while True:
            entry = queue.get()
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        stopped.set()
        try:
            while True:
                queue.get_nowait()
        except Empty:
            pass
        thread.join(timeout=1.0)  # a source that waits for the network may take longer; it is left behind
