"""The command `sparsight`: its sub-commands, and what every failure looks like to the person who typed it.

Exit codes: 0 the work is done; 1 the world is not as needed (`SparsightError`, a full disk); 2 a wrong call;
130 interrupted.
"""

import errno
import sys
from typing import Annotated, Any, NoReturn

import typer

from sparsight import __version__
from sparsight.cli import (
    circuit,
    code,
    compare,
    convert,
    demo,
    doctor,
    effects,
    elicit,
    evaluate,
    features,
    harvest,
    organism,
    shift,
    steer,
    store,
    study,
    suite,
    train,
)
from sparsight.errors import SparsightError

# New versions of typer carry their own copy of click, old ones use the installed one: this finds the right class.
UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="sparsight",
    help="Sparse dictionaries for neural activations, from harvest to causal test.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.add_typer(organism.app, name="organism", help="The embedded default model and its corpus with true features.")
app.command("harvest")(harvest.harvest)
app.add_typer(store.app, name="store", help="Stored activations: look, check, merge.")
app.command("train")(train.train)
app.command("suite")(suite.suite)
app.command("code")(code.code)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("elicit")(elicit.elicit)
app.command("steer")(steer.steer)
app.command("features")(features.features)
app.command("effects")(effects.effects)
app.command("convert")(convert.convert)
app.command("push")(convert.push)
app.command("circuit")(circuit.circuit)
app.command("shift")(shift.shift)
app.command("study")(study.study)


def _print_version(asked: bool | None) -> None:
    if asked:
        typer.echo(f"sparsight {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = None,
) -> None:
    """Sparse dictionaries for neural activations, from harvest to causal test."""


def _fail(message: str, code: int) -> NoReturn:
    """One line on stderr, then the end."""
    print(f"sparsight: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code. `arguments` are `sys.argv[1:]` when not given."""
    try:
        code = app(args=arguments, standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except UsageError as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except SparsightError as error:
        _fail(str(error), 1)
    except ValueError as error:
        _fail(str(error), 2)
    except OSError as error:
        what = "the disk is full: free some space and run again with --resume" if error.errno == errno.ENOSPC else error
        _fail(str(what), 1)
    if code == 130:  # new versions of typer return it, old ones raise Abort
        _fail("interrupted; what was finished is kept, and --resume goes on from there", code)
    raise SystemExit(code or 0)
