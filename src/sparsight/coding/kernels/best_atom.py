"""The atom with the largest inner product in each row: the step that all dense searches spend their time in."""

import functools
import importlib.util

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def best_atom(
    residual: Float[Tensor, "b d"],
    atoms: Float[Tensor, "n_latents d"],
    taken: Int64[Tensor, "b t"],
    *,
    nonnegative: bool,
) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
    """`argmax_j <d_j, r>` (magnitude, when signed) over the atoms not taken, and that inner product with its sign.

    On CUDA, in float32, a Triton kernel keeps only the running best of each row, so that the scores of all atoms never
    reach memory. Elsewhere, and where Triton is not installed, a product and an argmax.

    Args:
        residual: Rows.
        atoms: Unit rows, at least one more than `t`.
        taken: Atoms that may not be chosen.
        nonnegative: Best means the largest inner product; else the largest magnitude.
    Returns:
        Index and score; the lowest index among equals.
    """
    if residual.is_cuda and residual.dtype == torch.float32 and triton_is_installed():
        from sparsight.coding.kernels.triton_best_atom import fused_best_atom

        return fused_best_atom(residual, atoms, taken, nonnegative=nonnegative)
    return plain_best_atom(residual, atoms, taken, nonnegative=nonnegative)


def plain_best_atom(
    residual: Float[Tensor, "b d"],
    atoms: Float[Tensor, "n_latents d"],
    taken: Int64[Tensor, "b t"],
    *,
    nonnegative: bool,
) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
    """The same by one product of all residuals with all atoms: the oracle of the kernel."""
    scores = residual @ atoms.T
    ranked = scores if nonnegative else scores.abs()
    ranked.scatter_(1, taken, -torch.inf)
    index = ranked.argmax(dim=1)
    return index, scores.gather(1, index.unsqueeze(1)).squeeze(1)


@functools.cache
def triton_is_installed() -> bool:
    """Whether the package `triton` can be imported; it comes with CUDA builds of PyTorch."""
    return importlib.util.find_spec("triton") is not None
