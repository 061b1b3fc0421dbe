"""What each process of `torchrun` does in test_training_parallel.py: train, and say what came out."""

import sys
from pathlib import Path

import torch

from sparsight.dictionaries import Crosscoder, DictionaryConfig, Gated, JumpReLU, Pursuit, TopK, Transcoder
from sparsight.training import Training, train

DATA = [TopK(64, 2, dead_after=64, k_aux=3), JumpReLU(16, target_l0=3, dead_after=64), Gated(16, 0.05)]
RUNS: dict[str, tuple[list[DictionaryConfig], dict[str, object]]] = {
    "data": ([*DATA, Pursuit(16, 3)], {}),
    "sites": ([Transcoder(24, 3, skip=True, dead_after=64), Crosscoder(24, 3, dead_after=64)], {}),
    "latents": ([TopK(64, 2, dead_after=64, k_aux=3)], {"parallel": "latents", "ema": 0.9}),
}


def x(kind: str) -> torch.Tensor | list[torch.Tensor]:
    """Activations of one site, or of two of unequal width."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(250, 8, generator=generator)
    return [one, 30 * torch.randn(250, 5, generator=generator)] if kind == "sites" else one


def run(kind: str, out: Path) -> None:
    configs, given = RUNS[kind]
    settings = Training(n_tokens=12 * 32, batch_size=32, lr=0.01, log_every=4, normalization_tokens=64, **given)
    train(x(kind), configs, settings, out=out / kind, device="cpu")


if __name__ == "__main__":
    for kind in RUNS:
        run(kind, Path(sys.argv[1]))
