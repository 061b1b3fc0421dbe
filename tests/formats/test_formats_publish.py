"""Pushing uploads the files of a dictionary and a card, nothing else, in one commit."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from foreign_files import D, M, shaken

from sparsight.cli import main
from sparsight.dictionaries import JumpReLU, TopK
from sparsight.errors import FormatError
from sparsight.formats import prepare, push, write_dictionary_as
from sparsight.models import Site


class FakeApi:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []  # noqa: RUF012  # emptied by the fixture
    refuses = False

    def create_repo(self, *arguments: Any, **options: Any) -> None:
        self.calls.append(("create_repo", arguments, options))
        if self.refuses:
            raise OSError("403 Forbidden\nlong explanation")

    def create_commit(self, *arguments: Any, **options: Any) -> Any:
        self.calls.append(("create_commit", arguments, options))
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    FakeApi.calls, FakeApi.refuses = [], False
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return FakeApi


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dictionary = shaken(JumpReLU(M, l0=0.0).build(D, torch.Generator().manual_seed(1)))
    dictionary.model, dictionary.site = "EleutherAI/pythia-70m", Site(3, "resid_post")
    dictionary.provenance = {"prepend_bos": True, "context_size": 128}
    write_dictionary_as(dictionary, tmp_path / "d", "saelens")
    (tmp_path / "d" / "private.txt").write_text("not for the world")
    return tmp_path / "d"


def test_the_files_and_a_card_go_up_in_one_commit(folder: Path, api: type[FakeApi]) -> None:
    url = push(prepare(folder, "someone/things", path="layer_3"), private=True)
    assert url == "https://hub/commit/1"
    (made, where, options), (_, repo, commit) = api.calls
    assert (made, where, options) == ("create_repo", ("someone/things",), {"private": True, "exist_ok": True})
    assert repo == ("someone/things",)
    names = {operation.path_in_repo for operation in commit["operations"]}
    assert names == {"layer_3/cfg.json", "layer_3/sae_weights.safetensors", "layer_3/README.md"}


def test_the_card_says_what_where_how_good_and_how_to_load(folder: Path, tmp_path: Path) -> None:
    measured = {"fvu": {"value": 0.123, "low": 0.1, "high": 0.15}, "l0": {"mean": {"value": 4.0}}, "n_tokens": 5000}
    (tmp_path / "m.json").write_text(json.dumps({**measured, "loss": None}))
    card = prepare(folder, "someone/things", metrics=tmp_path / "m.json").card
    for part in (
        'base_model: "EleutherAI/pythia-70m"',
        "(jumprelu) of 15 latents over activations of width 6, in the format `saelens`",
        "- Site: 3.resid_post",
        "- Texts begin with BOS: yes",
        "- Context: 128 tokens",
        "| fraction of variance unexplained | 0.123 [0.1, 0.15] |",
        "| active latents per token | 4 |",
        "On 5,000 held-out tokens",
        'sparsight.load_dictionary("hf:someone/things")',
        "from sae_lens import SAE",
    ):
        assert part in card
    assert card.startswith("---\n")


def test_names_from_a_file_cannot_write_markup_into_the_card(tmp_path: Path) -> None:
    dictionary = shaken(TopK(M, 3).build(D))
    dictionary.model = "x/<script>alert(1)</script>\n# heading"
    dictionary.save(tmp_path)
    card = prepare(tmp_path, "a/b").card
    assert "<script>" not in card
    assert "\n# heading" not in card


def test_a_dry_run_uploads_nothing(folder: Path, api: type[FakeApi], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["push", str(folder), "someone/things", "--dry-run"])
    assert stop.value.code == 0
    assert "sae_weights.safetensors" in (printed := capsys.readouterr().out)
    assert "# someone/things" in printed
    assert api.calls == []
    with pytest.raises(SystemExit):
        main(["push", str(folder), "someone/things"])
    assert "hf:someone/things" in capsys.readouterr().out
    assert len(api.calls) == 2


def test_a_refusal_of_the_hub_is_one_line(folder: Path, api: type[FakeApi]) -> None:
    api.refuses = True
    with pytest.raises(FormatError, match=r"did not take hf:a/b \(OSError: 403 Forbidden\); log in") as caught:
        push(prepare(folder, "a/b"))
    assert "\n" not in str(caught.value)


def test_what_is_no_dictionary_or_leads_out_is_not_uploaded(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").symlink_to(tmp_path / "secret.json")
    (tmp_path / "secret.json").write_text("{}")
    with pytest.raises(FormatError, match="leads out of its folder"):
        prepare(folder, "a/b")
    with pytest.raises(FormatError, match="no dictionary folder"):
        prepare(tmp_path / "nothing", "a/b")
    for repo in ("a", "a/b/c", "../b", "/b"):
        with pytest.raises(ValueError, match="must be OWNER/NAME"):
            prepare(folder, repo)
    with pytest.raises(ValueError, match="must be a plain folder"):
        prepare(folder, "a/b", path="../x")


def test_metrics_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"accuracy": 1}')
    with pytest.raises(FormatError, match="hold none of fvu"):
        prepare(folder, "a/b", metrics=tmp_path / "m.json")
