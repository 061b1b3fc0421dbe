"""Where the batches come from."""

from typing import Any, Protocol

import torch
from torch import Tensor


class Batches(Protocol):
    """An endless stream of batches that can be put back to where it was."""

    def __next__(self) -> Tensor: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class TensorBatches:
    def __init__(self, x, batch_size, seed):
        self.x, self.batch_size, self.seed, self.epoch, self.cursor = x, batch_size, seed, 0, 0
        self.order = self._order()

    def _order(self):
        return torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.seed * 1000003 + self.epoch))

    def __next__(self):
        rows = []
        need = self.batch_size
        while need:
            if self.cursor == len(self.x):
                self.epoch, self.cursor = self.epoch + 1, 0
                self.order = self._order()
            part = self.order[self.cursor : self.cursor + need]
            self.cursor += len(part)
            need -= len(part)
            rows.append(part)
        return self.x[torch.cat(rows)]

    def state(self):
        return {"epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state):
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self.order = self._order()


from dataclasses import dataclass

Stream = Batches


@dataclass
class Source:
    stream: Any
    d_in: int
    site: Any
    model: Any
    description: str


def open_source(source, site, training):
    return Source(
        TensorBatches(source, training.batch_size, training.seed),
        source.shape[1],
        None,
        None,
        f"tensor {list(source.shape)}",
    )
