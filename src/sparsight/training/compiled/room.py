"""Memory to use again."""

import math

import torch
from torch import Tensor


class Room:
    """Memory that is used again at the next step: touching fresh pages costs more than filling them."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of that shape that nobody else uses under that name; what it holds is left over."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size:
            kept = self._kept[name] = torch.empty(size, dtype=dtype, device=self._device)
        return kept[:size].view(shape)

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """The same numbers in the memory of that name."""
        return self.take(name, *tensor.shape, dtype=tensor.dtype).copy_(tensor)
