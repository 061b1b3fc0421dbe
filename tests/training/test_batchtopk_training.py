"""BatchTopK and Matryoshka in training: the threshold is calibrated on held-out activations."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import BatchTopK, DictionaryConfig, Matryoshka
from sparsight.training import Training, train

CONFIGS = [BatchTopK(32, 2, dead_after=1000), Matryoshka(32, 2, (8,), dead_after=1000)]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)


def planted(n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(32, 16, generator=g), dim=1)
    support = torch.rand(n, 32, generator=g).topk(2, dim=1).indices
    return torch.zeros(n, 32).scatter(1, support, torch.rand(n, 2, generator=g) + 0.5) @ atoms


@every_config
def test_a_trained_dictionary_has_the_l0_asked_for_on_new_data_in_raw_units(
    config: DictionaryConfig, tmp_path: Path
) -> None:
    x = 30 * planted(24_000) + 5
    [run] = train(x[:20_000], [config], Training(n_tokens=30_000, batch_size=256, lr=5e-3), out=tmp_path)
    assert float(run.dictionary.encode(x[20_000:]).l0().float().mean()) == pytest.approx(2, rel=0.04)
