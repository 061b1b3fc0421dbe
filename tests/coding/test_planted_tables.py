"""Planted data: which coder finds the true atoms, in numbers known beforehand."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.coding import (
    SparseCode,
    compare_span_overlap,
    fit_scale,
    gradient_pursuit,
    matching_pursuit,
    orthogonal_matching_pursuit,
    refit,
)
from sparsight.studies.planted import Planted, paired_atoms, random_atoms


def drawn(problem: Callable[..., Planted], *sizes: float, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, atoms and true supports."""
    planted = problem(*sizes, **options)
    return planted.x, planted.atoms, planted.support


def encoder(x: Tensor, atoms: Tensor, k: int) -> SparseCode:
    """The tied linear encoder's `k` largest inner products."""
    return SparseCode.from_dense((x @ atoms.T).clamp_min(0), k)


def recall(code: SparseCode, support: Tensor) -> Tensor:
    return (code.to_dense() != 0).double().gather(1, support).mean()


def fvu(x: Tensor, x_hat: Tensor) -> float:
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


# (d, n_latents, k, noise, coherence), then FVU of: encoder with the best scalar, encoder refitted, MP, GP, OMP
TABLE = [
    ((64, 256, 6, 0.0, 0.0), (0.216, 0.143, 0.022, 0.0068, 0.0011)),
    ((64, 512, 10, 0.05, 0.0), (0.251, 0.175, 0.043, 0.0130, 0.0068)),
    ((32, 512, 8, 0.05, 0.0), (0.247, 0.188, 0.060, 0.047, 0.037)),
]


@pytest.mark.parametrize(("setting", "expected"), TABLE)
def test_each_better_coder_loses_less_and_the_losses_are_of_the_tabulated_size(setting, expected):
    d, n_latents, k, noise, coherence = setting
    x, atoms, support = drawn(random_atoms, 0, d, n_latents, k, noise, 300, coherence=coherence)
    picked = encoder(x, atoms, k)
    scaled = fit_scale(x, picked, atoms, per_latent=False) * picked.decode(atoms)
    codes = [
        refit(x, atoms, picked.support()),
        matching_pursuit(x, atoms, k),
        gradient_pursuit(x, atoms, k),
        orthogonal_matching_pursuit(x, atoms, k),
    ]
    losses = [fvu(x, scaled), *(fvu(x, code.decode(atoms)) for code in codes)]
    assert all(better < worse for worse, better in pairwise(losses)), losses
    # Another draw of atoms and signals: the same size, not the same digits.
    for loss, known in zip(losses[:-1], expected[:-1], strict=True):
        assert 0.6 * known < loss < 1.6 * known, (losses, expected)
    assert recall(codes[2], support) > recall(codes[0], support) + 0.1


def test_with_coherent_atoms_matching_pursuit_is_worse_than_the_refitted_encoder_and_gradient_pursuit_better():
    x, atoms, support = drawn(random_atoms, 0, 64, 512, 10, 0.05, 300, coherence=1.0)
    picked = encoder(x, atoms, 10)
    losses = {
        "refit": fvu(x, refit(x, atoms, picked.support()).decode(atoms)),
        "mp": fvu(x, matching_pursuit(x, atoms, 10).decode(atoms)),
        "gp": fvu(x, gradient_pursuit(x, atoms, 10).decode(atoms)),
        "omp": fvu(x, orthogonal_matching_pursuit(x, atoms, 10).decode(atoms)),
    }
    assert losses["omp"] < losses["gp"] < losses["refit"] < losses["mp"], losses
    assert recall(gradient_pursuit(x, atoms, 10), support) > recall(picked, support) + 0.15


def test_pursuit_finds_the_atoms_of_incoherent_sparse_signals():
    x, atoms, support = drawn(random_atoms, 0, 64, 256, 6, 0.0, 1000)
    assert recall(gradient_pursuit(x, atoms, 6), support) >= 0.99
    assert recall(orthogonal_matching_pursuit(x, atoms, 6), support) >= 0.99
    assert recall(matching_pursuit(x, atoms, 6), support) >= 0.98


# recall of (GP, OMP, encoder)
NEAR_DUPLICATES = [
    (0.5, True, (0.997, 1.00, 0.870)),
    (0.8, True, (0.851, 0.982, 0.918)),
    (0.9, True, (0.741, 0.804, 0.939)),
    (0.95, True, (0.672, 0.557, 0.934)),
    (0.8, False, (0.999, 0.999, 0.655)),
    (0.95, False, (0.938, 0.941, 0.587)),
]


@pytest.mark.parametrize(("cosine", "both", "expected"), NEAR_DUPLICATES)
def test_recall_of_near_duplicates_is_that_of_the_table_within_three_standard_errors(cosine, both, expected):
    """The table was measured on one dictionary; its standard error is the spread over dictionaries."""
    k = 6 if both else 3
    found = []
    for seed in range(8):
        x, atoms, support = drawn(paired_atoms, seed, cosine, both=both, n=300)
        codes = gradient_pursuit(x, atoms, k), orthogonal_matching_pursuit(x, atoms, k), encoder(x, atoms, k)
        found.append(torch.stack([recall(code, support) for code in codes]))
    recalls = torch.stack(found)
    rounding = 0.0005
    error = 3 * recalls.std(dim=0) * (1 + 1 / 8) ** 0.5 + rounding
    difference = (recalls.mean(dim=0) - torch.tensor(expected, dtype=torch.float64)).abs()
    assert (difference <= error).all(), (recalls.mean(0), expected, error)


def test_pursuit_keeps_away_from_the_span_of_its_atoms_and_the_encoder_does_not():
    x, atoms, _ = drawn(paired_atoms, 0, 0.9, both=True, n=300)
    g = torch.Generator().manual_seed(0)
    code = orthogonal_matching_pursuit(x, atoms, 6)
    result = compare_span_overlap(code, atoms, generator=g, given=encoder(x, atoms, 6))
    assert result.given is not None
    assert result.given > 0.5  # half of its picks are the partner of an earlier one
    assert result.chosen < result.given - 0.1


def test_without_coherence_there_is_almost_no_such_effect():
    x, atoms, _ = drawn(random_atoms, 0, 64, 256, 6, 0.0, 300)
    result = compare_span_overlap(gradient_pursuit(x, atoms, 6), atoms, generator=torch.Generator().manual_seed(0))
    assert abs(result.chosen - result.random) < 0.03
