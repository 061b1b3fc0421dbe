"""Write docs/commands.md from the commands' own help: `python -m sparsight.cli.reference docs/commands.md`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption


def reference() -> str:
    """Every command and its help, as Markdown."""
    from sparsight.cli.app import app

    root = typer.main.get_command(app)
    pages = [f"## `{path}`\n\n```text\n{_help(command, path)}\n```\n" for path, command in _walk(root, "sparsight")]
    return "# Commands\n\nMade from the commands' own `--help` by `make docs`.\n\n" + "\n".join(pages)


def _walk(command: TyperCommand | TyperGroup, path: str) -> Iterator[tuple[str, TyperCommand | TyperGroup]]:
    yield path, command
    if isinstance(command, TyperGroup):
        for name in command.commands:
            yield from _walk(command.commands[name], f"{path} {name}")


def _help(command: TyperCommand | TyperGroup, path: str) -> str:
    lines = [" ".join((command.help or "").split("\n\n")[0].split())]
    example = next((part for part in (command.help or "").split("\n\n") if part.strip().startswith("Example:")), None)
    if example:
        lines += ["", " ".join(example.split())]
    lines += ["", "usage: " + " ".join([path, *command.collect_usage_pieces(typer.Context(command))]), ""]
    for parameter in command.params:
        if isinstance(parameter, TyperOption):
            default = "" if parameter.default in (None, False, (), []) or callable(parameter.default) else f" [default: {parameter.default}]"
            required = " [required]" if parameter.required else ""
            lines.append(f"  {', '.join(parameter.opts):<18} {parameter.help or ''}{default}{required}")
        else:
            lines.append(f"  {parameter.human_readable_name:<18} {getattr(parameter, 'help', '') or ''}")
    if isinstance(command, TyperGroup):
        lines += [f"  {name:<18} {command.commands[name].get_short_help_str(100)}" for name in command.commands]
    return "\n".join(lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf8")
