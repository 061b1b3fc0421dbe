"""Reading dictionaries: our own format, and later one file per foreign format."""

from sparsight.formats.native import load_dictionary

__all__ = ["load_dictionary"]
