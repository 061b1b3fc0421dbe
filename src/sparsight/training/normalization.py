"""Fitting the mean and the scale of activations."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import Normalization
from sparsight.errors import TrainingError


def fit_normalization(batches: Iterable[Float[Tensor, "_ d_in"]]) -> Normalization:
    """Mean of all rows, and the scale that brings their total variance `E|x - mean|^2` to 1.

    Sums are float64 and taken about the first batch's mean: `E|x|^2 - |mean|^2` would cancel where the mean is large.

    Args:
        batches: At least one batch; batches may differ in size.
    Raises:
        TrainingError: the rows do not vary.
    """
    n, pivot, total, energy = 0, torch.zeros(0), torch.zeros(0), 0.0
    for batch in batches:
        rows = batch.double()
        if n == 0:
            pivot = rows.mean(dim=0)
            total = torch.zeros_like(pivot)
        shifted = rows - pivot
        n += len(rows)
        total += shifted.sum(dim=0)
        energy += float(shifted.square().sum())
    shift = total / n
    mean = pivot + shift
    variance = energy / n - float(shift.square().sum())
    # Below one unit of float32 rounding of the mean, what varies is rounding.
    if variance <= float(mean.square().sum()) * torch.finfo(torch.float32).eps ** 2:
        raise TrainingError(
            f"the first {n} activations are all equal, so there is nothing to learn; check the site and the text"
        )
    return Normalization(mean.float(), variance**-0.5)
