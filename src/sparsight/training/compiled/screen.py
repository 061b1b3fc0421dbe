"""Pre-activations in bfloat16, with a bound on what they are off: they rule latents out, and never decide."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import BFloat16, Float, Float64
from torch import Tensor

from sparsight.training.compiled.room import Room

T = TypeVar("T")

# Half a unit in the last place of bfloat16, relative.
BF16_ROUNDING = 2.0**-8
# Of what products with an offset are off: product, offset and sum may each be rounded.
_ROUNDING = 3 * BF16_ROUNDING

# Tokens, latents and values.
Found = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class ScreenedBlock:
    """Some rows' pre-activations.

    Attributes:
        rows: Which rows.
        pre: Screened.
        slack: Bound on the error of a row's entries, without the rounding of the entries themselves.
        largest_offset: Largest magnitude among the offsets of latents that can be positive, lift included.
        lift: What was added to all entries.

    The last two are on the device: a GPU's host does not wait for them.
    """

    rows: slice
    pre: BFloat16[Tensor, "b m"]
    slack: Float[Tensor, " b"]
    largest_offset: Float64[Tensor, ""]
    lift: Float64[Tensor, ""]

    def floors(self, limit: float | Tensor) -> Float[Tensor, " b"]:
        """Below which screened number no entry of a row can reach `limit`; holds where limit and floor are positive."""
        return (limit - self.slack - _ROUNDING * self.largest_offset) * (1 - _ROUNDING)

    def reached(self, screened: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What an entry of each row reaches in truth that is screened to so much, which is positive."""
        return screened * (1 - _ROUNDING) - self.slack - _ROUNDING * self.largest_offset


class Screen(ABC):
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
        self.rounded = torch.zeros(m, d, dtype=torch.bfloat16, device=encoder.device)
        # Squares: of each row's rounding error and of its rounded norm.
        self.errors, self.norms = encoder.new_zeros(m), encoder.new_zeros(m)
        self._room = Room(encoder.device)
        self.refresh()

    def refresh(self) -> None:
        """Round the encoder anew: needed after anybody else wrote into it."""
        self.round_rows(self.encoder, self.rounded, self.errors, self.norms)

    @abstractmethod
    def round_rows(self, rows: Tensor, rounded: Tensor, errors: Tensor, norms: Tensor) -> None:
        """Each row in bfloat16, and the squares of what it is off and of its norm when rounded."""

    @abstractmethod
    def top_k(
        self, centred: Float[Tensor, "b d"], offset: Float[Tensor, " m"], k: int
    ) -> tuple[Float[Tensor, "b k"], Tensor]:
        """The `k` largest of `centred encoder^T + offset` in each row, rectified, and their latents."""

    @abstractmethod
    def above(
        self, block: ScreenedBlock, floors: Tensor, centred: Tensor, offset: Tensor, lower: Tensor, most: int | None
    ) -> Found | None:
        """Tokens, latents and values of a block's entries above the `lower` of their latent.

        Args:
            floors: Of each row, positive; no entry screened to less counts.
            most: Give up (None) where a token has more of them.
        """

    @abstractmethod
    def _each_block(self, rough: Tensor, offset: Tensor, work: Callable[[slice, Tensor], T]) -> list[T]:
        """`work` on rows and their products with the rounded encoder, block by block."""

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
        n, d = centred.shape
        if n == 0:
            return []
        rough = self._room.take("rough", n, d, dtype=torch.bfloat16)
        off, norms = self._room.take("off", n), self._room.take("norms", n)
        self.round_rows(centred, rough, off, norms)
        off, norms = off.sqrt(), norms.sqrt()
        largest, error = self.norms.max().sqrt().double(), self.errors.max().sqrt().double()
        sums = 2 * d * torch.finfo(torch.float32).eps * largest
        slack = (norms + off) * (error + sums) + off * largest
        reach = (largest + error) * (norms + off).max()  # of |<x, w>|
        largest_offset = offset.masked_fill(offset < -reach, 0.0).abs().max().double()
        lift = torch.zeros_like(largest)
        if lifted:
            lift = 2 * (slack.max() + _ROUNDING * largest_offset)
            offset, largest_offset = offset + lift, largest_offset + lift

        def on(rows: slice, pre: Tensor) -> T:
            return work(ScreenedBlock(rows, pre, slack[rows], largest_offset, lift))

        return self._each_block(rough, offset.bfloat16(), on)
