"""`sparsight effects`: from a file of pairs to a table, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
