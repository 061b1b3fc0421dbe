"""Reading and writing dictionaries: our own format, and one file per format of other projects."""

from sparsight.formats.converting import Conversion, convert
from sparsight.formats.foreign import FORMATS, Format, load_dictionary, write_dictionary_as
from sparsight.formats.publishing import Upload, prepare, push

__all__ = [
    "FORMATS",
    "Conversion",
    "Format",
    "Upload",
    "convert",
    "load_dictionary",
    "prepare",
    "push",
    "write_dictionary_as",
]
