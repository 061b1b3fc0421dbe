"""Planted problems whose outcomes are tabulated in `docs/coding.md`, drawn in torch float64."""

import torch
from torch import Tensor


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def weights(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """`1 + Exp(1)`: bounded away from zero, with a tail."""
    return 1 - torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-12).log()


def random_problem(
    seed: int, d: int, n_latents: int, k: int, noise: float, n: int, coherence: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, atoms and true supports; with `coherence` the atoms share a mean direction of that weight."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.randn(n_latents, d, generator=g, dtype=torch.float64)
    shared = unit(torch.randn(d, generator=g, dtype=torch.float64)) * d**0.5
    atoms = unit(atoms + coherence * shared)
    support = torch.rand(n, n_latents, generator=g).argsort(dim=1)[:, :k]
    x = torch.einsum("nk,nkd->nd", weights((n, k), g), atoms[support])
    return x + noise * torch.randn(n, d, generator=g, dtype=torch.float64), atoms, support


def paired_problem(
    seed: int, cosine: float, *, both: bool, n: int, d: int = 64, n_pairs: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Atoms in pairs at a given cosine; in each signal three pairs are active, with both members or with the first."""
    g = torch.Generator().manual_seed(seed)
    first = unit(torch.randn(n_pairs, d, generator=g, dtype=torch.float64))
    other = torch.randn(n_pairs, d, generator=g, dtype=torch.float64)
    other = unit(other - (other * first).sum(1, keepdim=True) * first)
    second = cosine * first + (1 - cosine**2) ** 0.5 * other
    atoms = torch.stack([first, second], dim=1).flatten(0, 1)
    pairs = torch.rand(n, n_pairs, generator=g).argsort(dim=1)[:, :3]
    support = torch.cat([2 * pairs, 2 * pairs + 1], dim=1) if both else 2 * pairs
    x = torch.einsum("nk,nkd->nd", weights(tuple(support.shape), g), atoms[support])
    return x, atoms, support
