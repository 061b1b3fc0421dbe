"""`sparsight circuit` and `sparsight shift`: what is written, and what is refused before any work."""

import json
import re

import pytest
import torch

from sparsight.cli import main
from sparsight.dictionaries import TopK
from sparsight.dictionaries.base import Normalization, unit_rows
from sparsight.models import Site


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random dictionary at the organism's embeddings."""
    dictionary = TopK(256, k=16).build(128, torch.Generator().manual_seed(0))
    dictionary.atoms.data = unit_rows(256, 128, torch.Generator().manual_seed(1))
    dictionary.site, dictionary.model = Site(None, "embed"), "organism"
    dictionary.fold_(Normalization(torch.zeros(128), 1.0))
    path = tmp_path_factory.mktemp("dictionary")
    dictionary.save(path)
    return path


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    return exit_.value.code


def test_a_circuit_is_found_measured_and_drawn(folder, tmp_path, capsys):
    out = tmp_path / "c"
    code = run("circuit", folder, "--task", "gender", "--examples", 6, "--node-threshold", 1e-4, "--max-nodes", 5,
               "--steps", 1, "--act", 4, "--out", out, "--quiet", "--json")  # fmt: skip
    assert code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["n_nodes"] == 5
    assert len(facts["nodes acted on"]["acted"]) == 5
    assert len(facts["edges acted on"]["acted"]) <= 4
    assert {"faithfulness", "without errors", "completeness", "random"} <= facts.keys()
    assert {path.name for path in out.iterdir()} == {
        "circuit.json", "circuit.safetensors", "circuit.html", "circuit.dot", "measured.json",
    }  # fmt: skip


def test_shift_writes_its_judgements(folder, tmp_path, capsys):
    out = tmp_path / "s"
    code = run("shift", folder, "--site", "embed", "--texts", 16, "--test-texts", 16, "--judged", 4, "--out", out)
    assert code == 0
    assert "judged 4 nodes (labels)" in capsys.readouterr().out
    record = json.loads((out / "shift.json").read_text())
    assert len(record["judgements"]) == 4


def test_shift_is_judged_in_a_page(folder, tmp_path):
    out = tmp_path / "p"
    call = ("shift", folder, "--site", "embed", "--texts", 16, "--test-texts", 16, "--judged", 4, "--unjudged",
            "remove", "--unclear", "remove", "--judge", "page", "--out", out)  # fmt: skip
    assert run(*call) == 0
    page = (out / "judge.html").read_text()
    assert not (out / "shift.json").exists()
    nodes = re.findall(r'data-site="([^"]+)" data-latent="(\d+)"', page)
    assert len(nodes) == 4
    answers = [{"site": site, "latent": int(j), "verdict": "keep"} for site, j in nodes]
    (tmp_path / "answers.json").write_text(json.dumps({"answers": answers}))
    assert run(*call, "--answers", tmp_path / "answers.json") == 0
    record = json.loads((out / "shift.json").read_text())
    assert {one["verdict"] for one in record["judgements"]} == {"keep"}
    assert (record["unjudged"], record["judge"]) == ("remove", "person, by page")
    assert run(*call[:-4], "--judge", "labels", "--out", out, "--answers", tmp_path / "answers.json") == 2


def test_wrong_calls_end_with_2(folder, tmp_path, capsys):
    out = tmp_path / "x"
    assert run("shift", folder, "--site", "embed", "--judge", "chat", "--out", out) == 2
    assert "--endpoint" in capsys.readouterr().err
    assert run("shift", folder, "--site", "embed", "--judge", "oracle", "--out", out) == 2
    assert run("circuit", folder, "--aggregation", "mean", "--task", "gender", "--out", out) == 2
    assert run("circuit", folder, "--out", out) == 2
    assert run("circuit", folder, "--pairs", tmp_path / "none.jsonl", "--out", out) == 1
    assert not out.exists()


def pairs_file(tmp_path, rows):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def test_a_circuit_that_cannot_be_is_refused_in_one_line(folder, tmp_path, capsys):
    one = {"clean": "the nurse said that", "patch": "the pilot said that", "right": "she", "wrong": "he"}
    longer = {**one, "patch": "the lazy pilot said that"}
    two_words = {**one, "wrong": "he is"}
    without = {name: value for name, value in one.items() if name != "patch"}
    nowhere = TopK(16, k=2).build(128, torch.Generator().manual_seed(4))
    nowhere.save(tmp_path / "nowhere")
    out = ("--out", tmp_path / "x", "--quiet")
    by_task = ("--task", "gender", "--examples", 4, "--no-edges", "--steps", 1, *out)
    for code, reason, call in (
        (1, "the circuit is empty; the largest is", ("circuit", folder, *by_task, "--node-threshold", 1e9)),
        (2, "two dictionaries stand at embed", ("circuit", folder, folder, *by_task)),
        (2, "does not know its site", ("circuit", tmp_path / "nowhere", *by_task)),
        (2, "pairs must be of equal lengths", ("circuit", folder, "--pairs", [one, longer] * 2, *out)),
        (1, "line 2 of", ("circuit", folder, "--pairs", [one, without] * 2, *out)),
        (1, "is 2 tokens; give answers of one token", ("circuit", folder, "--pairs", [two_words] * 4, *out)),
    ):  # fmt: skip
        arguments = [pairs_file(tmp_path, value) if isinstance(value, list) else value for value in call]
        assert run(*arguments) == code
        captured = capsys.readouterr()
        assert reason in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""
        assert not (tmp_path / "x").exists()
