"""Whole runs with the compiled step end where runs with the dense step end."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparsight.dictionaries import BatchTopK, DictionaryConfig, Gated, Matryoshka, ReLU, TopK
from sparsight.evaluation.metrics import fvu
from sparsight.training import Run, Training, train

pytest.importorskip("numba")


def planted(seed: int, n: int) -> Tensor:
    """Sums of 4 of 256 directions in 48 dimensions, with noise; always the same directions for a seed."""
    g = torch.Generator().manual_seed(1000 + seed)
    directions = torch.nn.functional.normalize(torch.randn(256, 48, generator=g), dim=1)
    latents = torch.randint(0, 256, (n, 4), generator=g)
    weights = 0.5 + torch.rand(n, 4, generator=g)
    return torch.einsum("nk,nkd->nd", weights, directions[latents]) + 0.02 * torch.randn(n, 48, generator=g)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        TopK(512, 4),
        BatchTopK(512, 4),
        Matryoshka(512, 4, widths=(64, 256)),
        ReLU(512, target_l0=4),
        Gated(512, target_l0=4),
    ],
)
def test_two_thousand_steps_end_alike(config: DictionaryConfig, tmp_path: Path) -> None:
    """Loss curve, final FVU and share of dead latents: the difference of two steps is no larger than that of seeds."""
    found: dict[str, list[tuple[float, float, Tensor]]] = {"sparse": [], "dense": []}
    for seed in range(3):
        x = planted(seed, 70_000)
        for step, results in found.items():
            training = Training(n_tokens=2000 * 256, batch_size=256, lr=2e-3, seed=seed, step=step, log_every=50)
            (run,) = train(x[:64_000], [config], training, out=tmp_path / f"{step}-{seed}")
            results.append((*ends(run, x[64_000:]), curve(run)))
    for of_sparse, of_dense in zip(found["sparse"], found["dense"], strict=True):
        assert of_sparse[0] == pytest.approx(of_dense[0], rel=0.05), "FVU"
        assert of_sparse[1] == pytest.approx(of_dense[1], abs=0.02), "dead"
        assert float((of_sparse[2] / of_dense[2]).log().abs().mean()) < 0.05, "curve"
    mean = {step: sum(result[0] for result in results) / 3 for step, results in found.items()}
    assert mean["sparse"] == pytest.approx(mean["dense"], rel=0.03)
    print({step: [(round(r[0], 5), round(r[1], 4)) for r in results] for step, results in found.items()})


def ends(run: Run, x: Tensor) -> tuple[float, float]:
    """FVU on rows that were not trained on, and the share of latents that are silent there."""
    code = run.dictionary.encode(x)
    x_hat = run.dictionary.decode(code)
    fired = torch.zeros(run.dictionary.n_latents, dtype=torch.bool)
    fired[code.indices[code.values > 0]] = True
    return float(fvu(x, x_hat)), 1 - float(fired.float().mean())


def curve(run: Run) -> Tensor:
    return torch.tensor([line["loss"] for line in run.metrics if line["step"] >= 100])
