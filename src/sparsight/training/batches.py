"""Batches of a source: to train on, to fit the normalisation on, to calibrate on."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations import ActivationStore
from sparsight.dictionaries import Normalization
from sparsight.dictionaries.base import JointNormalization
from sparsight.errors import DataError, TrainingError
from sparsight.training.normalization import fit_joint_normalization, fit_normalization
from sparsight.training.settings import Training
from sparsight.training.source import Activations, Sites, Source, open_source

AnyNormalization = Normalization | JointNormalization


def checked(x: Any, step: int, source: Activations) -> Float[Tensor, "b d_in"]:
    """The batch, if it is one and every value in it is finite.

    Raises:
        ValueError: the stream gives several sites.
        TrainingError: a value is NaN or infinite; the row is named, in a store with its shard.
    """
    if not isinstance(x, Tensor):
        raise ValueError("a stream to train on gives bare batches of one site; open it with that site, not with a list")
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(dim=1).nonzero()[0])
        where = _first_in_store(source) or f"row {row} of batch {step} (row {step * len(x) + row} of the stream)"
        raise TrainingError(
            f"activations must be finite, but {where} holds NaN or infinity; verify the store, or harvest again in "
            "float32"
        )
    return x


def _first_in_store(source: Activations, rows: int = 1 << 16) -> str | None:
    """The first row of a store that is not finite, looked for where a batch showed that there is one."""
    if isinstance(source, Tensor) or not isinstance(source, ActivationStore | Sequence):
        return None
    for store in [source] if isinstance(source, ActivationStore) else source:
        if not isinstance(store, ActivationStore):
            return None
        for site in store.sites:
            for begin in range(0, len(store), rows):
                x = store.rows(site, slice(begin, min(begin + rows, len(store))))
                bad = (~torch.isfinite(x)).any(dim=1).nonzero()
                if len(bad):
                    file, row = store.locate(begin + int(bad[0]))
                    return f"row {row} of {site} in shard {store.path / file}"
    return None


def fit(source: Activations, data: Source, training: Training) -> AnyNormalization:
    """Fit the normalisation on the first batches of the stream, and put it back to its start."""
    start = data.stream.state()
    n_batches = -(-min(training.normalization_tokens, training.n_tokens) // training.batch_size)
    batches = (checked(next(data.stream), step, source) for step in range(n_batches))
    several = len(data.widths) > 1
    normalization = fit_joint_normalization(batches, data.widths) if several else fit_normalization(batches)
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
        source: Activations,
        site: Sites,
        data: Source,
        normalization: AnyNormalization,
        training: Training,
        device: torch.device,
    ) -> None:
        self.source, self.normalization, self.device = source, normalization, device
        self.data, kind = _calibration_source(source, site, data, training)
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
                yield self.normalization.apply(checked(next(stream), step, self.source).to(self.device))
        finally:
            stream.restore(start)


def _calibration_source(source: Activations, site: Sites, data: Source, training: Training) -> tuple[Source, str]:
    after = "the batches that follow the last one trained on"
    stores = [source] if isinstance(source, ActivationStore) else source
    if not isinstance(stores, Sequence):
        return data, after
    heldout: list[ActivationStore] = []
    for store in stores:
        if not isinstance(store, ActivationStore) or store.split_name == "heldout":
            return data, after
        try:
            heldout.append(ActivationStore(store.path).split("heldout"))
        except DataError:
            return data, after
    part = heldout[0] if isinstance(source, ActivationStore) else heldout
    return open_source(part, site, training), "held-out documents of the store"
