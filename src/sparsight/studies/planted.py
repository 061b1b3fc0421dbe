"""Planted activations: random atoms, known sparse codes, noise. Studies and tests know the truth about them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode


@dataclass(frozen=True)
class Planted:
    """Activations with the truth behind them, in float64.

    Attributes:
        x: Activations.
        atoms: True directions, of unit norm.
        code: True code; `code.decode(atoms)` is `x` without its noise.
    """

    x: Float64[Tensor, "n d"]
    atoms: Float64[Tensor, "n_latents d"]
    code: SparseCode

    @property
    def support(self) -> Int64[Tensor, "n k"]:
        """True latents of each row."""
        return self.code.indices

    @property
    def k(self) -> int:
        """True latents in each row."""
        return self.code.k

    def recall(self, code: SparseCode) -> float:
        """Share of the truly active latents that a code uses."""
        found = self.support[:, :, None] == code.support()[:, None, :]
        return float(found.any(dim=2).double().mean())

    def fvu(self, x_hat: Float[Tensor, "n d"]) -> float:
        """Share of the energy `|x|^2` that a reconstruction leaves: FVU about 0."""
        return float((self.x - x_hat).square().sum() / self.x.square().sum())


def unit(vectors: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Vectors at length 1."""
    scaled: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return scaled


def weights(shape: tuple[int, ...], generator: torch.Generator, *, least: float | int = 1) -> Float64[Tensor, "..."]:
    """`least + Exp(1)`: by default bounded away from zero, with a tail."""
    return least - torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-12).log()


def random_atoms(
    seed: int,
    d: int,
    n_latents: int,
    k: int,
    noise: float | int,
    n: int,
    *,
    coherence: float | int = 0.0,
    least: float | int = 1,
) -> Planted:
    """Random unit atoms, `k` of them active in each row.

    Args:
        seed: Of everything.
        d, n_latents, k, n: Sizes.
        noise: Standard deviation of the Gaussian noise of each coordinate.
        coherence: Weight of a direction that all atoms share, against 1 for their own.
        least: Smallest true weight.
    """
    g = torch.Generator().manual_seed(seed)
    atoms = torch.randn(n_latents, d, generator=g, dtype=torch.float64)
    shared = unit(torch.randn(d, generator=g, dtype=torch.float64)) * d**0.5
    atoms = unit(atoms + coherence * shared)
    support = torch.rand(n, n_latents, generator=g).argsort(dim=1)[:, :k]
    code = SparseCode(support, weights((n, k), g, least=least), n_latents)
    return Planted(code.decode(atoms) + noise * torch.randn(n, d, generator=g, dtype=torch.float64), atoms, code)


def paired_atoms(seed: int, cosine: float | int, *, both: bool, n: int, d: int = 64, n_pairs: int = 64) -> Planted:
    """Atoms in pairs at a given cosine; in each row three pairs are active, with both members or with the first."""
    g = torch.Generator().manual_seed(seed)
    first = unit(torch.randn(n_pairs, d, generator=g, dtype=torch.float64))
    other = torch.randn(n_pairs, d, generator=g, dtype=torch.float64)
    other = unit(other - (other * first).sum(1, keepdim=True) * first)
    second = cosine * first + (1 - cosine**2) ** 0.5 * other
    atoms = torch.stack([first, second], dim=1).flatten(0, 1)
    pairs = torch.rand(n, n_pairs, generator=g).argsort(dim=1)[:, :3]
    support = torch.cat([2 * pairs, 2 * pairs + 1], dim=1) if both else 2 * pairs
    code = SparseCode(support, weights(tuple(support.shape), g), 2 * n_pairs)
    return Planted(code.decode(atoms), atoms, code)


def tied_encoder(planted: Planted, k: int) -> SparseCode:
    """The `k` largest positive inner products of each row with the true atoms: a linear encoder tied to its decoder."""
    return SparseCode.from_dense((planted.x @ planted.atoms.T).clamp_min(0), k)
