"""The command line: parse, call, show. No mathematics here."""

from sparsight.cli.app import app, main

__all__ = ["app", "main"]
