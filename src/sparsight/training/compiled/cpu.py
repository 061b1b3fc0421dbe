"""A step's loops on a CPU: numba on ranges of rows, and screened selection."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.dictionaries.selection import Slots
from sparsight.training.compiled import kernels
from sparsight.training.compiled.cpu_screen import CpuScreen
from sparsight.training.compiled.scalars import AdamScalars
from sparsight.training.compiled.selection import screened_above, screened_batch_top_k, screened_top_k
from sparsight.training.compiled.terms import Terms
from sparsight.training.compiled.threads import spread


class CpuLoops:
    """What they compute is said in `kernels.py` and `selection.py`.

    Args:
        encoder: Rows of the encoder, in the parameter's own memory.
    """

    record = None  # there is nothing to be gained by recording

    def __init__(self, encoder: Float[Tensor, "m d"]) -> None:
        self.screen = CpuScreen(encoder)

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
        spread(len(x), kernels.decode_and_pull, bounds, latents, values, x, *rest)

    def sort_by_latent(self, latents: Int64[Tensor, " s"], starts: Int64[Tensor, " m1"]) -> Int64[Tensor, " s"]:
        order = torch.empty_like(latents)
        kernels.sort_by_latent(latents.numpy(), starts.numpy(), order.numpy())
        return order

    def slopes(self, terms: Terms, found: Tensor) -> Tensor:
        spread(len(found), kernels.slopes, found, *terms)
        return found

    def measure(self, atoms: Tensor, of_atoms: Terms, of_encoder: Terms, *found: Tensor) -> None:
        own = (of_encoder.of, of_encoder.weights, of_encoder.source, of_encoder.more)
        spread(len(atoms), kernels.slopes_measured, atoms, *of_atoms, *own, *found)

    def held(self, lr: float, shrink: float) -> tuple[float, float]:
        return lr, shrink

    def scalars(self, step: Tensor, lr: float, shrink: float, betas: tuple[float, float], eps: float) -> AdamScalars:
        return AdamScalars.of(float(step), lr, shrink, betas, eps)

    def move_atoms(
        self, atoms: Tensor, terms: Terms, along: Tensor, averages: tuple[Tensor, Tensor], scalars: AdamScalars
    ) -> None:
        spread(len(atoms), kernels.adam_on_the_sphere, atoms, *terms, along, *averages, *scalars)

    def move_encoder(
        self, encoder: Tensor, terms: Terms, averages: tuple[Tensor, Tensor], scalars: AdamScalars
    ) -> None:
        screen = self.screen
        copies = (screen.rounded.view(torch.int16), screen.errors, screen.norms)
        spread(len(encoder), kernels.adam_and_round, encoder, *terms, *averages, *scalars, *copies)
