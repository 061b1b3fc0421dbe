"""`sparsight effects`: from a file of pairs to a table, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsight.circuits import latent_effects, read_pairs
from sparsight.cli import main
from sparsight.dictionaries import TopK
from sparsight.errors import DataError
from sparsight.formats import load_dictionary
from sparsight.models import LanguageModel, Site, load_model

LINES = [
    {"clean": "the lazy nurse said that", "corrupted": "the lazy pilot said that", "right": "she", "wrong": "he"},
    {"clean": "the nurse said that", "corrupted": "the pilot said that", "right": "she", "wrong": "he"},
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_model("organism", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Path:
    root = tmp_path_factory.mktemp("effects")
    for i in (1, 2):
        dictionary = TopK(64, 8).build(lm.width("1.resid_post"), torch.Generator().manual_seed(i + 40))
        dictionary.site, dictionary.model = Site(i, "resid_post"), "organism"
        dictionary.save(root / f"d{i}")
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, LINES)), encoding="utf-8")
    return root


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["effects", *arguments])
    return int(caught.value.code or 0)


def test_the_command_says_what_the_function_says(folder: Path, lm: LanguageModel, capsys: pytest.CaptureFixture[str]):
    options = ["--dictionary", str(folder / "d1"), "--dictionary", str(folder / "d2"), "--json", "--quiet"]
    assert call(str(folder / "pairs.jsonl"), *options, "--method", "attribution", "--out", str(folder / "out")) == 0
    said = json.loads(capsys.readouterr().out)
    pairs = read_pairs(folder / "pairs.jsonl", lm)
    dictionaries = {Site(i, "resid_post"): load_dictionary(folder / f"d{i}") for i in (1, 2)}
    found = latent_effects(lm, dictionaries, pairs.clean, pairs.corrupted, pairs.metric, method="attribution")
    assert said["regime"] == "smooth path"
    assert said["passes"] == {"forward": 8, "backward": 2}
    site, latent, effect = found.top(1)[0]
    assert (said["top"][0]["site"], said["top"][0]["latent"]) == (str(site), latent)
    assert said["top"][0]["effect"] == pytest.approx(effect)
    saved = load_file(folder / "out" / "effects.safetensors")
    torch.testing.assert_close(saved["2.resid_post/values"], found[Site(2, "resid_post")].values)
    assert json.loads((folder / "out" / "effects.json").read_text())["method"] == "attribution"


def test_the_table_names_the_regime(folder: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--dictionary", str(folder / "d1"), "--steps", "2", "--quiet"]
    assert call(str(folder / "pairs.jsonl"), *options) == 0
    said = capsys.readouterr().out
    assert "integrated gradients, midpoint rule, 2 steps, smooth path" in said
    assert "| 1.resid_post | latents |" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no example"),
        ("{", "line 1 of .* is not JSON"),
        ('{"clean": "a"}', "must have clean, right"),
        ('{"clean": "a", "right": ""}', "texts that are not empty"),
        ('{"clean": "a", "right": "b"}\n{"clean": "a", "right": "b", "wrong": "c"}', "line 2 of .* the first line"),
    ],
)
def test_damaged_pairs_are_refused(tmp_path: Path, lm: LanguageModel, text: str, message: str):
    (tmp_path / "pairs.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "pairs.jsonl", lm)


def test_wrong_calls_exit_with_two(folder: Path, capsys: pytest.CaptureFixture[str]):
    one = ["--dictionary", str(folder / "d1"), "--quiet"]
    assert call(str(folder / "pairs.jsonl"), *one, "--method", "magic") == 2
    assert "method must be one of exact, attribution, integrated_gradients, got 'magic'" in capsys.readouterr().err
    assert call(str(folder / "pairs.jsonl"), *one, *one) == 2
    assert "two dictionaries stand at one site" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "reason", "lines", "options"),
    [
        (2, "paired sequences must have equal lengths, got [5] and [6]", {"corrupted": "the lazy pilot said that"}, []),
        (2, "needs corrupted sequences", {"corrupted": None}, []),
        (2, "does not know its site", {}, ["--dictionary", "nowhere"]),
        (1, "has no site 9.resid_post", {}, ["--dictionary", "beyond"]),
        (2, "width 128 at 1.resid_post, got latents of width 32", {}, ["--dictionary", "narrow"]),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int, reason: str, lines: dict, options: list
):
    row = {name: value for name, value in {**LINES[1], **lines}.items() if value is not None}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row), encoding="utf-8")
    for name, width, site in (("nowhere", 128, None), ("beyond", 128, 9), ("narrow", 32, 1)):
        dictionary = TopK(64, 8).build(width, torch.Generator().manual_seed(60))
        dictionary.site = None if site is None else Site(site, "resid_post")
        dictionary.save(tmp_path / name)
    chosen = ["--dictionary", str(folder / "d1")] if not options else [options[0], str(tmp_path / options[1])]
    assert call(str(tmp_path / "pairs.jsonl"), *chosen, "--method", "attribution", "--quiet") == code
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_metric_that_is_not_a_number_is_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A model whose head holds NaN."""
    from sparsight.models.organism import __file__ as home

    shutil.copytree(Path(home).parent / "weights" / "organism", tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    name = next(name for name in weights if "norm" in name and "layers" not in name)
    save_file({**weights, name: weights[name] * torch.nan}, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    options = ["--dictionary", str(folder / "d1"), "--model", str(tmp_path / "broken"), "--quiet"]
    assert call(str(folder / "pairs.jsonl"), *options) == 1
    assert "the metric of sequence 0 is nan; effects need a finite number" in capsys.readouterr().err
