"""The question all greedy coders ask: which atom is best aligned with the residual?"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# Bytes of transient scores that one block of rows may take; beyond the last-level cache larger blocks only cost memory.
BLOCK_BYTES = 32 * 2**20


class Search(ABC):
    """Answers for one block of rows `x`, step by step, while their supports grow by one slot at a time."""

    @abstractmethod
    def best(
        self, indices: Int64[Tensor, "b t"], values: Float[Tensor, "b t"]
    ) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
        """The atom best aligned with `x - sum_i values_i d_i` in each row, and its inner product with it."""

    @abstractmethod
    def add(
        self, indices: Int64[Tensor, "b t"], chosen: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b t1"], Float[Tensor, " b"]]:
        """Inner products of the chosen atom with the `t` atoms before it and itself (so `t1 = t + 1`), and with `x`."""


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
        repeats: bool = False,
    ) -> None:
        self.x = x
        self.atoms = atoms
        self.nonnegative = nonnegative
        self.repeats = repeats
        self.chosen_atoms = x.new_zeros(x.shape[0], k, x.shape[1])

    def best(
        self, indices: Int64[Tensor, "b t"], values: Float[Tensor, "b t"]
    ) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
        t = indices.shape[1]
        residual = self.x
        if t > 0:
            residual = torch.baddbmm(self.x.unsqueeze(1), values.unsqueeze(1), self.chosen_atoms[:, :t], alpha=-1)
            residual = residual.squeeze(1)
        scores = residual @ self.atoms.T
        ranked = scores if self.nonnegative else scores.abs()
        if not self.repeats:
            ranked.scatter_(1, indices, -torch.inf)
        index = ranked.argmax(dim=1)
        return index, scores.gather(1, index.unsqueeze(1)).squeeze(1)

    def add(
        self, indices: Int64[Tensor, "b t"], chosen: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b t1"], Float[Tensor, " b"]]:
        t = indices.shape[1]
        atom = self.atoms[chosen]
        self.chosen_atoms[:, t] = atom
        products = torch.bmm(self.chosen_atoms[:, : t + 1], atom.unsqueeze(2)).squeeze(2)
        return products, (atom * self.x).sum(dim=1)


def block_rows(n_latents: int, d: int, k: int, itemsize: int) -> int:
    """Rows in a block so that its scores and its chosen atoms stay within `BLOCK_BYTES` each."""
    return max(1, min(BLOCK_BYTES // (n_latents * itemsize), BLOCK_BYTES // (max(k, 1) * d * itemsize), 4096))
