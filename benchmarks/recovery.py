"""Planted truth: how much of the directions that made the data each architecture finds.

    python benchmarks/recovery.py                     # the table of docs/dictionaries.md
    python benchmarks/recovery.py --only topk --seeds 1

Data are sums of 4 of 64 random unit directions in 32 dimensions, each active set equally likely, weights uniform in
[0.5, 1.5], no noise. Dictionaries have the right width and are told the right sparsity. The matched cosine is the mean
over the true directions of the cosine to their partner under the best one-to-one assignment; 1 is perfect.

Of the transcoder's two sites each has its own 64 directions, and those that it writes are compared. The crosscoder's
two sites share 44; the code of 10 more is written to the first site only, of 10 more to the second only.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.dictionaries import (
    BatchTopK,
    Crosscoder,
    DictionaryConfig,
    Gated,
    JumpReLU,
    Matryoshka,
    Pursuit,
    ReLU,
    TopK,
    Transcoder,
)
from sparsight.evaluation import recovery
from sparsight.training import Training, train

D, TRUE, K = 32, 64, 4
SHARED, OWN = 44, 10  # directions of both sites of a crosscoder, and of each alone
N_TOKENS = 400_000
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
    "matryoshka": Trial(Matryoshka(TRUE, K, (TRUE // 2,), weights=(0.1,), **REVIVE)),
    "matryoshka, sampled": Trial(Matryoshka(TRUE, K, sampled=3, weights=(0.1, 0.1), **REVIVE)),
    "jumprelu": Trial(JumpReLU(TRUE, target_l0=K, **REVIVE)),
    "relu": Trial(ReLU(TRUE, target_l0=K, **REVIVE)),
    "gated": Trial(Gated(TRUE, target_l0=K, **REVIVE)),
    "pursuit": Trial(Pursuit(TRUE, K, **REVIVE)),
    "transcoder": Trial(Transcoder(TRUE, K, **REVIVE)),
    "crosscoder": Trial(Crosscoder(TRUE, K, **REVIVE)),
}


@dataclass(frozen=True)
class Result:
    """One trained dictionary against the truth, measured on new data."""

    matched_cosine: float
    recovered: float
    fvu: float
    l0: float


def planted(config: DictionaryConfig, n: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Activations at each site, and the directions that a dictionary is to find: over all sites that it writes to."""
    g = torch.Generator().manual_seed(seed)
    directions = [torch.nn.functional.normalize(torch.randn(TRUE, D, generator=g), dim=1)]
    support = torch.rand(n, TRUE, generator=g).topk(K, dim=1).indices
    weights = torch.rand(n, K, generator=g) + 0.5
    code = torch.zeros(n, TRUE).scatter(1, support, weights)
    if config.n_sites[0] == 2:
        directions.append(torch.nn.functional.normalize(torch.randn(TRUE, D, generator=g), dim=1))
    if isinstance(config, Crosscoder):
        directions[1][SHARED : SHARED + OWN] = 0
        directions[0][SHARED + OWN :] = 0
    true = directions[-1] if isinstance(config, Transcoder) else torch.cat(directions, dim=1)
    return [code @ rows for rows in directions], torch.nn.functional.normalize(true, dim=1)


def measure(trial: Trial, seed: int, n_tokens: int = N_TOKENS) -> Result:
    """Train on planted data of this seed and compare."""
    sites, atoms = planted(trial.config, 60_000, seed)
    settings = Training(
        **{
            "n_tokens": n_tokens,
            "batch_size": 512,
            "lr": 8e-3,
            "seed": seed,
            "revive": "resample",
            **trial.training,
        }
    )
    seen = [x[:50_000] for x in sites]
    with tempfile.TemporaryDirectory() as folder:
        [run] = train(seen if len(seen) > 1 else seen[0], [trial.config], settings, out=Path(folder))
    fresh = [x[50_000:] for x in sites]
    read, written = torch.cat(fresh, dim=1), torch.cat(fresh, dim=1)
    if isinstance(trial.config, Transcoder):
        read, written = fresh
    found = recovery(run.dictionary.atoms, atoms)
    code = run.dictionary.encode(read)
    residual = written - run.dictionary.reconstruct(read, code)
    return Result(
        found.matched_cosine,
        found.fraction_recovered,
        float(residual.square().sum() / (written - written.mean(dim=0)).square().sum()),
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
