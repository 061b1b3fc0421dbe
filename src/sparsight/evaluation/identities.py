"""Two routes to one number, taken in every evaluation: a wrong sum or a wrong mean breaks one of them."""

from sparsight.evaluation import sums as terms
from sparsight.evaluation.core_records import IdentityRecord
from sparsight.evaluation.shrinkage import Shrinkage
from sparsight.evaluation.sums import Sums

_FLOAT64 = 1e-9  # of the number: sums of many float64 terms, some of which cancel


def identities_of(sums: Sums, shrinkage: Shrinkage | None) -> list[IdentityRecord]:
    """What must be equal in any evaluation, with how far it is from that."""
    totals, n = sums.totals, sums.frame.n
    residual, energy = totals[terms.RESIDUAL].item(), totals[terms.ENERGY].item()
    family = sums.shrinkage
    expanded = energy + family.sum_x_hat_sq - 2 * family.sum_dot
    found = [
        _identity(
            "E|x - x_hat|^2 = a + h - 2c, of E|x|^2", residual - expanded, max(energy, family.sum_x_hat_sq), _FLOAT64
        ),
        _identity(
            "sum |x - mean|^2 = sum |x|^2 - n |mean|^2, of sum |x|^2",
            totals[terms.CENTRED].item() - (energy - n * sums.frame.mean.square().sum().item()),
            energy,
            _FLOAT64,
        ),
        _identity(
            "sum of all densities = mean L0",
            float(sums.density.counts.sum()) / n - totals[terms.LATENTS].item() / n,
            max(totals[terms.LATENTS].item() / n, 1.0),
            _FLOAT64,
        ),
        _identity(
            "mean of the distribution of L0 = mean L0",
            sums.l0.value - totals[terms.LATENTS].item() / n,
            max(totals[terms.LATENTS].item() / n, 1.0),
            _FLOAT64,
        ),
    ]
    if shrinkage is not None:
        s = shrinkage
        found += [
            _identity("alpha beta = rho^2", s.alpha * s.beta - s.rho**2, 1.0, _FLOAT64),
            _identity("scale_gain = (nu - rho)^2", s.scale_gain - (s.nu - s.rho) ** 2, max(1.0, s.nu**2), _FLOAT64),
        ]
    for breakdown in sums.breakdowns:
        whole = breakdown.weighted_fvu()
        if whole is not None:
            fvu = residual / totals[terms.CENTRED].item()
            found.append(
                _identity(f"FVU put together from groups by {breakdown.grouping.by} = FVU", whole - fvu, fvu, _FLOAT64)
            )
    return found


def _identity(identity: str, difference: float, scale: float, tolerance: float) -> IdentityRecord:
    return IdentityRecord(
        identity=identity, residual=abs(difference) / scale if scale > 0 else abs(difference), tolerance=tolerance
    )
