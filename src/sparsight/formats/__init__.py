"""Reading and writing dictionaries: our own format, and one file per format of other projects."""

from sparsight.formats.foreign import FORMATS, Format, load_dictionary, write_dictionary_as

__all__ = ["FORMATS", "Format", "load_dictionary", "write_dictionary_as"]
