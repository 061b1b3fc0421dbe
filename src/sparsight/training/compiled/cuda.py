"""A step's loops on CUDA: Triton kernels, and torch's selection from blocks of pre-activations."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.dictionaries.selection import Slots, batch_top_k_latents, block_rows, top_k_latents
from sparsight.training.compiled import triton_kernels as kernels
from sparsight.training.compiled.scalars import AdamScalars


class CudaLoops:
    """What they compute is said in `kernels.py`; pre-activations are products in float32.

    Args:
        encoder: Rows of the encoder, in the parameter's own memory.
    """

    def __init__(self, encoder: Float[Tensor, "m d"]) -> None:
        self.encoder = encoder

    def written(self) -> None:
        """Something else than a step wrote into the encoder: nothing is derived from it here."""

    def top_k(self, centred: Tensor, offset: Tensor, k: int) -> Slots:
        values, latents = top_k_latents(centred, self.encoder.T, offset, k)
        tokens = torch.arange(len(centred), device=centred.device).repeat_interleave(k)
        return Slots(tokens, latents.flatten(), values.relu().flatten(), len(centred))

    def batch_top_k(self, centred: Tensor, offset: Tensor, n_kept: int) -> Slots:
        return batch_top_k_latents(centred, self.encoder.T, offset, n_kept)

    def above(self, centred: Tensor, offset: Tensor, lower: Tensor, most: int) -> Slots | None:
        parts = []
        size = block_rows(len(offset), centred.device)
        for first in range(0, len(centred), size):
            pre = torch.addmm(offset, centred[first : first + size], self.encoder.T)
            within = pre > lower
            if int(within.sum(dim=1).max()) > most:
                return None
            rows, latents = within.nonzero(as_tuple=True)
            parts.append((rows + first, latents, pre[rows, latents]))
        tokens, latents, values = (torch.cat(each) for each in zip(*parts, strict=True))
        return Slots(tokens, latents, values, len(centred))

    def decode_and_pull(self, x: Tensor, *given: Tensor) -> None:
        bounds, latents, values, *rest = given
        kernels.decode_and_pull(bounds, latents, values, x, *rest)

    def sort_by_latent(self, latents: Int64[Tensor, " s"], starts: Int64[Tensor, " m1"]) -> Int64[Tensor, " s"]:
        starts[1:] = torch.bincount(latents, minlength=len(starts) - 1).cumsum(dim=0)
        return latents.argsort(stable=True)

    def gradients_by_latent(self, which: Tensor, *given: Tensor) -> None:
        kernels.gradients_by_latent(which, *given)

    def tangent_and_norms(self, which: Tensor, *given: Tensor) -> None:
        kernels.tangent_and_norms(which, *given)

    def move_atoms(
        self,
        atoms: Tensor,
        position: Tensor,
        gradient: Tensor,
        along: Tensor,
        averages: tuple[Tensor, Tensor],
        scalars: AdamScalars,
    ) -> None:
        kernels.adam(atoms, position, gradient, along, *averages, scalars)

    def move_encoder(
        self,
        encoder: Tensor,
        position: Tensor,
        gradient: Tensor,
        averages: tuple[Tensor, Tensor],
        scalars: AdamScalars,
    ) -> None:
        kernels.adam(encoder, position, gradient, None, *averages, scalars)
