"""Rows of several sites side by side, in one stream."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations import ActivationStore, ActivationStream
from sparsight.errors import DataError

# Rows of two stores that are compared at once.
_BLOCK = 1 << 16


class JoinedStream:
    """Streams in step, their batches put side by side: each row is one token at every site.

    Streams of one seed over equally many rows permute alike, so that rows stay together.

    Attributes:
        widths: Width of each site, in the order of the columns.
        batch_size: Rows in a batch.
        n_rows: Rows in an epoch, if known.
        mixing: How well rows are mixed, in words.
    """

    def __init__(self, streams: Sequence[ActivationStream]) -> None:
        """Join.

        Raises:
            ValueError: the streams do not go in step.
        """
        if len({(s.batch_size, s.seed, s.mixing) for s in streams}) != 1:
            raise ValueError("streams to join must have one batch size, seed and way of mixing")
        self.streams = tuple(streams)
        self.widths = tuple(w for s in streams for w in ([s.width(site) for site in s.sites] or [s.width()]))
        self.batch_size, self.n_rows, self.mixing = streams[0].batch_size, streams[0].n_rows, streams[0].mixing

    def __iter__(self) -> "JoinedStream":
        return self

    def __next__(self) -> Float[Tensor, "batch d_total"]:
        blocks: list[Tensor] = []
        for stream in self.streams:
            batch = next(stream)
            blocks.extend(batch.values() if isinstance(batch, dict) else [batch])
        return torch.cat(blocks, dim=1)

    def state(self) -> dict[str, Any]:
        """The place in the streams, as JSON."""
        return {"streams": [stream.state() for stream in self.streams]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was called. Raises as `ActivationStream.restore` does."""
        for stream, place in zip(self.streams, state["streams"], strict=True):
            stream.restore(place)


def check_same_tokens(parts: Sequence[ActivationStore]) -> None:
    """Refuse stores whose rows are not the same tokens of the same documents.

    Raises:
        DataError: numbers of rows, tokens, documents or positions differ; the first row is named.
    """
    first = parts[0]
    advice = "harvest every model on the same text with the same settings"
    for other in parts[1:]:
        if len(first) != len(other):
            raise DataError(
                f"{first.path} has {len(first)} rows ({first.split_name}) but {other.path} {len(other)}; {advice}"
            )
        for start in range(0, len(first), _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(first)))
            here, there = first.tokens(rows), other.tokens(rows)
            for name in ("token_ids", "document_ids", "positions"):
                differ = (getattr(here, name) != getattr(there, name)).nonzero()
                if len(differ):
                    row = start + int(differ[0])
                    raise DataError(
                        f"{first.path} and {other.path} hold other tokens: {name} of row {row} differ "
                        f"({int(getattr(here, name)[row - start])} and {int(getattr(there, name)[row - start])}); "
                        f"{advice}"
                    )
