"""The docs do not lie: commands parse, links lead somewhere, generated pages are up to date, the example runs."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from sparsight.cli import app
from sparsight.cli.reference import reference

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """Every `$ sparsight ...` line of the page's console blocks, continuation lines joined."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf8"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True)[1:] for line in lines if line.startswith("$ sparsight ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_docs_parses(page: Path):
    for arguments in commands(page):
        command, rest = typer.main.get_command(app), list(arguments)
        while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"{page.name}: no command {' '.join(arguments)}"
            command, rest = command.commands[rest[0]], rest[1:]
        if not {"--help", "--version"} & set(rest):
            command.make_context("sparsight", rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_commands_page_is_what_the_commands_say():
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf8") == reference(), "run `make docs`"


def test_every_module_folder_is_in_the_architecture_page():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf8")
    for folder in (ROOT / "src" / "sparsight").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert f"{folder.name}/" in page


def test_the_quickstart_makes_a_page(tmp_path, monkeypatch, capsys):
    """In this file of many tests because pytest-xdist begins with those: the last file is one that takes no time."""
    script = ROOT / "examples" / "quickstart.py"
    monkeypatch.setattr("sys.argv", [str(script), str(tmp_path / "run")])
    runpy.run_path(str(script), run_name="__main__")
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000
    assert "FVU at L0 16" in capsys.readouterr().out
