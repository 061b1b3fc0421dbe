"""`RayReaders`: the model runs in several processes, on one machine or many; one process writes.

The process that harvests cuts the text and writes the store. Windows go out to the workers, and their rows come back in
the order of the text, so a store that Ray made is the store that one process makes: the same shards, journal and
record. A worker that dies is started again and given its windows again; nothing that it had in hand was written.
"""

import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

from sparsight.activations.contexts import Reads
from sparsight.activations.pieces import Context
from sparsight.activations.reading import Reading, Window, read_window
from sparsight.activations.workers import ahead
from sparsight.errors import DataError, ModelError, SparsightError

_PATIENCE = 10.0  # seconds that a cluster has to answer
_IN_HAND = 2  # windows given to each worker at a time: it never waits for the next


class _Worker:
    """One process with the model in it."""

    def __init__(self, load: Callable[[], Reads]) -> None:
        self.lm = load()

    def read(self, contexts: list[Context], reading: Reading) -> Window | str:
        """A window; or what is wrong with the data, which no further try would change."""
        try:
            return read_window(self.lm, contexts, reading)
        except DataError as error:
            return str(error)


class RayReaders:
    """Workers on Ray, each with a model of its own. Use as a context manager: on leaving, the workers end."""

    def __init__(
        self,
        load: Callable[[], Reads],
        n_workers: int,
        *,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        restarts: int = 8,
    ) -> None:
        """Start workers.

        Args:
            load: Makes the model, in each worker; Ray pickles it.
            n_workers: Processes with a model each.
            address: Of a running Ray cluster; None starts Ray on this machine, or joins the one this process is on.
            cpus: Processor cores that each worker takes.
            gpus: Devices that each worker takes.
            restarts: Times a worker that died is started again, and a window tried again.
        Raises:
            ValueError: fewer than one worker.
            ModelError: Ray is not installed, there is no cluster at the address, or this process is on another one.
        """
        if n_workers < 1:
            raise ValueError(f"the number of workers must be at least 1, got {n_workers}")
        try:
            import ray
            from ray import init  # a folder called ray, such as Ray leaves in /tmp, is imported too, but has none
        except ImportError:
            raise ModelError("Ray is not installed; install it with pip install 'sparsight[scale]'") from None
        self._ray: Any = ray
        self._mine = not ray.is_initialized()
        _refuse_silent(address)
        if not self._mine and address not in (None, "auto", here := ray.get_runtime_context().gcs_address):
            raise ModelError(
                f"this process is on the Ray cluster at {here} already, so not on {address}; leave one of them"
            )
        if self._mine:
            try:
                init(address=address, log_to_driver=False, logging_level="error", include_dashboard=False)
            except Exception as error:  # Ray raises Exception itself when its processes do not start
                where = f"no Ray cluster at {address}" if address else "Ray does not start on this machine"
                raise ModelError(f"{where}: {str(error).strip().splitlines()[0]}") from None
        made = ray.remote(_Worker).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=restarts, max_task_retries=restarts
        )
        self._workers = [made.remote(load) for _ in range(n_workers)]

    def read(self, windows: Iterable[list[Context]], reading: Reading) -> Iterator[Window]:
        """Windows with their rows, in order; `_IN_HAND` of them with each worker at a time.

        Raises:
            DataError: an activation cannot be stored; from the window where it is, when its turn comes.
            SparsightError: a worker died more often than it may be started again, or could not load the model.
        """
        kept = self._ray.put(reading)
        waiting: deque[Any] = deque()
        free = deque(self._workers * _IN_HAND)
        for window in ahead(windows, 2):
            if not free:
                done, worker = waiting.popleft()
                yield self._result(done)
                free.append(worker)
            worker = free.popleft()
            waiting.append((worker.read.remote(window, kept), worker))
        for done, _ in waiting:
            yield self._result(done)

    def _result(self, done: Any) -> Window:
        try:
            result: Window | str = self._ray.get(done)
        except self._ray.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1].strip()
            raise SparsightError(
                f"a worker failed for good ({last}); what is stored is kept, and --resume goes on from there"
            ) from None
        if isinstance(result, str):
            raise DataError(result)
        return result

    def __enter__(self) -> "RayReaders":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            self._ray.kill(worker)
        if self._mine:
            self._ray.shutdown()


def _refuse_silent(address: str | None) -> None:
    """Refuse an address where nothing listens: Ray itself tries for minutes. Names such as "auto" are left to it."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ModelError(f"no Ray cluster at {address}: {error}; start one, or give the address of its head") from None
