"""What a CUDA graph does, on a CPU: operations are noted while they run, and done again, blind, on the same memory.

A recording that gives the right numbers for new contents of its memory depends on nothing that the host has read, and
takes no memory anew: what a graph asks of work that it records.
"""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

# Operations whose result's shape, or the host, waits for what the device has computed.
WAITS = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "unique_dim", "equal", "lift_fresh"}
# Operations that start nothing on a device.
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "set_", "alias"}


class Operations(TorchDispatchMode):
    """Notes torch's operations and Triton's launches within.

    Attributes:
        waits: Operations that a host would wait for.
        launches: Operations that start something on a device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.launches: list[str] = []

    def __enter__(self) -> Any:
        mode, launch = self, GridExecutor.__call__

        def noted(kernel: Any, *args: Any, **kwargs: Any) -> None:
            with _disable_current_modes():
                mode.launches.append(kernel.fn.__name__)
                mode.ran(lambda: launch(kernel, *args, **kwargs), args, args, None)

        def read(method: str) -> Any:
            plain = getattr(Tensor, method)

            def noted_read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
                mode.waits.append(method)
                return plain(tensor, *args, **kwargs)

            return patch.object(Tensor, method, noted_read)

        self._patches = [patch.object(GridExecutor, "__call__", noted), *map(read, ("tolist", "numpy", "cpu"))]
        for each in self._patches:
            each.start()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        for each in self._patches:
            each.stop()
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, name = kwargs or {}, func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(i.dtype == torch.bool for i in tensors(args[1]))
        moved = func._schema.name == "aten::repeat_interleave" and isinstance(args[0], Tensor) and len(args) == 1
        if name in WAITS or masks or moved:
            self.waits.append(name)
        elif name not in FREE and not func.is_view:
            self.launches.append(name)
        written = [
            value
            for argument, value in [
                *zip(func._schema.arguments, args, strict=False),
                *((argument, given.get(argument.name)) for argument in func._schema.arguments),
            ]
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        return self.ran(lambda: func(*args, **given), (args, given), written, func)

    def ran(self, do: Callable[[], Any], given: Any, written: Any, func: Any) -> Any:
        """Do it; `func` is None for a launch, after which everything given may have been written."""
        return do()


class Tape(Operations):
    """A recording. What ran while it was made is undone at its end, as capture does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Callable[[], Any], list[Tensor]]] = []
        self.own: dict[int, Tensor] = {}  # by address: made within
        self.before: dict[int, tuple[Any, Any]] = {}  # by address: others' memory, and what it held

    def ran(self, do: Callable[[], Any], given: Any, written: Any, func: Any) -> Any:
        for tensor in tensors(written):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.own and storage.data_ptr() not in self.before:
                self.before[storage.data_ptr()] = storage, storage.clone()
        held = {tensor.untyped_storage().data_ptr() for tensor in tensors(given)}
        out = do()
        fresh = [t for t in tensors(out) if t.numel() and t.untyped_storage().data_ptr() not in held]
        for tensor in fresh:
            self.own[tensor.untyped_storage().data_ptr()] = tensor
        self.steps.append((do, fresh))
        return out

    def undo(self) -> None:
        for storage, held in self.before.values():
            storage.copy_(held)
        for tensor in self.own.values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)

    def replay(self) -> None:
        for do, kept in self.steps:
            again = [t for t in tensors(do()) if t.numel()] if kept else do()
            for old, new in zip(kept, again, strict=True) if kept else ():
                old.copy_(new)


def tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def record(work: Callable[[], Any]) -> tuple[Any, Tape]:
    """As `cuda_graph`.

    Raises:
        AssertionError: the work waits for the device.
    """
    with Tape() as tape:
        found = work()
    assert not tape.waits, f"a graph cannot wait: {tape.waits}"
    tape.undo()
    return found, tape
