"""`sparsight train --architecture relu|gated`: a weight or a number of latents, never both, never neither."""

import pytest
import torch

from sparsight.cli.train import _config
from sparsight.dictionaries import Gated, ReLU
from sparsight.training import Training, train


def test_k_is_a_target_and_l1_a_weight():
    assert _config("relu", 64, 8, None) == ReLU(64, target_l0=8.0)
    assert _config("gated", 64, 8, None) == Gated(64, target_l0=8.0)
    assert _config("relu", 64, None, 0.1) == ReLU(64, 0.1)
    assert _config("gated", 64, None, 0.1) == Gated(64, 0.1)


@pytest.mark.parametrize(
    ("architecture", "k", "l1", "said"),
    [
        ("relu", None, None, "relu needs either --k, .* or --l1"),
        ("gated", 8, 0.1, "gated needs either --k, .* or --l1"),
        ("topk", None, 0.1, "--l1 is a setting of relu and gated, got --architecture topk; give --k"),
        ("topk", None, None, "topk needs --k"),
    ],
)
def test_anything_else_is_refused_with_what_is_missing(architecture, k, l1, said):
    with pytest.raises(ValueError, match=said):
        _config(architecture, 64, k, l1)


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
