"""The atoms that a block of pursuits has chosen so far, and their inner products."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.coding.kernels.search import Search


class Supports:
    """Supports of `b` rows that grow together, one slot a step; everything least squares needs to know of them.

    A row that has stopped keeps its slots but fills no new ones: those have index 0 and zero inner products with
    everything, so a gradient never moves them off zero.

    Attributes:
        indices: Atom in each slot.
        used: Slots that a row filled before it stopped.
        gram: Inner products between the atoms of a row.
        target: Inner products of those atoms with the row.
        size: Slots filled so far.
    """

    def __init__(self, n_rows: int, k: int, like: Float[Tensor, "..."]) -> None:
        self.indices = torch.zeros(n_rows, k, dtype=torch.int64, device=like.device)
        self.used = torch.zeros(n_rows, k, dtype=torch.bool, device=like.device)
        self.gram = like.new_zeros(n_rows, k, k)
        self.target = like.new_zeros(n_rows, k)
        self.size = 0

    def add(self, finder: Search, chosen: Int64[Tensor, " b"], alive: Bool[Tensor, " b"]) -> None:
        """Fill one more slot of the rows that are still alive."""
        t = self.size
        products, target = finder.add(self.indices[:, :t], chosen)
        # Slots that a stopped row did not fill still hold an index: no inner product may leak from there.
        self.indices[:, t] = chosen * alive
        self.used[:, t] = alive
        products = products * (self.used[:, : t + 1] & alive.unsqueeze(1))
        self.gram[:, t, : t + 1] = products
        self.gram[:, : t + 1, t] = products
        self.target[:, t] = target * alive
        self.size = t + 1

    def gradient(self, values: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Inner products of the chosen atoms with the residual `x - sum_i values_i d_i`."""
        t = self.size
        return self.target[:, :t] - times(self.gram[:, :t, :t], values)


def times(matrices: Float[Tensor, "b t t"], vectors: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """One product of a symmetric matrix with a vector per row."""
    # A row vector times a matrix is many times faster on CPUs than the matrix times a column.
    return torch.bmm(vectors.unsqueeze(1), matrices).squeeze(1)
