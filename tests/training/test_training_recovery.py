"""Planted truth: dictionaries find the directions that made the data, and reach the sparsity they were asked for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import JumpReLU, TopK
from sparsight.training import Training, train

D, TRUE, K = 32, 64, 4


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that are sums of 4 of 64 random directions with weights in [0.5, 1.5], and the directions."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(TRUE, D, generator=g), dim=1)
    support = torch.rand(n, TRUE, generator=g).topk(K, dim=1).indices
    weights = torch.rand(n, K, generator=g) + 0.5
    return torch.zeros(n, TRUE).scatter(1, support, weights) @ atoms, atoms


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_topk_finds_most_planted_atoms_soon(seed: int, tmp_path: Path) -> None:
    x, atoms = planted(20_000, seed)
    settings = Training(n_tokens=100_000, batch_size=512, lr=8e-3, seed=seed)
    run = train(x, [TopK(TRUE, K, dead_after=5_000)], settings, out=tmp_path)[0]
    best = (atoms @ run.dictionary.atoms.T).amax(dim=1)
    assert float((best > 0.9).float().mean()) >= 0.65  # benchmarks/recovery.py trains for longer


@pytest.mark.parametrize("target", [2.0, 8.0])
def test_jumprelu_reaches_the_l0_that_was_asked_for_on_new_data(target: float, tmp_path: Path) -> None:
    x, _ = planted(22_000, 0)
    settings = Training(n_tokens=120_000, batch_size=512, lr=5e-3)
    run = train(x[:20_000], [JumpReLU(TRUE, target_l0=target, dead_after=5_000)], settings, out=tmp_path)[0]
    assert float(run.dictionary.encode(x[20_000:]).l0().float().mean()) == pytest.approx(target, rel=0.1)
