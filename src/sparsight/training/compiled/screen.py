"""Pre-activations in bfloat16, with a bound on what they are off: they rule latents out, and never decide."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from sparsight.training.compiled import kernels
from sparsight.training.compiled.room import Room
from sparsight.training.compiled.threads import available, spread, together

T = TypeVar("T")

# Pre-activations of one block of rows: they stay in the last cache until their largest are found.
BLOCK = 2**22
# Fewer rows would take the encoder from memory too often; of very wide dictionaries they exceed the cache.
LEAST_ROWS = 64


@dataclass(frozen=True)
class ScreenedBlock:
    """Some rows' pre-activations.

    Attributes:
        rows: Which rows.
        bits: bfloat16 as integers: of positive numbers the order is the same.
        slack: Bound on the error of a row's entries, without the rounding of the entries themselves.
        largest_offset: Largest magnitude among the offsets, lift included.
        lift: What was added to all entries.
    """

    rows: slice
    bits: Int16[Tensor, "b m"]
    slack: Float[Tensor, " b"]
    largest_offset: float
    lift: float


class Screen:
    """A bfloat16 copy of an encoder, and how far it is off.

    With `w'` and `x'` the rounded encoder and activation, `<x, w> - <x', w'>` is at most
    `|x| |w - w'| + |x - x'| |w'|`; the sums are off by at most `d` units in the last place of float32, relative to
    `|x| |w'|`.

    Args:
        encoder: Rows of the encoder, one per latent; read, not kept up to date: see `refresh`.
    """

    def __init__(self, encoder: Float[Tensor, "m d"]) -> None:
        self.encoder = encoder
        m, d = encoder.shape
        self.rounded = torch.zeros(m, d, dtype=torch.bfloat16)
        # Squares: of each row's rounding error and of its rounded norm.
        self.errors, self.norms = torch.zeros(m), torch.zeros(m)
        self._room = Room()
        self.refresh()

    def refresh(self) -> None:
        """Round the encoder anew: needed after anybody else wrote into it."""
        bits = self.rounded.view(torch.int16)
        spread(len(bits), kernels.round_rows, self.encoder, bits, self.errors, self.norms)

    def over_blocks(
        self,
        centred: Float[Tensor, "b d"],
        offset: Float[Tensor, " m"],
        work: Callable[[ScreenedBlock], T],
        *,
        lifted: bool = False,
    ) -> list[T]:
        """`work` on `centred encoder^T + offset`, block by block, several blocks at a time.

        Args:
            lifted: Add to all entries as much as makes those positive that are so in truth.
        """
        (n, d), m = centred.shape, len(self.encoder)
        rough = self._room.take("rough", n, d, dtype=torch.bfloat16)
        off, norms = self._room.take("off", n), self._room.take("norms", n)
        spread(n, kernels.round_rows, centred, rough.view(torch.int16), off, norms)
        off, norms = off.sqrt(), norms.sqrt()
        largest = float(self.norms.max().sqrt())
        sums = 2 * d * torch.finfo(torch.float32).eps * largest
        slack = (norms + off) * (float(self.errors.max().sqrt()) + sums) + off * largest
        largest_offset, lift = float(offset.abs().max()), 0.0
        if lifted:
            lift = 2 * (float(slack.max()) + 2 * kernels.BF16_ROUNDING * largest_offset)
            offset, largest_offset = offset + lift, largest_offset + lift
        threads = available()
        rounds = -(-n // (threads * max(LEAST_ROWS, BLOCK // m)))
        size = max(1, -(-n // max(1, rounds * threads)))
        product = self._product(offset.bfloat16(), size)

        def on(first: int) -> T:
            rows = slice(first, min(first + size, n))
            return work(ScreenedBlock(rows, product(rough[rows]).view(torch.int16), slack[rows], largest_offset, lift))

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
