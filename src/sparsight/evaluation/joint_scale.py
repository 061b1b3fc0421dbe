"""A factor for each latent, all fitted together, from sums that stream."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode

_BLOCK = 1 << 16  # pairs whose atoms are gathered at once


@dataclass(frozen=True, eq=False)
class JointScaleSums:
    """Normal equations of the best factor for each latent, over the pairs of latents that fire together.

    The factors minimise `sum |x - sum_j s_j z_j d_j|^2`: `A s = c` with `A_jl = <d_j, d_l> sum z_j z_l` and
    `c_j = sum z_j <d_j, x>`. `s_j` above 1 says that latent `j` is shrunk, by `1 / s_j`. Fitting each alone, the others
    held at 1, is wrong wherever latents fire together. `sparsight.coding.fit_scale` gives the same from all rows at
    once; here memory grows with the pairs that ever fire together (16 bytes each), not with the rows.

    Attributes:
        n: Tokens.
        pairs: Pairs of latents `j <= l`, each as `j * n_latents + l`, ascending.
        products: `sum z_j z_l` of each pair.
        projections: `sum z_j <d_j, x>` of each latent.
        sum_x_sq: `sum |x|^2`.
    """

    n: int
    pairs: Int64[Tensor, " pairs"]
    products: Float64[Tensor, " pairs"]
    projections: Float64[Tensor, " n_latents"]
    sum_x_sq: float

    @staticmethod
    def of(x: Float[Tensor, "n d"], code: SparseCode, atoms: Float[Tensor, "n_latents d"]) -> "JointScaleSums":
        """Sums of one batch.

        Args:
            x: Activations less what is reconstructed when every latent is silent.
            code: Their code.
            atoms: Directions of the latents.
        Raises:
            ValueError: the code is of other activations or another dictionary.
        """
        if len(code) != len(x) or code.n_latents != len(atoms):
            raise ValueError(
                f"the code must be of these {len(x)} activations over {len(atoms)} atoms, "
                f"got {len(code)} rows over {code.n_latents}"
            )
        x, values = x.detach().double(), code.values.detach().double()
        n_latents, indices = code.n_latents, code.indices
        projections = x.new_zeros(n_latents)
        for slot in range(code.k):
            chosen = atoms.detach()[indices[:, slot]].double()
            projections.index_add_(0, indices[:, slot], values[:, slot] * (chosen * x).sum(dim=1))
        first, second = torch.triu_indices(code.k, code.k, device=x.device)
        products = (values[:, first] * values[:, second]).flatten()
        one, other = indices[:, first].flatten(), indices[:, second].flatten()
        pairs = torch.minimum(one, other) * n_latents + torch.maximum(one, other)
        there = products != 0
        pairs, products = _merged(pairs[there], products[there])
        return JointScaleSums(len(x), pairs, products, projections, x.square().sum().item())

    def __add__(self, other: "JointScaleSums") -> "JointScaleSums":
        pairs, products = _merged(torch.cat([self.pairs, other.pairs]), torch.cat([self.products, other.products]))
        return JointScaleSums(
            self.n + other.n, pairs, products, self.projections + other.projections, self.sum_x_sq + other.sum_x_sq
        )

    def scales(self, atoms: Float[Tensor, "n_latents d"]) -> Float64[Tensor, " n_latents"]:
        """The factors, 1 for a latent that never fires; not constrained to be positive.

        Conjugate gradients from 1, preconditioned by the diagonal: where latents cannot be told apart (always together,
        in one ratio) the answer is the one nearest to 1.
        """
        matrix = self._matrix(atoms)
        diagonal = self._diagonal(matrix)
        weight = torch.where(diagonal > 0, 1 / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny), 0)
        scales = torch.ones_like(self.projections)
        residual = self.projections - self._times(matrix, scales)
        downhill = weight * residual
        slope = start = (residual * downhill).sum()
        direction = downhill
        for _ in range(min(10 * len(scales), 2000)):
            if slope <= 1e-28 * start or slope == 0:
                break
            moved = self._times(matrix, direction)
            step = slope / (direction * moved).sum()
            scales = scales + step * direction
            residual = residual - step * moved
            downhill = weight * residual
            slope, before = (residual * downhill).sum(), slope
            direction = downhill + (slope / before) * direction
        return scales

    def residual(self, atoms: Float[Tensor, "n_latents d"], scales: Float64[Tensor, " n_latents"]) -> float:
        """`sum |x - sum_j s_j z_j d_j|^2` for any factors."""
        explained = 2 * (scales @ self.projections) - scales @ self._times(self._matrix(atoms), scales)
        return self.sum_x_sq - explained.item()

    def gain(self, atoms: Float[Tensor, "n_latents d"]) -> float:
        """Loss that the best factors remove, as a fraction of `sum |x|^2`; at least that of one factor for all."""
        now, best = (self.residual(atoms, s) for s in (torch.ones_like(self.projections), self.scales(atoms)))
        return max(0.0, now - best) / self.sum_x_sq if self.sum_x_sq > 0 else 0.0

    def _matrix(self, atoms: Tensor) -> Tensor:
        """`A_jl` of each pair."""
        return self.products * _inner(atoms, self.pairs // len(self.projections), self.pairs % len(self.projections))

    def _diagonal(self, matrix: Tensor) -> Tensor:
        j, other = self.pairs // len(self.projections), self.pairs % len(self.projections)
        own = j == other
        return torch.zeros_like(self.projections).index_add_(0, j[own], matrix[own])

    def _times(self, matrix: Tensor, scales: Tensor) -> Tensor:
        """`A scales`, each pair standing for both its places."""
        j, other = self.pairs // len(scales), self.pairs % len(scales)
        product = torch.zeros_like(scales).index_add_(0, j, matrix * scales[other])
        off = j != other
        return product.index_add_(0, other[off], matrix[off] * scales[j[off]])


def _inner(atoms: Tensor, j: Tensor, other: Tensor) -> Tensor:
    found = [
        (atoms.detach()[a].double() * atoms.detach()[b].double()).sum(dim=1)
        for a, b in zip(torch.split(j, _BLOCK), torch.split(other, _BLOCK), strict=True)
    ]
    return torch.cat(found) if found else atoms.new_zeros(0, dtype=torch.float64)


def _merged(pairs: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Each pair once, with the sum of its products."""
    once, place = torch.unique(pairs, return_inverse=True)
    return once, torch.zeros(len(once), dtype=torch.float64, device=once.device).index_add_(0, place, products)
