"""The question all greedy coders ask: which atom is best aligned with the residual?"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsight.coding.kernels.best_atom import best_atom

# Bytes of transient scores that one block of rows may take on a CPU: beyond the last-level cache larger blocks only
# cost memory. A GPU wants many rows at once.
BLOCK_BYTES = 16 * 2**20
BLOCK_BYTES_GPU = 2**30


class Search(ABC):
    """Answers for one block of rows `x`, step by step, while their supports grow by one slot at a time."""

    @abstractmethod
    def best(
        self,
        indices: Int64[Tensor, "b t"],
        values: Float[Tensor, "b t"],
        gram: Float[Tensor, "b t t"] | None,
        alive: Bool[Tensor, " b"],
    ) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
        """The atom best aligned with `x - sum_i values_i d_i` in each row, and its inner product with it.

        Args:
            indices: Atoms of the support, as `add` got them.
            values: Their weights.
            gram: Their inner products, where the coder keeps them.
            alive: Rows whose answer matters.
        """

    @abstractmethod
    def add(
        self, indices: Int64[Tensor, "b t"], chosen: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b t1"], Float[Tensor, " b"]]:
        """Inner products of the chosen atom with the `t` atoms before it and itself (so `t1 = t + 1`), and with `x`."""


class ChosenAtoms:
    """The atoms in each slot, side by side in memory, for the products that need all of a row's."""

    def __init__(self, x: Float[Tensor, "b d"], atoms: Float[Tensor, "n_latents d"], k: int) -> None:
        self.x = x
        self.atoms = atoms
        self.slots = x.new_zeros(x.shape[0], k, x.shape[1])

    def residual(self, values: Float[Tensor, "b t"]) -> Float[Tensor, "b d"]:
        t = values.shape[1]
        if t == 0:
            return self.x
        return torch.baddbmm(self.x.unsqueeze(1), values.unsqueeze(1), self.slots[:, :t], alpha=-1).squeeze(1)

    def add(self, slot: int, chosen: Int64[Tensor, " b"]) -> tuple[Float[Tensor, "b t1"], Float[Tensor, " b"]]:
        atom = self.atoms[chosen]
        self.slots[:, slot] = atom
        # A row vector times a matrix: many times faster on CPUs than the matrix times a column.
        products = torch.bmm(atom.unsqueeze(1), self.slots[:, : slot + 1].transpose(1, 2)).squeeze(1)
        return products, (atom * self.x).sum(dim=1)


class DenseSearch(Search):
    """One product of all residuals with all atoms per step: the plain way, and the oracle of the others.

    Args:
        x: Rows to be coded.
        atoms: Unit rows.
        k: Steps to come.
        nonnegative: Best means the largest inner product; else the largest magnitude.
        repeats: Whether an atom already in the support may be chosen again.
    """

    def __init__(
        self,
        x: Float[Tensor, "b d"],
        atoms: Float[Tensor, "n_latents d"],
        k: int,
        *,
        nonnegative: bool,
        repeats: bool,
    ) -> None:
        self.atoms = atoms
        self.nonnegative = nonnegative
        self.repeats = repeats
        self.chosen = ChosenAtoms(x, atoms, k)

    def best(
        self,
        indices: Int64[Tensor, "b t"],
        values: Float[Tensor, "b t"],
        gram: Float[Tensor, "b t t"] | None,
        alive: Bool[Tensor, " b"],
    ) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
        taken = indices[:, :0] if self.repeats else indices
        return best_atom(self.chosen.residual(values), self.atoms, taken, nonnegative=self.nonnegative)

    def add(
        self, indices: Int64[Tensor, "b t"], chosen: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b t1"], Float[Tensor, " b"]]:
        return self.chosen.add(indices.shape[1], chosen)


def block_bytes(device: torch.device) -> int:
    """What one block of rows may take of a device's memory."""
    return BLOCK_BYTES if device.type == "cpu" else BLOCK_BYTES_GPU


def block_rows(n_latents: int, d: int, k: int, itemsize: int, device: torch.device | None = None) -> int:
    """Rows in a block so that its scores stay within `block_bytes`, and its chosen atoms within twice that."""
    device = device or torch.device("cpu")
    room = block_bytes(device)
    by_scores = room // (n_latents * itemsize)
    by_atoms = 2 * room // (max(k, 1) * d * itemsize)
    return max(1, min(by_scores, by_atoms, 4096 if device.type == "cpu" else 2**16))
