"""Batches of a source: to train on, to fit the normalisation on, to calibrate on."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations import ActivationStore, ActivationStream
from sparsight.dictionaries import Normalization
from sparsight.errors import DataError, TrainingError
from sparsight.training.normalization import fit_normalization
from sparsight.training.settings import Training
from sparsight.training.source import Source, open_source


def checked(x: Any, step: int, data: Source) -> Float[Tensor, "b d_in"]:
    """The batch, if it is one and every value in it is finite.

    Raises:
        ValueError: the stream gives several sites.
        TrainingError: a value is NaN or infinite; the row is named, in a store with its shard.
    """
    if not isinstance(x, Tensor):
        raise ValueError("a stream to train on gives bare batches of one site; open it with that site, not with a list")
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(dim=1).nonzero()[0])
        raise TrainingError(
            f"activations must be finite, but row {row} of batch {step} (row {step * len(x) + row} of the stream) "
            "holds NaN or infinity; verify the store, or harvest again in float32"
        )
    return x


def fit(data: Source, training: Training) -> Normalization:
    """Fit the normalisation on the first batches of the stream, and put it back to its start."""
    start = data.stream.state()
    n_batches = -(-min(training.normalization_tokens, training.n_tokens) // training.batch_size)
    normalization = fit_normalization(checked(next(data.stream), step, data) for step in range(n_batches))
    data.stream.restore(start)
    return normalization


class CalibrationBatches:
    """Normalised batches that can be gone through any number of times, always the same; the stream stays where it is.

    From a store they are of its held-out documents. A tensor or a stream has no such: then they are the batches that
    follow the last one trained on, which in later epochs are rows seen before.

    Attributes:
        description: Which of the two, for the record.
    """

    def __init__(
        self,
        source: ActivationStore | ActivationStream | Tensor,
        data: Source,
        normalization: Normalization,
        training: Training,
        device: torch.device,
    ) -> None:
        self.normalization, self.device = normalization, device
        self.data, kind = _calibration_source(source, data, training)
        rows = training.normalization_tokens
        if self.data.n_rows is not None:
            rows = min(rows, self.data.n_rows)
        self.n_batches = max(1, rows // training.batch_size)
        self.description = f"{kind}, {self.n_batches * training.batch_size} activations"

    def __iter__(self) -> Iterator[Float[Tensor, "b d_in"]]:
        stream = self.data.stream
        start = stream.state()
        try:
            for step in range(self.n_batches):
                yield self.normalization.apply(checked(next(stream), step, self.data).to(self.device))
        finally:
            stream.restore(start)


def _calibration_source(
    source: ActivationStore | ActivationStream | Tensor, data: Source, training: Training
) -> tuple[Source, str]:
    after = "the batches that follow the last one trained on"
    if not isinstance(source, ActivationStore) or source.split_name == "heldout":
        return data, after
    try:
        heldout = ActivationStore(source.path).split("heldout")
    except DataError:
        return data, after
    return open_source(heldout, data.site, training), "held-out documents of the store"
