"""From dense pre-activations to a code that holds the active latents only."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.codes import SparseCode


def code_where(values: Float[Tensor, "n n_latents"], active: Bool[Tensor, "n n_latents"]) -> SparseCode:
    """The active entries of `values` in the order of their latents; as many slots as the fullest row needs."""
    n, n_latents = values.shape
    k = int(active.sum(dim=1).max()) if n else 0
    rows, latents = active.nonzero(as_tuple=True)
    slots = active.cumsum(dim=1)[rows, latents] - 1
    indices = torch.zeros(n, k, dtype=torch.int64, device=values.device)
    indices[rows, slots] = latents
    chosen = values.new_zeros(n, k).index_put((rows, slots), values[rows, latents])
    return SparseCode(indices, chosen, n_latents)
