"""What is asked for and what is read: sites, a document as tokens, and what the model reads of it at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int16, Int64
from numpy.typing import NDArray
from torch import Tensor

from sparsight.activations.record import Cursor
from sparsight.models import Site
from sparsight.models.site_choice import sites_meant


def distinct_sites(sites: Sequence[str | Site] | str | Site, known: Sequence[Site]) -> list[Site]:
    """One or several sites, in the order in which they were asked for.

    Args:
        sites: See `sites_meant`.
        known: Those of the model or store.
    Raises:
        ValueError: there is none, or one twice, or a text does not read as sites.
    """
    wanted = sites_meant(sites, known)
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(f"sites must be one or more, each once, got {[str(site) for site in wanted]}")
    return wanted


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
