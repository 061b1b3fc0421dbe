"""Small latent values: how many there are, how many a linear read-out must have, what is lost without them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric


def small_weight_mass(
    code: SparseCode, fractions: Sequence[float] = (0.05, 0.1, 0.2), *, quantile: float = 0.99
) -> Float[Tensor, " f"]:
    """Share of active values that are small for their latent.

    A value is small at `q` if its magnitude is below `q` times the given quantile of the magnitudes of its own latent,
    taken over the rows where that latent is active (the smallest magnitude with at least that share at or below it).

    Args:
        code: Rows enough for the latents' own quantiles to mean something.
        fractions: The `q`s.
        quantile: Robust maximum of a latent.
    Returns:
        One share in `[0, 1]` for each fraction, float64.
    Raises:
        ValueError: a fraction or the quantile is outside `(0, 1]`.
        UndefinedMetric: no latent is active.
    """
    if not all(0 < q <= 1 for q in (*fractions, quantile)):
        raise ValueError(f"fractions and quantile must be in (0, 1], got {list(fractions)} and {quantile}")
    relative = _relative_to_quantile(code, quantile)
    return torch.stack([(relative < q).double().mean() for q in fractions])


def _relative_to_quantile(code: SparseCode, quantile: float) -> Float64[Tensor, " m"]:
    """Relative magnitudes in row-major order of the used slots."""
    used = code.values != 0
    return relative_magnitudes(code.indices[used], code.values[used], quantile)


def relative_magnitudes(
    latents: Int64[Tensor, " m"], values: Float[Tensor, " m"], quantile: float = 0.99
) -> Float64[Tensor, " m"]:
    """Magnitude of each active value over the quantile of the magnitudes of its own latent.

    Args:
        latents: Latent of each active value, over all rows.
        values: The values, none of them 0.
        quantile: The smallest magnitude of a latent with at least this share of them at or below it is its unit.
    Raises:
        UndefinedMetric: no latent is active.
    """
    magnitudes = values.abs().double()
    if len(latents) == 0:
        raise UndefinedMetric("small weights need an active latent, the code is empty")
    by_size = magnitudes.argsort()
    order = by_size[latents[by_size].argsort(stable=True)]
    counts = torch.bincount(latents)
    first = counts.cumsum(0) - counts
    rank = first + ((counts * quantile).ceil().long() - 1).clamp_min(0)
    reference = magnitudes[order][rank.clamp_max(len(order) - 1)]
    return magnitudes / reference[latents]


@dataclass(frozen=True)
class SmallWeightPrecision:
    """Share of active values whose latent is truly active, among those small and large for their latent.

    Attributes:
        small: Among small values; `None` if there is none.
        large: Among the others; `None` if there is none.
        n_small: Number of small values.
        n_large: Number of the others.
    """

    small: float | None
    large: float | None
    n_small: int
    n_large: int


def small_weight_precision(
    code: SparseCode, true_code: SparseCode, *, fraction: float = 0.1, quantile: float = 0.99
) -> SmallWeightPrecision:
    """Precision of small and of large values against a known code of the same rows.

    Args:
        code: The code in question.
        true_code: The planted code, over the same atoms.
        fraction: Small is below this times the latent's own quantile, as in `small_weight_mass`.
        quantile: Robust maximum of a latent.
    Raises:
        ValueError: the codes differ in rows or width, or a number is out of range.
        UndefinedMetric: no latent is active.
    """
    if len(code) != len(true_code) or code.n_latents != true_code.n_latents:
        raise ValueError(
            f"codes must be of the same rows over the same latents, got {len(code)} x {code.n_latents} "
            f"and {len(true_code)} x {true_code.n_latents}"
        )
    if not 0 < fraction <= 1 or not 0 < quantile <= 1:
        raise ValueError(f"fraction and quantile must be in (0, 1], got {fraction} and {quantile}")
    used = code.values != 0
    right = torch.zeros_like(used)
    for slot in range(true_code.k):
        same = code.indices == true_code.indices[:, slot : slot + 1]
        right |= same & (true_code.values[:, slot : slot + 1] != 0)
    small = _relative_to_quantile(code, quantile) < fraction
    hits = right[used]
    n_small, n_large = int(small.sum()), int((~small).sum())
    return SmallWeightPrecision(
        small=float(hits[small].double().mean()) if n_small else None,
        large=float(hits[~small].double().mean()) if n_large else None,
        n_small=n_small,
        n_large=n_large,
    )


def interference_floor(code: SparseCode, d: int) -> Float[Tensor, " n"]:
    """Standard deviation of what an inactive latent reads from the active ones, `|z|_2 / sqrt(d)` for each row.

    A read-out `<e_j, x>` of a latent that is off sees `sum_i z_i <e_j, d_i>`; for random unit directions its mean is 0
    and its variance `sum_i z_i^2 / d`. No one-shot linear encoder reads below this floor.

    Args:
        code: Latent values, for unit atoms.
        d: Width of the activations.
    Returns:
        In the units of the values.
    """
    if d < 1:
        raise ValueError(f"d must be at least 1, got {d}")
    norms: Tensor = torch.linalg.vector_norm(code.values, dim=1)
    return norms / math.sqrt(d)


def threshold_over_floor(thresholds: Float[Tensor, " n_latents"], code: SparseCode, d: int) -> Float[Tensor, " m"]:
    """Each latent's threshold in units of the mean interference floor, `theta_j sqrt(d) / E|z|_2`.

    Below about 1 the latent fires on interference alone.

    Raises:
        ValueError: not one threshold per latent.
        UndefinedMetric: no latent of the code is active, so there is no floor.
    """
    if thresholds.shape != (code.n_latents,):
        raise ValueError(f"expected {code.n_latents} thresholds, one per latent, got {list(thresholds.shape)}")
    floor = interference_floor(code, d)
    if len(floor) == 0 or float(floor.mean()) == 0:
        raise UndefinedMetric("the interference floor needs an active latent, the code is empty")
    return thresholds / floor.mean()


def threshold_code(code: SparseCode, tau: float | int | Float[Tensor, " n_latents"]) -> SparseCode:
    """The code without its values of magnitude below `tau`.

    Args:
        code: Any code.
        tau: One threshold, or one for each latent, in the units of the values, at least 0.
    Raises:
        ValueError: a threshold is negative, or there is not one per latent.
    """
    thresholds = torch.as_tensor(tau, dtype=code.values.dtype, device=code.values.device)
    if thresholds.shape not in ((), (code.n_latents,)) or not bool((thresholds >= 0).all()):
        raise ValueError(
            f"tau must be one number >= 0 or one for each of {code.n_latents} latents, got {list(thresholds.shape)}"
        )
    limit = thresholds if thresholds.dim() == 0 else thresholds[code.indices]
    return SparseCode(code.indices, torch.where(code.values.abs() < limit, 0, code.values), code.n_latents)


def threshold_for_l0(code: SparseCode, l0: float | int) -> float:
    """The smallest threshold at which `threshold_code` leaves at most `l0` latents per row on average.

    Args:
        code: At least one row.
        l0: Wanted mean number of active latents.
    Returns:
        0 if the code is sparse enough already. Where values are equal to the first that must go, they go too.
    Raises:
        ValueError: `l0` is negative, or the code has no rows.
    """
    if l0 < 0 or len(code) == 0:
        raise ValueError(f"l0 must be at least 0 and the code have rows, got l0={l0} and {len(code)} rows")
    magnitudes = code.values[code.values != 0].abs().sort(descending=True).values
    keep = math.floor(l0 * len(code))
    if keep >= len(magnitudes):
        return 0.0
    # Everything from here down must go: the next larger number of this dtype is the least threshold that does it.
    first_out = magnitudes[keep]
    return float(torch.nextafter(first_out, torch.full_like(first_out, math.inf)))
