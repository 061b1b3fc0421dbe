"""Losses as functions of a flat vector of parameters, for several vectors (chains) at once."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

ModelLoss = Callable[..., Tensor]  # (model, *batch) -> mean loss over the batch, a scalar


class AbstractLoss(ABC):
    """A mean loss over data, differentiable in the parameters."""

    n_data: int | None = None  # examples in the data; None where the loss is no mean over data
    full_batch: bool = True  # whether `sampled` is `at`

    @abstractmethod
    def at(self, w: Float[Tensor, "chains d"]) -> Float[Tensor, " chains"]:
        """The loss on all data, at each row."""

    def sampled(self, w: Float[Tensor, "chains d"], generator: torch.Generator) -> Float[Tensor, " chains"]:
        """The loss on one random minibatch for each row: its expectation is `at(w)`."""
        return self.at(w)


class FunctionLoss(AbstractLoss):
    """A loss given as a function of the vector of parameters.

    Args:
        function: `w [d] -> scalar`, differentiable by torch; with `batched`, `w [chains, d] -> [chains]`.
        n_data: Samples behind it, where there are any: `n_beta` is then `n / log n` unless given.
        batched: Whether it takes rows itself; otherwise `torch.func.vmap` makes it do so.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], *, n_data: int | None = None, batched: bool = False):
        self.n_data = n_data
        self._rows = function if batched else vmap(function)

    def at(self, w: Float[Tensor, "chains d"]) -> Float[Tensor, " chains"]:
        return self._rows(w)


class ModuleLoss(AbstractLoss):
    """The loss of a `torch.nn.Module` on data, as a function of all its parameters.

    Args:
        module: In eval mode, so that the loss is a function of parameters and data alone.
        loss: `(model, *batch) -> scalar`, the mean over the examples of the batch; `model` is called as the module is.
        data: Tensors with one row for each example, all on the module's device.
        batch_size: Examples in a minibatch, drawn with replacement, for each chain its own; None for all data.
        chunk_size: Examples that `at` puts through the model at once; None for all.
        vectorised: Batch the chains by `torch.func.vmap`; False loops over them, for models that it cannot batch.
    Raises:
        ValueError: the module is in training mode, or the data are empty or of unequal lengths, or a size is below 1.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: ModelLoss,
        data: tuple[Tensor, ...],
        *,
        batch_size: int | None = None,
        chunk_size: int | None = None,
        vectorised: bool = True,
    ):
        if module.training:
            raise ValueError("the module must be in eval mode, it is in training mode; call module.eval()")
        lengths = {len(part) for part in data}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"data must be tensors of one length above 0, got {[tuple(part.shape) for part in data]}")
        for name, size in (("batch_size", batch_size), ("chunk_size", chunk_size)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be 1 or more, or None for all data, got {size}")
        self.module, self.loss, self.data = module, loss, data
        self.n_data = lengths.pop()
        self.batch_size, self.chunk_size = batch_size, chunk_size or self.n_data
        self.full_batch = batch_size is None
        self.vectorised = vectorised
        self._shapes = {name: p.shape for name, p in module.named_parameters()}

    def parameters(self) -> Float[Tensor, " d"]:
        """The module's parameters as they are now, in one vector: a copy."""
        return torch.cat([p.detach().flatten() for p in self.module.parameters()])

    def mask(self, *names: str) -> Bool[Tensor, " d"]:
        """True for the parameters of these names, or of modules of these names.

        Raises:
            ValueError: a name fits no parameter.
        """
        for name in names:
            if not any(_within(parameter, name) for parameter in self._shapes):
                raise ValueError(f"no parameter is named {name!r} or lies in it; there are: {', '.join(self._shapes)}")
        parts = [
            torch.full((shape.numel(),), any(_within(parameter, name) for name in names))
            for parameter, shape in self._shapes.items()
        ]
        return torch.cat(parts).to(next(self.module.parameters()).device)

    def at(self, w: Float[Tensor, "chains d"]) -> Float[Tensor, " chains"]:
        total = w.new_zeros(len(w), dtype=torch.float64)
        assert self.n_data is not None
        for start in range(0, self.n_data, self.chunk_size):
            chunk = tuple(part[start : start + self.chunk_size] for part in self.data)
            total = total + len(chunk[0]) * self._rows(w, chunk, shared=True)
        return (total / self.n_data).to(w.dtype if w.dtype == torch.float64 else torch.float32)

    def sampled(self, w: Float[Tensor, "chains d"], generator: torch.Generator) -> Float[Tensor, " chains"]:
        if self.batch_size is None:
            return self.at(w)
        size = (len(w), self.batch_size)
        rows = torch.randint(self.n_data or 0, size, generator=generator, device=generator.device)
        rows = rows.to(self.data[0].device)
        return self._rows(w, tuple(part[rows] for part in self.data), shared=False)

    def _rows(self, w: Tensor, batch: tuple[Tensor, ...], *, shared: bool) -> Tensor:
        """Loss at each row, on the same batch or on each row's own.

        Attention is written out: the fused kernels have no second derivative, which curvature needs, and no batching.
        """
        with sdpa_kernel(SDPBackend.MATH):
            if self.vectorised:
                axis = None if shared else 0
                return vmap(self._one, in_dims=(0, *(axis for _ in batch)))(w, *batch)
            own = [batch if shared else tuple(part[i] for part in batch) for i in range(len(w))]
            return torch.stack([self._one(row, *examples) for row, examples in zip(w, own, strict=True)])

    def _one(self, w: Tensor, *batch: Tensor) -> Tensor:
        pieces = torch.split(w, [shape.numel() for shape in self._shapes.values()])
        named = {name: piece.reshape(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

        def model(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.module, named, args, kwargs)

        return self.loss(model, *batch)


def _within(parameter: str, name: str) -> bool:
    return parameter == name or parameter.startswith(f"{name}.")
