"""Planted truth: how much of the directions that made the data each architecture finds.

    python benchmarks/recovery.py                     # the table of docs/dictionaries.md
    python benchmarks/recovery.py --only topk --seeds 1

Data are sums of 4 of 64 random unit directions in 32 dimensions, each active set equally likely, weights uniform in
[0.5, 1.5], no noise. Dictionaries have the right width and are told the right sparsity. The matched cosine is the mean
over the true directions of the cosine to their partner under the best one-to-one assignment; 1 is perfect.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import BatchTopK, DictionaryConfig, Gated, JumpReLU, Matryoshka, Pursuit, ReLU, TopK
from sparsight.evaluation import recovery
from sparsight.training import Training, train

D, TRUE, K = 32, 64, 4
REVIVE: dict[str, Any] = {"dead_after": 5_000}


@dataclass(frozen=True)
class Trial:
    """An architecture at the right width, and what of the common training settings it changes."""

    config: DictionaryConfig
    training: dict[str, Any] = field(default_factory=dict)


# A new architecture joins by one line.
TRIALS = {
    "topk": Trial(TopK(TRUE, K, **REVIVE)),
    "batchtopk": Trial(BatchTopK(TRUE, K, **REVIVE)),
    "matryoshka": Trial(Matryoshka(TRUE, K, (TRUE // 2,), **REVIVE)),
    "matryoshka, sampled": Trial(Matryoshka(TRUE, K, sampled=3, **REVIVE)),
    "jumprelu": Trial(JumpReLU(TRUE, target_l0=K, **REVIVE)),
    "relu": Trial(ReLU(TRUE, target_l0=K, **REVIVE)),
    "gated": Trial(Gated(TRUE, target_l0=K, **REVIVE)),
    "pursuit": Trial(Pursuit(TRUE, K, **REVIVE)),
}


@dataclass(frozen=True)
class Result:
    """One trained dictionary against the truth, measured on new data."""

    matched_cosine: float
    recovered: float
    fvu: float
    l0: float


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Activations and the directions that they were made of."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(TRUE, D, generator=g), dim=1)
    support = torch.rand(n, TRUE, generator=g).topk(K, dim=1).indices
    weights = torch.rand(n, K, generator=g) + 0.5
    return torch.zeros(n, TRUE).scatter(1, support, weights) @ atoms, atoms


def measure(trial: Trial, seed: int, n_tokens: int = 400_000) -> Result:
    """Train on planted data of this seed and compare."""
    x, atoms = planted(60_000, seed)
    settings = Training(**{"n_tokens": n_tokens, "batch_size": 512, "lr": 8e-3, "seed": seed, **trial.training})
    with tempfile.TemporaryDirectory() as folder:
        [run] = train(x[:50_000], [trial.config], settings, out=Path(folder))
    fresh = x[50_000:]
    found = recovery(run.dictionary.atoms, atoms)
    code = run.dictionary.encode(fresh)
    residual = fresh - run.dictionary.decode(code)
    return Result(
        found.matched_cosine,
        found.fraction_recovered,
        float(residual.square().sum() / (fresh - fresh.mean(dim=0)).square().sum()),
        float(code.l0().float().mean()),
    )


def row(name: str, results: list[Result]) -> str:
    cosines = [result.matched_cosine for result in results]
    means = [statistics.mean(getattr(result, what) for result in results) for what in ("recovered", "fvu", "l0")]
    return (
        f"| {name} | {statistics.mean(cosines):.3f} | {min(cosines):.3f} | {means[0]:.2f} | {means[1]:.3f} "
        f"| {means[2]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="data and dictionaries from this many seeds")
    parser.add_argument("--only", choices=list(TRIALS), help="one architecture")
    arguments = parser.parse_args()
    print("| architecture | matched cosine, mean | lowest of the seeds | found at cosine 0.9 | FVU | L0 |")
    print("|---|---|---|---|---|---|")
    for name, trial in TRIALS.items():
        if arguments.only in (None, name):
            print(row(name, [measure(trial, seed) for seed in range(arguments.seeds)]), flush=True)


if __name__ == "__main__":
    main()
