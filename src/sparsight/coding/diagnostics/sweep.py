"""What a code loses as its smallest values go."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.arguments import check_code
from sparsight.coding.diagnostics.small_weights import threshold_code, threshold_for_l0
from sparsight.coding.refit import refit
from sparsight.errors import UndefinedMetric


@dataclass(frozen=True)
class SweepPoint:
    """A code without its values below one threshold.

    Attributes:
        threshold: Smallest magnitude that stayed possible, in the units of the values.
        l0: Mean number of latents left.
        fvu: `sum |x - x_hat|^2 / sum |x - mean|^2` with the values left as they were.
        fvu_refitted: The same with the values that stayed solved anew.
    """

    threshold: float
    l0: float
    fvu: float
    fvu_refitted: float


@torch.no_grad()
def threshold_sweep(
    x: Float[Tensor, "n d"],
    code: SparseCode,
    atoms: Float[Tensor, "n_latents d"],
    l0s: Sequence[float | int],
    *,
    nonnegative: bool = True,
) -> list[SweepPoint]:
    """Drop the smallest values of a code until its mean L0 is each of `l0s`, one threshold for all latents.

    Args:
        x: Activations less the decoder's bias.
        code: A code of them over these atoms.
        atoms: Directions of unit norm.
        l0s: Wanted mean numbers of latents; one that the code does not reach leaves it whole.
        nonnegative: Solve for non-negative values in `fvu_refitted`.
    Returns:
        One point for each of `l0s`.
    Raises:
        ValueError: an L0 is negative; the code is not of these activations over these atoms.
        UndefinedMetric: the activations do not vary.
    """
    check_code(x, code, atoms)
    exact = x.double()
    variance = (exact - exact.mean(dim=0)).square().sum().item()
    if variance == 0:
        raise UndefinedMetric(f"FVU is undefined: the {len(x)} activations are all equal")

    def fvu(left: SparseCode) -> float:
        return (exact - left.decode(atoms).double()).square().sum().item() / variance

    points = []
    for wanted in l0s:
        threshold = threshold_for_l0(code, wanted)
        left = threshold_code(code, threshold)
        refitted = refit(x, atoms, left.support(), nonnegative=nonnegative)
        points.append(SweepPoint(threshold, left.l0().double().mean().item(), fvu(left), fvu(refitted)))
    return points
