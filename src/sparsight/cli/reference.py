"""Write docs/commands.md from the commands' own help: `python -m sparsight.cli.reference docs/commands.md`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup, TyperOption


def reference() -> str:
    """Every command and its help, as Markdown."""
    from sparsight.cli.app import app

    root = typer.main.get_command(app)
    pages = [f"## `{path}`\n\n```text\n{_help(command, path)}\n```\n" for path, command in _walk(root, "sparsight")]
    return "# Commands\n\nMade from the commands' own `--help` by `make docs`.\n\n" + "\n".join(pages)


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    if isinstance(command, TyperGroup):
        for name in command.commands:
            yield from _walk(command.commands[name], f"{path} {name}")


def _help(command: Any, path: str) -> str:
    context = typer.Context(command)
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    lines = [*paragraphs, "", f"usage: {usage}", ""]
    for parameter in command.params:
        name = ", ".join(parameter.opts) if isinstance(parameter, TyperOption) else (parameter.name or "").upper()
        lines.append(f"  {name:<18} {parameter.help or ''}{_default(parameter)}")
    if isinstance(command, TyperGroup):
        lines += [f"  {name:<18} {child.get_short_help_str(100)}" for name, child in command.commands.items()]
    return "\n".join(lines)


def _default(parameter: Any) -> str:
    if parameter.required:
        return " [required]" if isinstance(parameter, TyperOption) else ""
    if parameter.default in (None, False, (), []) or callable(parameter.default):
        return ""
    return f" [default: {parameter.default}]"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf8")
