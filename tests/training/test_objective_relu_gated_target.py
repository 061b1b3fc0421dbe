"""ReLU and Gated reach the L0 that was asked for."""

import pytest
import torch

from sparsight.dictionaries import Gated, ReLU
from sparsight.training import Training, train


def test_relu_and_gated_reach_the_l0_that_was_asked_for(tmp_path):
    """Sums of 4 of 64 directions; 4 and 12 active latents are asked for, and found on rows not trained on."""
    g = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(64, 32, generator=g), dim=1)
    support = torch.rand(12_000, 64, generator=g).topk(4, dim=1).indices
    x = torch.zeros(12_000, 64).scatter(1, support, torch.rand(12_000, 4, generator=g) + 0.5) @ atoms
    configs = [ReLU(64, target_l0=12.0), ReLU(64, target_l0=4.0, norms="free"), Gated(64, target_l0=4.0)]
    for config, run in zip(
        configs,
        train(x[:10_000], configs, Training(n_tokens=100_000, batch_size=256, lr=5e-3), out=tmp_path),
        strict=True,
    ):
        found = float(run.dictionary.encode(x[10_000:]).l0().float().mean())
        assert found == pytest.approx(config.target_l0, rel=0.1), run.folder.name
