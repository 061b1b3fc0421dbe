"""Fitting the mean and the scale of activations."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import Normalization
from sparsight.dictionaries.base import JointNormalization, columns_of
from sparsight.errors import TrainingError


class _Moments:
    """Running sums of one site, float64 and about the first batch's mean.

    `E|x|^2 - |mean|^2` would cancel where the mean is large.
    """

    def __init__(self) -> None:
        self.n, self.pivot, self.total, self.energy = 0, torch.zeros(0), torch.zeros(0), 0.0

    def add(self, batch: Float[Tensor, "_ d_in"]) -> None:
        rows = batch.double()
        if self.n == 0:
            self.pivot = rows.mean(dim=0)
            self.total = torch.zeros_like(self.pivot)
        shifted = rows - self.pivot
        self.n += len(rows)
        self.total += shifted.sum(dim=0)
        self.energy += float(shifted.square().sum())

    def fitted(self, where: str = "") -> Normalization:
        shift = self.total / self.n
        mean = self.pivot + shift
        variance = self.energy / self.n - float(shift.square().sum())
        # Below one unit of float32 rounding of the mean, what varies is rounding.
        if variance <= float(mean.square().sum()) * torch.finfo(torch.float32).eps ** 2:
            raise TrainingError(
                f"the first {self.n} activations{where} are all equal, so there is nothing to learn; check the site "
                "and the text"
            )
        return Normalization(mean.float(), variance**-0.5)


def fit_normalization(batches: Iterable[Float[Tensor, "_ d_in"]]) -> Normalization:
    """Mean of all rows, and the scale that brings their total variance `E|x - mean|^2` to 1.

    Args:
        batches: At least one batch; batches may differ in size.
    Raises:
        TrainingError: the rows do not vary.
    """
    moments = _Moments()
    for batch in batches:
        moments.add(batch)
    return moments.fitted()


def fit_joint_normalization(batches: Iterable[Float[Tensor, "_ d_total"]], widths: Sequence[int]) -> JointNormalization:
    """The same for each of several sites that stand side by side in the rows.

    Args:
        batches: At least one batch.
        widths: Width of each site.
    Raises:
        TrainingError: the rows do not vary at one of them.
    """
    moments, columns = [_Moments() for _ in widths], columns_of(widths)
    for batch in batches:
        for at, sums in zip(columns, moments, strict=True):
            sums.add(batch[:, at])
    return JointNormalization(tuple(m.fitted(f" of input {i + 1}") for i, m in enumerate(moments)))
