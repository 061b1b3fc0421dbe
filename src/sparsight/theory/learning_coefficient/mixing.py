"""Whether chains agree, and how many independent draws they are worth."""

import torch
from jaxtyping import Float64
from torch import Tensor


def split_r_hat(draws: Float64[Tensor, "chains draws"]) -> float:
    """Square root of the pooled over the within-chain variance, each chain cut into halves; 1 when all agree.

    Chains that have not moved at all, and agree, have 1 as well; ones that have not moved and differ have infinity.

    Args:
        draws: Two chains or more, of four draws or more.
    Source:
        Gelman et al., "Bayesian Data Analysis", 3rd edition, section 11.4.
    """
    halves = _halves(draws)
    n = halves.shape[1]
    within = float(halves.var(dim=1).mean())
    between = float(halves.mean(dim=1).var()) * n
    if within == 0:
        return 1.0 if between == 0 else float("inf")
    return float((((n - 1) / n * within + between / n) / within) ** 0.5)


def effective_sample_size(draws: Float64[Tensor, "chains draws"]) -> float:
    """Independent draws with the same variance of the mean, over all chains together; at most their number.

    Autocorrelations `rho_t = 1 - (W - mean autocovariance at t) / V`, so that chains which disagree count for little;
    summed in pairs for as long as a pair is positive, each pair no larger than the one before.

    Source:
        Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7(4), 1992; for several chains
        Vehtari et al., "Rank-normalization, folding, and localization", Bayesian Analysis 16(2), 2021.
    """
    halves = _halves(draws)
    n_chains, n = halves.shape
    covariance = autocovariance(halves).mean(dim=0)
    within = float(covariance[0]) * n / (n - 1)
    pooled = float(covariance[0]) + float(halves.mean(dim=1).var())
    if pooled == 0:
        return float(n_chains * n)
    rho = 1 - (within - covariance * n / (n - 1)) / pooled
    rho[0] = 1
    pairs = rho[: n - n % 2].reshape(-1, 2).sum(dim=1)
    ends = (pairs <= 0).nonzero()
    pairs = pairs[: int(ends[0]) if len(ends) else len(pairs)]
    falling = torch.cummin(pairs, dim=0).values
    time = max(2 * float(falling.sum()) - 1, 1.0)
    return n_chains * n / time


def growth(draws: Float64[Tensor, "chains draws"]) -> tuple[float, float]:
    """By what share of its mean a quantity is larger in the second half of the draws, and that in standard errors.

    All chains start at one point, so that R-hat is small from the start where they have not spread yet: this tells.
    Each chain's difference counts as one observation; 0 and 0 where nothing varies between chains.
    """
    n = draws.shape[1] // 2
    gains = draws[:, -n:].mean(dim=1) - draws[:, :n].mean(dim=1)
    mean, error = float(draws.mean()), float(gains.std()) / len(gains) ** 0.5
    if mean == 0 or error == 0:
        return 0.0, 0.0
    return float(gains.mean()) / mean, float(gains.mean()) / error


def autocovariance(draws: Float64[Tensor, "chains draws"]) -> Float64[Tensor, "chains draws"]:
    """`sum_i (x_i - mean)(x_(i+t) - mean) / n` of each chain at every lag, by Fourier transforms."""
    n = draws.shape[1]
    centred = draws - draws.mean(dim=1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=1)
    found: Tensor = torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=1)[:, :n] / n
    return found


def _halves(draws: Tensor) -> Tensor:
    n = draws.shape[1] // 2
    return torch.cat([draws[:, :n], draws[:, -n:]])
