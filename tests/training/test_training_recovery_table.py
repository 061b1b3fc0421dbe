"""Every architecture finds the planted atoms: the table of docs/dictionaries.md."""

import runpy
from pathlib import Path
from typing import Any

import pytest

BENCHMARK: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "recovery.py"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", BENCHMARK["TRIALS"])
def test_every_architecture_recovers_the_planted_atoms(name: str, seed: int) -> None:
    result = BENCHMARK["measure"](BENCHMARK["TRIALS"][name], seed)
    assert result.matched_cosine > 0.9
    assert result.l0 < 1.1 * BENCHMARK["K"]
