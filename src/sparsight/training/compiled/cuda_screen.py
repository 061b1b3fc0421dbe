"""Screening on CUDA: products in bfloat16, and Triton for what is computed again in float32."""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries.selection import block_rows, top_k, top_k_latents
from sparsight.training.compiled import triton_kernels as kernels
from sparsight.training.compiled.screen import Found, Screen, ScreenedBlock

T = TypeVar("T")

# Neighbouring latents of which only the largest is looked at in the first round.
GROUP = 64
# Candidates of a row, in units of k, beyond which it is computed in float32 as a whole.
CROWD = 16


class CudaScreen(Screen):
    """Runs on any device whose Triton kernels do; on a CPU in Triton's interpreter, for tests."""

    def round_rows(self, rows: Tensor, rounded: Tensor, errors: Tensor, norms: Tensor) -> None:
        kernels.round_rows(rows, rounded, errors, norms)

    def top_k(
        self, centred: Float[Tensor, "b d"], offset: Float[Tensor, " m"], k: int
    ) -> tuple[Float[Tensor, "b k"], Tensor]:
        """At least `k` entries reach the k-th largest of the maxima of groups: what cannot reach it is ruled out.

        Rows in which that rules out too little, or nothing for want of positive entries, are computed in float32.
        """

        def choose(block: ScreenedBlock) -> tuple[Tensor, Tensor]:
            n, m = block.pre.shape
            maxima = block.pre.view(n, -1, group_size(m, k)).amax(dim=2)
            least = maxima.topk(k, dim=1, sorted=False).values.amin(dim=1).float()
            floors = block.floors(block.reached(least))
            possible = block.pre >= floors[:, None]
            plain = (floors <= 0) | (possible.sum(dim=1) > CROWD * k)
            rows, latents = (possible & ~plain[:, None]).nonzero(as_tuple=True)
            values = self._exactly(centred, offset, rows + block.rows.start, latents)
            return self._largest(values, rows, latents, plain, centred[block.rows], offset, k)

        chosen = self.over_blocks(centred, offset, choose)
        if not chosen:
            return centred.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=centred.device)
        values, latents = (torch.cat(each) for each in zip(*chosen, strict=True))
        return values, latents

    def _exactly(self, centred: Tensor, offset: Tensor, tokens: Tensor, latents: Tensor) -> Tensor:
        found = centred.new_empty(len(tokens))
        kernels.dots(centred, self.encoder, tokens, latents, found)
        return found + offset[latents]

    def _largest(
        self, values: Tensor, rows: Tensor, latents: Tensor, plain: Tensor, centred: Tensor, offset: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """The `k` largest of each row's candidates, which come by row and latent; of plain rows, of all entries."""
        n = len(centred)
        first = torch.searchsorted(rows, torch.arange(n + 1, device=rows.device))
        most, some_plain = torch.stack([first.diff().max(), plain.sum()]).tolist()
        width = max(k, most)
        places = torch.arange(len(rows), device=rows.device) - first[rows]
        table = values.new_full((n, width), -torch.inf).index_put_((rows, places), values)
        which = torch.zeros_like(table, dtype=torch.int64).index_put_((rows, places), latents)
        best, columns = top_k(table, k)
        best, which = best.relu(), which.gather(1, columns)
        if some_plain:
            others, of_others = top_k_latents(centred[plain], self.encoder.T, offset, k)
            best[plain], which[plain] = others.relu(), of_others
        return best, which

    def above(
        self, block: ScreenedBlock, floors: Tensor, centred: Tensor, offset: Tensor, lower: Tensor, most: int | None
    ) -> Found | None:
        rows, latents = (block.pre >= floors[:, None]).nonzero(as_tuple=True)
        tokens = rows + block.rows.start
        values = self._exactly(centred, offset, tokens, latents)
        kept = (values > lower[latents]).nonzero()[:, 0]
        if most is not None and int(torch.bincount(rows[kept], minlength=1).max()) > most:
            return None
        return tokens[kept], latents[kept], values[kept]

    def _each_block(self, rough: Tensor, offset: Tensor, work: Callable[[slice, Tensor], T]) -> list[T]:
        size, products = block_rows(len(self.encoder), rough.device), torch.backends.cuda.matmul
        reduced = products.allow_bf16_reduced_precision_reduction
        products.allow_bf16_reduced_precision_reduction = False  # the bound is that of sums in float32
        try:
            found = []
            for first in range(0, len(rough), size):
                rows = slice(first, min(first + size, len(rough)))
                found.append(work(rows, torch.addmm(offset, rough[rows], self.rounded.T)))
            return found
        finally:
            products.allow_bf16_reduced_precision_reduction = reduced


def group_size(m: int, k: int) -> int:
    """The largest power of 2 up to `GROUP` that divides `m` into at least `2 k` groups; 1 if none does."""
    size = GROUP
    while size > 1 and (m % size or m // size < 2 * k):
        size //= 2
    return size
