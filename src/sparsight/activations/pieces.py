"""A document as tokens, and what the model reads of it at once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int16, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsight.activations.record import Cursor


@dataclass(frozen=True)
class Context:
    """What the model reads at once.

    Attributes:
        ids: Tokens as the model reads them, without padding.
        special: True where the tokenizer added the token.
        document_id: Number of the document; of the first one when several are packed.
        labels: True features of each counted token, -1 where not defined; None without labels.
        end: The place in the documents just after this context.
        owners: The document of each token when several are packed; None when there is one.
    """

    ids: Int64[Tensor, " t"]
    special: Bool[Tensor, " t"]
    document_id: int
    labels: Int16[Tensor, "n_counted n_labels"] | None
    end: Cursor
    owners: Int64[Tensor, " t"] | None = None

    @cached_property
    def n_counted(self) -> int:
        """Tokens that are not special."""
        return len(self.special) - int(self.special.sum())


@dataclass(frozen=True)
class Unit:
    """A document as tokens: those that the tokenizer puts before its text, the text's own, and those after.

    Attributes:
        labels: One row for each counted token of `inner`.
        crc32: Over the texts of all documents up to this one.
    """

    number: int
    document_id: int
    before: NDArray[np.int64]
    inner: NDArray[np.int64]
    inner_special: NDArray[np.bool_]
    after: NDArray[np.int64]
    labels: NDArray[np.int16] | None
    crc32: int

    def spread(self, bos: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens to be cut, and which of them are special: with those around the text when they go with a document."""
        if bos != "document":
            return self.inner, self.inner_special
        flags = [np.ones(len(self.before), bool), self.inner_special, np.ones(len(self.after), bool)]
        return np.concatenate([self.before, self.inner, self.after]), np.concatenate(flags)
