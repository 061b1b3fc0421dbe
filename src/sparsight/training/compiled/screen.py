"""Pre-activations in bfloat16, with a bound on what they are off: they rule latents out, and never decide."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from sparsight.training.compiled import kernels
from sparsight.training.compiled.room import Room
from sparsight.training.compiled.threads import spread

# Pre-activations of one block of rows: they stay in the last cache until their largest are found.
BLOCK = 2**22


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

    def blocks(
        self, centred: Float[Tensor, "b d"], offset: Float[Tensor, " m"], *, lifted: bool = False
    ) -> Iterator[ScreenedBlock]:
        """`centred encoder^T + offset`, block by block. A block is overwritten by the next.

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
        rough_offset = offset.bfloat16()
        size = max(1, min(n, BLOCK // m))
        block = self._room.take("block", size, m, dtype=torch.bfloat16)
        for first in range(0, n, size):
            rows = slice(first, min(first + size, n))
            pre = block[: rows.stop - rows.start]
            torch.addmm(rough_offset, rough[rows], self.rounded.T, out=pre)
            yield ScreenedBlock(rows, pre.view(torch.int16), slack[rows], largest_offset, lift)
