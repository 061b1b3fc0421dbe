"""Harvest on Ray: the store of several processes is that of one, also when one of them is killed.

Marked `ray` and not part of `make test`: they start Ray, which takes its time and is a large, optional extra (`scale`).
`make test-ray` installs it and runs them. Ray itself is started once for all of them, and most share two workers: each
process imports PyTorch, which is most of what these tests take.
"""

import json
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from activations_fake import SITES, FakeModel, texts

from sparsight.activations import ActivationStore, RayReaders, harvest
from sparsight.cli import main
from sparsight.errors import DataError, ModelError
from sparsight.models.organism import corpus

SMALL = {"n_tokens": 1500, "context": 16, "shard_rows": 150, "batch_size": 3}


class Mortal(FakeModel):
    """Kills its own process in the fifth pass, the first `times` times that any worker gets so far."""

    def __init__(self, folder: str, times: int) -> None:
        super().__init__()
        self.folder, self.times, self.passes = Path(folder), times, 0

    def activations(self, tokens, sites):
        self.passes += 1
        if self.passes == 5:
            for death in range(self.times):
                try:
                    (self.folder / f"death-{death}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().activations(tokens, sites)


def contents(folder: Path) -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    record = json.loads(files["store.json"])
    del record["command"]
    return {**files, "store.json": json.dumps(record).encode()}


def collect(out: Path, readers=None, resume=False, **more) -> ActivationStore:
    return harvest(FakeModel(), texts(100), SITES, out, readers=readers, resume=resume, **{**SMALL, **more})


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """What processes that Ray starts need: the model of these tests, one thread each, and nothing sent to anybody."""
    there = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(Path(__file__).parent), there])))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="module")
def cluster(environment: None) -> Iterator[None]:
    """Ray, running before anybody asks for workers."""
    import ray

    ray.init(num_cpus=2, log_to_driver=False, logging_level="error", include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pair(cluster: None) -> Iterator[RayReaders]:
    """Two workers, for one harvest after the other."""
    with RayReaders(FakeModel, 2, cpus=0.25) as readers:
        yield readers


# Ray takes half a minute to start on a machine that has little else to do, and minutes on one that has.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]


def test_ray_is_started_where_none_runs_and_ended_and_what_cannot_be_stored_is_refused_as_by_one_process(
    tmp_path, environment
):
    import ray

    assert not ray.is_initialized()
    with RayReaders(partial(FakeModel, 50), 1) as readers, pytest.raises(DataError, match="is not finite"):
        collect(tmp_path / "store", readers)
    assert not ray.is_initialized()


@pytest.mark.parametrize("more", [{}, {"packed": True, "dtype": "int8"}, {"max_norm": 1.5}])
def test_workers_make_the_store_that_one_process_makes(tmp_path, pair, more):
    whole = collect(tmp_path / "whole", **more)
    made = collect(tmp_path / "store", pair, **more)
    assert contents(made.path) == contents(whole.path)


def test_killed_workers_leave_no_trace(tmp_path, cluster):
    whole = collect(tmp_path / "whole")
    with RayReaders(partial(Mortal, str(tmp_path), 3), 2, cpus=0.25) as readers:
        made = collect(tmp_path / "store", readers)
    assert len(list(tmp_path.glob("death-*"))) == 3
    assert contents(made.path) == contents(whole.path)


def test_workers_that_die_for_good_leave_a_store_that_can_be_resumed(tmp_path, cluster, pair):
    whole = collect(tmp_path / "whole")
    with (
        RayReaders(partial(Mortal, str(tmp_path), 1000), 1, cpus=0.25, restarts=1) as readers,
        pytest.raises(Exception, match=r"a worker failed for good .*--resume"),
    ):
        collect(tmp_path / "store", readers)
    assert contents(collect(tmp_path / "store", pair, resume=True).path) == contents(whole.path)


def test_the_command_spreads_a_model_over_workers(tmp_path, cluster):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(document.text for document in corpus(0, 60)))
    command = ["harvest", "--text", text, "--site", "2.resid_post", "--tokens", 600, "--batch-size", 8, "--quiet"]
    for name, more in (("alone", []), ("spread", ["--ray", "local", "--workers", 1])):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in (*command, *more, "--out", tmp_path / name)])
        assert not stop.value.code
    alone, spread = ActivationStore(tmp_path / "alone"), ActivationStore(tmp_path / "spread")
    rows = slice(0, 600)
    assert all(torch.equal(getattr(spread.tokens(rows), n), value) for n, value in vars(alone.tokens(rows)).items())
    here, there = alone.rows("2.resid_post", rows), spread.rows("2.resid_post", rows)
    torch.testing.assert_close(there, here, rtol=2e-3, atol=2e-3)  # float16; a worker may round otherwise


def test_a_process_stays_on_its_cluster(cluster):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ModelError, match=f"is on the Ray cluster at .* already, so not on {address}"):
            RayReaders(FakeModel, 1, address=address)


def test_a_missing_cluster_is_refused_in_one_line(cluster):
    with pytest.raises(ModelError, match=r"no Ray cluster at 127\.0\.0\.1:1") as error:
        RayReaders(FakeModel, 1, address="127.0.0.1:1")
    assert "\n" not in str(error.value)
