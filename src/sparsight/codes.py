"""Sparse codes: what every coder writes and every dictionary reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class SparseCode:
    """The non-zero latents of `n` activations, at most `k` in each.

    A slot whose value is 0 is unused, whatever its index; used slots of one row name different latents. Slots are in no
    particular order.

    Attributes:
        indices: Latent of each slot, in `[0, n_latents)`.
        values: Latent value of each slot, in the units of the activations.
        n_latents: Width of the dictionary the code belongs to.
    """

    indices: Int64[Tensor, "n k"]
    values: Float[Tensor, "n k"]
    n_latents: int

    def __post_init__(self) -> None:
        if self.indices.shape != self.values.shape or self.indices.dim() != 2:
            raise ValueError(
                f"indices and values must both be [n, k], got {list(self.indices.shape)} and {list(self.values.shape)}"
            )
        if self.n_latents < 1:
            raise ValueError(f"n_latents must be at least 1, got {self.n_latents}")

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "SparseCode":
        return SparseCode(self.indices[rows], self.values[rows], self.n_latents)

    @property
    def k(self) -> int:
        """Slots in a row: the largest L0 this code can hold."""
        return self.indices.shape[1]

    def to_dense(self) -> Float[Tensor, "n n_latents"]:
        """The same code with one column per latent. Memory `n * n_latents`: for small widths and tests."""
        dense = self.values.new_zeros(len(self), self.n_latents)
        # Unused slots may repeat an index that another slot uses, so add (their 0) rather than write.
        return dense.scatter_add_(1, self.indices, self.values)

    def decode(self, atoms: Float[Tensor, "n_latents d"]) -> Float[Tensor, "n d"]:
        """`sum_j values[:, j] * atoms[indices[:, j]]`, touching only the atoms in use. Differentiable in both."""
        if atoms.shape[0] != self.n_latents:
            raise ValueError(
                f"the code is over n_latents={self.n_latents} but {atoms.shape[0]} atoms came; "
                "decode with the dictionary that wrote the code"
            )
        if self.k == 0 or len(self) == 0:
            return atoms.new_zeros(len(self), atoms.shape[1])
        values = self.values.to(atoms.dtype)
        return torch.nn.functional.embedding_bag(self.indices, atoms, per_sample_weights=values, mode="sum")

    def l0(self) -> Int64[Tensor, " n"]:
        """Number of non-zero latents in each row."""
        return (self.values != 0).sum(dim=1)

    def support(self) -> Int64[Tensor, "n k"]:
        """Latent of each slot in use, -1 in the others: what `refit` takes."""
        return self.indices.masked_fill(self.values == 0, -1)

    def to(self, device: torch.device | str) -> "SparseCode":
        return SparseCode(self.indices.to(device), self.values.to(device), self.n_latents)

    @staticmethod
    def from_dense(z: Float[Tensor, "n n_latents"], k: int | None = None) -> "SparseCode":
        """Keep the `k` entries of largest magnitude in each row; all non-zero ones when `k` is not given.

        Equal magnitudes are taken in the order of their index, so that the result does not depend on the device.

        Raises:
            ValueError: `k` is outside `[0, n_latents]`.
        """
        n_latents = z.shape[1]
        if k is None:
            k = int((z != 0).sum(dim=1).max()) if len(z) else 0
        if not 0 <= k <= n_latents:
            raise ValueError(f"k must be between 0 and n_latents={n_latents}, got k={k}")
        order = z.abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
        return SparseCode(order, z.gather(1, order), n_latents)

    @staticmethod
    def cat(codes: Sequence["SparseCode"]) -> "SparseCode":
        """Codes of one dictionary, one below the other; narrower ones are padded with unused slots.

        Raises:
            ValueError: no code came, or the codes are over different dictionaries.
        """
        widths = {code.n_latents for code in codes}
        if len(widths) != 1:
            raise ValueError(f"codes must share one n_latents, got {sorted(widths)}")
        k = max(code.k for code in codes)
        pad = torch.nn.functional.pad
        return SparseCode(
            torch.cat([pad(code.indices, (0, k - code.k)) for code in codes]),
            torch.cat([pad(code.values, (0, k - code.k)) for code in codes]),
            widths.pop(),
        )
