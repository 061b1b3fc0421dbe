"""A suite: its index says what its members are, it resumes to the same bytes, and it refuses what cannot work."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import suite_fake
from suite_fake import small_suite

from sparsight.activations import ActivationStore
from sparsight.errors import DataError, FormatError, ModelError, TrainingError
from sparsight.evaluation import evaluate
from sparsight.models import load_model, organism
from sparsight.suites import build as build_module
from sparsight.suites import plan_suite, read_suite, suite
from sparsight.training import Training


@pytest.fixture(scope="module")
def lm():
    return load_model("organism", device="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_suite(tmp_path_factory.mktemp("suite") / "suite")


def files_of_the_index(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("suite.json", "suite.parquet")}


def test_the_index_lists_every_combination_in_order(made):
    found = [(m.site, m.n_latents, m.target_l0) for m in made.members]
    assert found == [(s, w, k) for s in ("1.attn_z", "2.resid_post") for w in (32, 64) for k in (2, 4)]
    assert all((m.layer, m.kind) == (int(m.site[0]), m.site[2:]) for m in made.members)
    assert [m.folder for m in made.members][:2] == ["sites/1.attn_z/topk-32-k2", "sites/1.attn_z/topk-32-k4"]


def test_the_numbers_of_the_index_are_those_of_evaluate(made, lm):
    member = made.members[-1]
    store = ActivationStore(made.folder / "activations")
    again = evaluate(made.load(member), store, model=lm, loss_tokens=150)
    assert member.measured.fvu == again.fvu.value
    assert member.measured.l0 == again.l0.mean.value
    assert again.loss is not None
    assert member.measured.loss_added == again.loss.added.value
    assert member.measured.n_tokens == len(store.split("heldout"))


def test_the_table_holds_what_the_index_holds(made):
    import duckdb

    rows = duckdb.sql(
        f"SELECT site, n_latents, l0, fvu, frontier, config FROM '{made.folder}/suite.parquet'"
    ).fetchall()
    assert rows == [
        (m.site, m.n_latents, m.measured.l0, m.measured.fvu, m.frontier, json.dumps(m.config)) for m in made.members
    ]


def test_more_latents_per_token_explain_more(made):
    by = {(m.site, m.n_latents, m.target_l0): m.measured.fvu for m in made.members}
    assert all(by[s, w, 4] < by[s, w, 2] for s in ("1.attn_z", "2.resid_post") for w in (32, 64))


@pytest.mark.parametrize(
    "stage",
    ["training", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("harvest", "evaluation", "index"))],
)
def test_a_killed_suite_resumes_to_the_same_index(made, tmp_path, stage):
    out = tmp_path / "suite"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, suite_fake.__file__, stage, str(out)]
    died = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (out / "suite.json").exists()
    with pytest.raises(FormatError, match="unfinished"):
        read_suite(out)
    small_suite(out, resume=True)
    assert files_of_the_index(out) == files_of_the_index(made.folder)


def test_a_finished_suite_is_opened_as_it_is(made, monkeypatch):
    monkeypatch.setattr(build_module, "harvest", None)
    assert small_suite(made.folder, resume=True).record == made.record


@pytest.mark.slow
def test_less_disk_means_more_passes_and_the_same_members(made, tmp_path):
    out = tmp_path / "suite"
    one_site = 1500 * 128 * 2
    again = small_suite(out, disk=one_site)
    assert [m.measured for m in again.members] == [m.measured for m in made.members]
    assert not list(out.glob("activations*"))
    passes = [json.loads(line) for line in (out / "times.jsonl").read_text().splitlines()]
    assert [p["sites"] for p in passes if p["stage"] == "harvest"] == [["1.attn_z"], ["2.resid_post"]]


def test_an_index_that_was_lost_or_damaged_is_made_again_from_the_members(made, tmp_path):
    out = tmp_path / "suite"
    shutil.copytree(made.folder, out)
    text = (out / "suite.json").read_text()
    (out / "suite.json").write_text(text[: len(text) // 2])
    with pytest.raises(FormatError, match=r"suite\.json is damaged: .*remove it and resume"):
        small_suite(out, resume=True)
    (out / "suite.json").unlink()
    small_suite(out, resume=True)
    assert files_of_the_index(out) == files_of_the_index(made.folder)


def test_a_damaged_measurement_is_named(made, tmp_path):
    out = tmp_path / "suite"
    shutil.copytree(made.folder, out)
    (out / "suite.json").unlink()
    (out / made.members[2].folder / "evaluation.json").write_text("{")
    with pytest.raises(FormatError, match=r"topk-64-k2.evaluation\.json is damaged .*remove it"):
        small_suite(out, resume=True)


def test_a_member_that_is_not_there_is_named(made, tmp_path):
    out = tmp_path / "suite"
    shutil.copytree(made.folder, out)
    shutil.rmtree(out / made.members[1].folder)
    with pytest.raises(FormatError, match=r"names sites/1\.attn_z/topk-32-k4, which is not there"):
        read_suite(out)


def test_resuming_with_other_settings_is_refused_and_the_difference_shown(made):
    with pytest.raises(TrainingError, match=r"n_tokens: 1500 -> 1600; training\.lr: 0\.003 -> 0\.001"):
        small_suite(
            made.folder, resume=True, n_tokens=1600,
            training=Training(n_tokens=2048, batch_size=256, checkpoint_every=2, normalization_tokens=512),
        )  # fmt: skip
    with pytest.raises(TrainingError, match="already holds a suite; resume it"):
        small_suite(made.folder)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="holds something else"):
        small_suite(tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_written_is_refused_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot write .*file.suite: Not a directory"):
        small_suite(tmp_path / "file" / "suite")


def test_a_suite_that_cannot_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(DataError, match=r"needs .* GB on the disk .*--disk"):
        small_suite(tmp_path / "suite")
    assert not list((tmp_path / "suite").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [0]}, "widths must be positive, got 0"),
        ({"widths": [64, 64]}, "each once"),
        ({"l0s": []}, "l0s must be one or more"),
        ({"l0s": [-1]}, "l0s must be positive, got -1"),
        ({"l0s": [128]}, "an L0 cannot exceed the width, got l0=128 with width=64"),
        ({"l0s": [2.5]}, "topk takes a whole number"),
        ({"architecture": "topp"}, "architecture must be one of topk, .*got 'topp'"),
        ({"config": {"dead": 3}}, "topk has no field dead"),
        ({"n_tokens": 0}, "n_tokens must be at least 1"),
        ({"heldout": 0}, "heldout must lie between 0 and 1"),
        ({"loss_tokens": -1}, "loss_tokens must be 0"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"disk": 1000}, "disk must hold the activations of one site, 256,000 bytes"),
    ],
)
def test_arguments_out_of_range_are_refused_with_what_would_do(lm, changes, message):
    arguments = {"sites": "1.attn_z", "widths": [64], "l0s": [4], "n_tokens": 1000} | changes
    with pytest.raises(ValueError, match=message):
        plan_suite(lm, **arguments)


def test_a_site_the_model_lacks_lists_those_it_has(lm):
    with pytest.raises(ModelError, match=r"has no site 9\.resid_post; it has embed; layers 0-3"):
        plan_suite(lm, "9.resid_post", [64], [4], n_tokens=1000)


def test_several_passes_need_documents_that_can_be_read_again(lm, tmp_path):
    with pytest.raises(ValueError, match="2 passes read the documents again"):
        suite(
            lm, organism.corpus(3, 10**6), ["1.attn_z", "2.attn_z"], [32], [2], "topk", tmp_path / "s",
            n_tokens=1000, disk=256_000,
        )  # fmt: skip


def test_the_plan_says_what_will_be_on_the_disk(lm):
    planned = plan_suite(lm, ["1.attn_z", "1.mlp_act"], [64, 128], [4, 8], n_tokens=1000)
    assert planned.activation_bytes == 1000 * (128 + 512) * 2
    # atoms and encoder, b_dec, b_enc, in float32, for two sparsities
    parameters = sum(2 * (2 * m * d + d + m) for m in (64, 128) for d in (128, 512))
    assert planned.dictionary_bytes == 4 * parameters
    assert "8 topk dictionaries of organism: 2 sites × widths 64, 128 × L0 4, 8" in str(planned)


def test_an_architecture_with_a_target_is_asked_for_it(lm):
    planned = plan_suite(lm, "1.attn_z", [64], [4], "jumprelu", n_tokens=1000, config={"bandwidth": 0.1})
    [member] = planned.members
    assert (member.config.target_l0, member.config.bandwidth) == (4.0, 0.1)
    assert member.folder == "sites/1.attn_z/jumprelu-64-target4"
