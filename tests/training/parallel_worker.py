"""What each process of `torchrun` does in test_training_parallel.py: train, and say what came out."""

import sys
from pathlib import Path

import torch

from sparsight.dictionaries import DictionaryConfig, Gated, JumpReLU, Pursuit, TopK
from sparsight.training import Training, train

DATA = [TopK(64, 2, dead_after=64, k_aux=3), JumpReLU(16, target_l0=3, dead_after=64), Gated(16, 0.05)]
RUNS: dict[str, tuple[list[DictionaryConfig], dict[str, object]]] = {
    "data": ([*DATA, Pursuit(16, 3)], {}),
    "latents": ([TopK(64, 2, dead_after=64, k_aux=3)], {"parallel": "latents", "ema": 0.9}),
}


def x() -> torch.Tensor:
    return torch.randn(250, 8, generator=torch.Generator().manual_seed(0))


def run(kind: str, out: Path) -> None:
    configs, given = RUNS[kind]
    settings = Training(n_tokens=12 * 32, batch_size=32, lr=0.01, log_every=4, normalization_tokens=64, **given)
    train(x(), configs, settings, out=out / kind, device="cpu")


if __name__ == "__main__":
    for kind in RUNS:
        run(kind, Path(sys.argv[1]))
