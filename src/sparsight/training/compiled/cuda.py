"""A step's loops on CUDA: Triton kernels, and screened selection."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.dictionaries.selection import Slots
from sparsight.training.compiled import triton_kernels as kernels
from sparsight.training.compiled.cuda_screen import CudaScreen
from sparsight.training.compiled.recorded import Record, cuda_graph
from sparsight.training.compiled.selection import screened_above, screened_batch_top_k, screened_top_k
from sparsight.training.compiled.terms import Terms


class CudaLoops:
    """What they compute is said in `kernels.py` and `selection.py`.

    Args:
        encoder: Rows of the encoder, in the parameter's own memory.
    """

    def __init__(self, encoder: Float[Tensor, "m d"]) -> None:
        self.screen = CudaScreen(encoder)
        self.record: Record | None = cuda_graph if encoder.is_cuda else None
        self._held = encoder.new_zeros(2)

    def written(self) -> None:
        """Something else than a step wrote into the encoder."""
        self.screen.refresh()

    def top_k(self, centred: Tensor, offset: Tensor, k: int) -> Slots:
        return screened_top_k(self.screen, centred, offset, k)

    def batch_top_k(self, centred: Tensor, offset: Tensor, n_kept: int) -> Slots:
        return screened_batch_top_k(self.screen, centred, offset, n_kept)

    def above(self, centred: Tensor, offset: Tensor, lower: Tensor, most: int) -> Slots | None:
        return screened_above(self.screen, centred, offset, lower, most)

    def decode_and_pull(self, x: Tensor, *given: Tensor) -> None:
        bounds, latents, values, *rest = given
        kernels.decode_and_pull(bounds, latents, values, x, *rest)

    def sort_by_latent(self, latents: Int64[Tensor, " s"], starts: Int64[Tensor, " m1"]) -> Int64[Tensor, " s"]:
        ascending, order = latents.sort(stable=True)
        torch.searchsorted(ascending, torch.arange(len(starts), device=starts.device), out=starts)
        return order

    def slopes(self, terms: Terms, found: Tensor) -> Tensor:
        kernels.slopes(found, terms)
        return found

    def measure(self, atoms: Tensor, of_atoms: Terms, of_encoder: Terms, *found: Tensor) -> None:
        kernels.slopes_measured(atoms, of_atoms, of_encoder, *found)

    def held(self, lr: float, shrink: float) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Both on the device, in the same memory every time."""
        self._held[0].fill_(lr)
        self._held[1].fill_(shrink)
        return self._held[0], self._held[1]

    def scalars(
        self, step: Tensor, lr: Tensor, shrink: Tensor, betas: tuple[float, float], eps: float
    ) -> Float[Tensor, " 6"]:
        """As `AdamScalars`, without reading what the device holds."""
        step = step.double()
        rate, correction = lr / (1 - betas[0] ** step), (1 - betas[1] ** step) ** -0.5
        constant = (torch.full_like(step, number) for number in (*betas, eps))
        beta1, beta2, least = constant
        return torch.stack([shrink.double(), rate, beta1, beta2, correction, least]).float()

    def move_atoms(
        self, atoms: Tensor, terms: Terms, along: Tensor, averages: tuple[Tensor, Tensor], scalars: Tensor
    ) -> None:
        kernels.adam(atoms, terms, along, *averages, scalars)

    def move_encoder(self, encoder: Tensor, terms: Terms, averages: tuple[Tensor, Tensor], scalars: Tensor) -> None:
        kernels.adam(encoder, terms, None, *averages, scalars)
        self.screen.refresh()
