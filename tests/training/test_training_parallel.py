"""Two processes give what one gives, whether they share the batch or the latents."""

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import parallel_worker
import pytest
import torch

from sparsight.formats import load_dictionary
from sparsight.training.log import read_metrics
from sparsight.training.parallel.processes import Processes, check_processes, over_batch
from sparsight.training.settings import Training

FOLDERS = {
    "data": ["topk-64-k2", "jumprelu-16-target3", "gated-16-l1_0.05", "pursuit-16-k3"],
    "sites": ["transcoder-24-k3-skip", "crosscoder-24-k3"],
    "latents": ["topk-64-k2"],
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs, by two processes."""
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, parallel_worker.__file__, str(out)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@lru_cache
def one(out: Path) -> Path:
    """The same by this process alone."""
    for kind in parallel_worker.RUNS:
        parallel_worker.run(kind, out)
    return out


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in FOLDERS.items() for name in names])
def test_two_processes_give_the_weights_of_one(
    kind: str, name: str, two: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = one(tmp_path_factory.getbasetemp() / "one")
    a, b = load_dictionary(alone / kind / name), load_dictionary(two / kind / name)
    for (parameter, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4, msg=lambda m, n=parameter: f"{name} {n}: {m}")
    lines, others = (
        read_metrics(alone / kind / name / "metrics.jsonl"),
        read_metrics(two / kind / name / "metrics.jsonl"),
    )
    assert [line["step"] for line in others] == [line["step"] for line in lines]
    for line, other in zip(lines, others, strict=True):
        for key in ("loss", "fvu", "l0", "dead"):
            assert other[key] == pytest.approx(line[key], rel=1e-3, abs=1e-4), key


def test_the_planted_run_has_dead_latents_to_revive(tmp_path_factory: pytest.TempPathFactory) -> None:
    alone = one(tmp_path_factory.getbasetemp() / "one")
    lines = read_metrics(alone / "latents" / "topk-64-k2" / "metrics.jsonl")
    assert any("auxiliary" in line["parts"] for line in lines)


def test_a_batch_that_has_no_equal_shares_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=33 cannot be shared out evenly among 2 processes"):
        check_processes(Processes(0, 2), Training(n_tokens=1, batch_size=33))


def test_one_process_changes_nothing() -> None:
    x = torch.arange(4.0)
    alone = Processes()
    assert alone.share(x) is x
    assert over_batch(x) is x
    assert alone.on_main(lambda: 3) == 3
    assert not alone.agree(False)
