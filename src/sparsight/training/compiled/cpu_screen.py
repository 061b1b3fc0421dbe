"""Screening on a CPU: each thread multiplies blocks of rows and looks through them at once."""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.training.compiled import kernels
from sparsight.training.compiled.screen import Found, Screen, ScreenedBlock
from sparsight.training.compiled.threads import available, over, spread, together

T = TypeVar("T")

# Pre-activations of one block of rows: they stay in the last cache until their largest are found.
BLOCK = 2**22
# Fewer rows would take the encoder from memory too often; of very wide dictionaries they exceed the cache.
LEAST_ROWS = 64
# Room for the entries of a row; more is made where it does not suffice.
ROOM = 512


class CpuScreen(Screen):
    """Looked through are the bits of bfloat16 numbers, as integers: of positive ones the order is the same."""

    def round_rows(self, rows: Tensor, rounded: Tensor, errors: Tensor, norms: Tensor) -> None:
        spread(len(rows), kernels.round_rows, rows, rounded.view(torch.int16), errors, norms)

    def top_k(
        self, centred: Float[Tensor, "b d"], offset: Float[Tensor, " m"], k: int
    ) -> tuple[Float[Tensor, "b k"], Tensor]:
        values, latents = centred.new_empty(len(centred), k), torch.empty(len(centred), k, dtype=torch.int64)

        def choose(block: ScreenedBlock) -> None:
            given = (block.pre.view(torch.int16), centred[block.rows], self.encoder, offset, block.slack)
            chosen = (values[block.rows], latents[block.rows])
            over(kernels.top_k_of_screened, *given, float(block.largest_offset), k, *chosen)

        self.over_blocks(centred, offset, choose)
        return values, latents

    def above(
        self, block: ScreenedBlock, floors: Tensor, centred: Tensor, offset: Tensor, lower: Tensor, most: int | None
    ) -> Found | None:
        n, m = block.pre.shape
        room = min(m, ROOM)
        given = (block.pre.view(torch.int16), floors, centred[block.rows], self.encoder, offset, lower)
        while True:
            counts = torch.zeros(n, dtype=torch.int64)
            values, latents = torch.empty(n, room), torch.empty(n, room, dtype=torch.int64)
            enough = over(kernels.above_floor, *given, counts, values, latents)
            room = int(counts.max()) if n else 0
            if most is not None and room > most:
                return None
            if enough:
                break
        filled = torch.arange(values.shape[1]) < counts[:, None]
        rows = torch.arange(block.rows.start, block.rows.stop).repeat_interleave(counts)
        return rows, latents[filled], values[filled]

    def _each_block(self, rough: Tensor, offset: Tensor, work: Callable[[slice, Tensor], T]) -> list[T]:
        n, threads = len(rough), available()
        rounds = -(-n // (threads * max(LEAST_ROWS, BLOCK // len(self.encoder))))
        size = max(1, -(-n // max(1, rounds * threads)))
        product = self._product(offset, size)

        def on(first: int) -> T:
            rows = slice(first, min(first + size, n))
            return work(rows, product(rough[rows]))

        return together(on, range(0, n, size))

    def _product(self, offset: Tensor, size: int) -> Callable[[Tensor], Tensor]:
        """`x -> x encoder^T + offset` for blocks of `size` rows.

        Where torch's build has oneDNN, the encoder is laid out once as its kernels want it, not again for every block:
        a seventh of the time. The numbers are the same.
        """
        if torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            laid_out = torch.ops.mkldnn._reorder_linear_weight(self.rounded, size)
            return lambda x: torch.ops.mkldnn._linear_pointwise(x, laid_out, offset, "none", [], "")
        return lambda x: torch.addmm(offset, x, self.rounded.T)
