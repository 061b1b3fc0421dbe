"""What a caller may catch.

SparsightError
├── ModelError        a model cannot be loaded, or has no such family or site
├── DataError         text, tokens, labels or activations cannot be used as given
├── StoreError        an activation store is missing, incomplete or damaged
├── FormatError       a dictionary folder or a foreign file cannot be read as what it claims to be
├── TrainingError     a run cannot start, go on or be resumed
└── UndefinedMetric   a measurement has no value on this input (no variance, one class only, no tokens)

Wrong arguments raise `ValueError` (or `TypeError`): they are the caller's bug, not the world's. Every message says
what was expected, what came, and what to do.
"""


class SparsightError(Exception):
    """Base of all errors about the world outside the program; the command line prints one line and exits with 1."""


class ModelError(SparsightError):
    """A model cannot be loaded, or has no such family or site."""


class DataError(SparsightError):
    """Text, tokens, labels or activations cannot be used as given."""


class StoreError(SparsightError):
    """An activation store is missing, incomplete or damaged."""


class FormatError(SparsightError):
    """A dictionary folder or a foreign file cannot be read as what it claims to be."""


class TrainingError(SparsightError):
    """A training run cannot start, go on or be resumed."""


class UndefinedMetric(SparsightError):
    """A measurement has no value on this input."""
