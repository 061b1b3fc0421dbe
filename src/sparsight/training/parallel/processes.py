"""The processes of a run: which one this is, and how they come to agree."""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sparsight.errors import SparsightError
from sparsight.training.settings import Training

T = TypeVar("T")

# Whether the batch that an objective sees is only this process's share of it.
_SHARED: ContextVar[bool] = ContextVar("batch_is_shared", default=False)


@dataclass(frozen=True)
class Processes:
    """All processes of the run; each does the same steps on the same stream.

    Attributes:
        rank: Number of this one; 0 writes the files.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of a batch: equal shares, in the order of the ranks."""
        return rows if self.size == 1 else rows.chunk(self.size)[self.rank]

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Set every tensor to its mean over the processes, in one message. All are of one floating type."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        means = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Set the tensor to its sum over the processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any_(self, flags: Tensor) -> Tensor:
        """Where at least one process has a flag set."""
        if self.size == 1:
            return flags
        counts = flags.to(torch.int32)
        dist.all_reduce(counts, op=dist.ReduceOp.MAX)
        return counts > 0

    def agree(self, flag: bool) -> bool:
        """Whether the flag is set in at least one process."""
        return flag if self.size == 1 else bool(self.any_(torch.tensor([flag])))

    def cat(self, shard: Tensor) -> Tensor:
        """The shards of all processes, equal in shape, one below the other in the order of the ranks."""
        if self.size == 1:
            return shard
        shards = [torch.empty_like(shard, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(shards, shard.contiguous())
        return torch.cat(shards)

    def on_main(self, act: Callable[[], T]) -> T:
        """Process 0 acts; all return its result or raise its error, so that none waits for one that has stopped."""
        if self.size == 1:
            return act()
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = act()
            except (SparsightError, ValueError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result


def current_processes() -> Processes:
    """Those of the process group, if there is one; else this one alone."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes()


def join_processes(device: str) -> tuple[torch.device, Processes]:
    """This process's device, and the other processes that `torchrun` started, if it did."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    place = torch.device(name)
    if several and not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        # Its threads must have ended before the interpreter does: C++ aborts the process otherwise.
        atexit.register(_leave)
    return place, current_processes()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def check_processes(processes: Processes, training: Training) -> None:
    """Refuse what cannot be shared out evenly.

    Raises:
        ValueError: the batch has no equal shares.
    """
    if training.parallel == "data" and training.batch_size % processes.size:
        raise ValueError(
            f"batch_size={training.batch_size} cannot be shared out evenly among {processes.size} processes; make it a "
            f"multiple of {processes.size}"
        )


@contextmanager
def shared_batch() -> Iterator[None]:
    """Within it, an objective sees this process's share of the batch."""
    token = _SHARED.set(True)
    try:
        yield
    finally:
        _SHARED.reset(token)


def over_batch(mean: Tensor) -> Tensor:
    """The mean over the whole batch of a statistic that is a mean over rows, where an objective sees a share of them.

    Needed wherever a loss is not itself a mean over rows: a quotient, a square of a mean. The gradient is that of this
    process's share, times the number of shares: averaged over the processes it is the gradient over the whole batch.
    Outside of `shared_batch` the tensor itself.
    """
    if not _SHARED.get():
        return mean
    whole = mean.detach().clone()
    processes = current_processes()
    processes.mean_([whole])
    return mean + (whole - mean.detach())
