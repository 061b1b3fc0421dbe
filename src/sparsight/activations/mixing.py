"""How well batches are mixed: whether rows of one document meet in a batch more often than by chance."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from sparsight.activations.store import ActivationStore
from sparsight.activations.stream import ActivationStream
from sparsight.errors import UndefinedMetric


@dataclass(frozen=True)
class Mixing:
    """The mixing of batches, measured.

    Attributes:
        correlation: Of "is of document g" between two rows of a batch, over all documents: 0 when batches are drawn
            uniformly from all rows, 1 when each batch is of one document.
        standard_error: Of the correlation, from the scatter of the batches.
        meeting: Probability that two rows of a batch are of one document.
        expected: The same for uniform batches.
        documents: Different documents in a batch, on average.
        n_batches: Batches looked at.
    """

    correlation: float
    standard_error: float
    meeting: float
    expected: float
    documents: float
    n_batches: int

    def to_json(self) -> dict[str, Any]:
        """All numbers, for a record."""
        return asdict(self)


def mixing_of(batches: Iterable[Int64[Tensor, " batch"]], document_ids: Int64[Tensor, " n"]) -> Mixing:
    """Measure how batches are mixed.

    With `n_g` rows of document `g` in a batch of `B` and `N_g` among all `N`, two rows of a batch meet in a document
    with probability `p = sum n_g (n_g - 1) / (B (B - 1))`; under uniform shuffling that is
    `p_0 = sum N_g (N_g - 1) / (N (N - 1))`. The intraclass correlation is `(p - p_0) / (1 - p_0)`. Batches of one epoch
    are a partition of the rows, so under perfect shuffling it scatters about 0, and can be negative.

    Args:
        batches: Document of each row, batch by batch.
        document_ids: Document of every row that batches are drawn from.
    Raises:
        UndefinedMetric: there are fewer than two batches, a batch has one row, or all rows are of one document.
    """
    n = len(document_ids)
    sizes = np.unique(document_ids.numpy(), return_counts=True)[1].astype(np.float64)
    expected = float((sizes * (sizes - 1)).sum() / (n * (n - 1))) if n > 1 else 1.0
    meetings, documents = [], []
    for batch in batches:
        counts = np.unique(batch.numpy(), return_counts=True)[1].astype(np.float64)
        if len(batch) < 2:
            raise UndefinedMetric("the mixing of batches of one row is not defined; use larger batches")
        meetings.append(float((counts * (counts - 1)).sum() / (len(batch) * (len(batch) - 1))))
        documents.append(len(counts))
    if len(meetings) < 2 or expected >= 1:
        raise UndefinedMetric("mixing needs at least two batches and two documents")
    p = np.array(meetings)
    return Mixing(
        correlation=float((p.mean() - expected) / (1 - expected)),
        standard_error=float(p.std(ddof=1) / np.sqrt(len(p)) / (1 - expected)),
        meeting=float(p.mean()),
        expected=expected,
        documents=float(np.mean(documents)),
        n_batches=len(p),
    )


def measure_mixing(store: ActivationStore, stream: ActivationStream, n_batches: int = 64) -> Mixing:
    """How well the first batches of a stream over a store are mixed; no activation is read."""
    owners = store.tokens(slice(None)).document_ids
    return mixing_of((owners[rows] for rows in stream.row_numbers(n_batches)), owners)
