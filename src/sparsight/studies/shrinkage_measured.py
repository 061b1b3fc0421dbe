"""What the study of shrinkage measures: constructed reconstructions, planted truth, trained dictionaries, coders."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import (
    fista,
    fit_scale,
    gradient_pursuit,
    matching_pursuit,
    orthogonal_matching_pursuit,
    refit,
)
from sparsight.dictionaries import AbstractDictionary
from sparsight.dictionaries.base import Normalization, Number
from sparsight.dictionaries.relu import FIRST_L1
from sparsight.evaluation import JointScaleSums, Shrinkage, TokenScales, ValueProfile, metrics, panel_of
from sparsight.studies.planted import Planted, unit
from sparsight.training import Run

MEASURES = ("r", "gamma_v1", "nu", "beta", "token norm ratio", "token beta")
FOUND = 0.9  # cosine above which a learned atom is taken for a true one


def minimiser(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> float:
    """The `g` that minimises `sum |x_hat / g - x|^2`, by search alone: right to about 1e-7."""
    from scipy.optimize import minimize_scalar

    x, x_hat = x.double(), x_hat.double()
    size = float(x.square().sum())
    # Searched in `1 / g`, where the loss is a parabola.
    found = minimize_scalar(lambda a: float((a * x_hat - x).square().sum()) / size, bracket=(0.5, 1.5), tol=1e-10)
    return 1 / float(found.x)


def measures(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> dict[str, float | None]:
    """Everything that is, or was, called shrinkage; about the origin."""
    family, tokens = metrics.shrinkage(x, x_hat), TokenScales.of(x, x_hat)
    found = {"r": family.r, "gamma_v1": family.gamma_v1, "nu": family.nu, "beta": family.beta}
    return {**found, "token norm ratio": tokens.norm_ratio, "token beta": tokens.beta, "minimiser": minimiser(x, x_hat)}


def constructed(seed: int, d: int = 32, n: int = 4000) -> dict[str, dict[str, float | None]]:
    """Reconstructions of which it is known beforehand whether a scalar could improve them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) / torch.arange(1, d + 1).sqrt()
    noise = torch.randn(n, d, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    half = x @ basis[:, : d // 2] @ basis[:, : d // 2].T
    tails = torch.randn(n, 1, generator=g, dtype=torch.float64).exp() * unit(x)
    found = {
        "x = 1, x_hat = 1/2": measures(torch.ones(1, 1).double(), torch.full((1, 1), 0.5).double()),
        "projection on a random half": measures(x, half),
        "all of x, at the same norm ratio": measures(x, metrics.shrinkage(x, half).nu * x),
        "the projection, times 0.8": measures(x, 0.8 * half),
        "nearly perpendicular": measures(x, 0.05 * x + 0.5 * x.norm() / noise.norm() * noise),
        "heavy tails, long tokens shrunk": measures(tails, tails / (1 + tails.norm(dim=1, keepdim=True))),
    }
    for rank in range(4, d + 1, 4):
        kept = basis[:, :rank]
        found[f"rank {rank}"] = measures(x, x @ kept @ kept.T)
    return found


def identities(seed: int) -> dict[str, float]:
    """Largest deviation from each identity over fifty random pairs of activations and reconstructions."""
    g = torch.Generator().manual_seed(seed)
    worst: dict[str, float] = {}
    for _ in range(50):
        x = torch.randn(64, 6, generator=g, dtype=torch.float64) + 1
        x_hat = x @ (torch.eye(6) + 0.3 * torch.randn(6, 6, generator=g, dtype=torch.float64)) * 0.8
        s = metrics.shrinkage(x, x_hat)
        loss = (x - x_hat).square().sum(), (x - s.alpha * x_hat).square().sum()
        deviations = {
            "alpha beta = rho^2": s.alpha * s.beta - s.rho**2,
            "r = nu / rho": s.r - s.nu / s.rho,
            "gamma_v1 = sqrt(r / (2 - r))": 0.0 if s.gamma_v1 is None else s.gamma_v1 - (s.r / (2 - s.r)) ** 0.5,
            "scale gain = (nu - rho)^2": s.scale_gain - (s.nu - s.rho) ** 2,
            "scale gain is the loss removed": s.scale_gain - float((loss[0] - loss[1]) / x.square().sum()),
        }
        for name, value in deviations.items():
            worst[name] = max(worst.get(name, 0.0), abs(value))
    return worst


def of_dictionary(run: Run, fit: Float[Tensor, "m d"], x: Float[Tensor, "n d"], positions: Tensor) -> dict[str, Any]:
    """Everything about one trained dictionary; scales are fitted on `fit`, all else is of `x`."""
    d = run.dictionary
    atoms, offset = d.atoms.detach().double(), d.b_dec.detach().double()
    z = coded(d, x)
    y = x.double() - offset
    y_hat = z.decode(atoms)
    panel = panel_of(y, z, atoms, positions)
    refitted = refit(y, atoms, z.support())
    factors = _factors(fit.double() - offset, coded(d, fit), atoms)
    scaled = [SparseCode(z.indices, z.values * (s if s.dim() == 0 else s[z.indices]), z.n_latents) for s in factors]
    codes = {"own": z, "one scale": scaled[0], "joint scales": scaled[1], "refit": refitted}
    return {
        "l0": metrics.l0(z),
        "fvu": {name: metrics.fvu(y, code.decode(atoms)) for name, code in codes.items()},
        "r": {name: metrics.shrinkage(y, code.decode(atoms)).r for name, code in codes.items()},
        "raw r": metrics.shrinkage(x, y_hat + offset).r,
        "measures": measures(y, y_hat),
        "price": price(run, fit),
        "panel": panel.model_dump(),
    }


def _factors(
    y: Float[Tensor, "m d"], code: SparseCode, atoms: Float[Tensor, "n_latents d"]
) -> list[Float[Tensor, "..."]]:
    """The best scale for all latents, and the best for each, jointly."""
    parts = [slice(i, i + 1024) for i in range(0, len(y), 1024)]
    sums = JointScaleSums.of(y[parts[0]], code[parts[0]], atoms)
    for part in parts[1:]:
        sums = sums + JointScaleSums.of(y[part], code[part], atoms)
    return [fit_scale(y, code, atoms, per_latent=False), sums.scales(atoms)]


def coded(d: AbstractDictionary, x: Float[Tensor, "n d"]) -> SparseCode:
    """A dictionary's own code, in double precision."""
    with torch.no_grad():
        z = d.encode(x.float())
    return SparseCode(z.indices, z.values.double(), z.n_latents)


def price(run: Run, x: Float[Tensor, "n d"]) -> dict[str, float] | None:
    """`1 - r` of the training objective's stationary points, beside what it is; None without an L1 penalty on values.

    Multiplying encoder weights and offsets by `s` multiplies all values by `s`. Where training has come to rest the
    objective `E|y - s y_hat|^2 + l1 E sum_j s f_j` has no slope at `s = 1`: `c - h = l1 E sum_j f_j / 2`. Objectives
    in which `s` costs nothing rest at `c = h`, that is `r = 1`.
    """
    d = run.dictionary
    if d.config.architecture != "relu":
        return None
    assert isinstance(d.normalization, Normalization)
    lines = [line for line in run.metrics if "gain" in line]
    late = [line["gain"] for line in lines[-max(1, len(lines) // 10) :]]
    l1 = FIRST_L1 * sum(late) / len(late)
    z = coded(d, x)
    y = x.double() - d.b_dec.detach().double()
    family = metrics.shrinkage(y, z.decode(d.atoms.detach().double()))
    dot = family.beta * float(y.square().sum(dim=1).mean()) * d.normalization.scale**2
    total = float(z.values.sum(dim=1).mean()) * d.normalization.scale
    return {"measured": 1 - family.r, "predicted": l1 * total / (2 * dot), "l1": l1}


def against_truth(d: AbstractDictionary, planted: Planted) -> dict[str, float]:
    """Values of the latents that found a true atom, against the true ones, where both are active."""
    atoms = d.atoms.detach().double()
    z = coded(d, planted.x)
    cosines, partner = (planted.atoms @ atoms.T).max(dim=1)
    truth, own = planted.code.to_dense(), z.to_dense()[:, partner]
    on = (truth > 0) & (own > 0) & (cosines > FOUND)
    profile = ValueProfile.of(own[on], truth[on], torch.tensor([1.0, 2.0], dtype=torch.float64))
    slope, intercept = profile.line
    by_factor, by_amount = profile.explained
    y = planted.x - d.b_dec.detach().double()
    return {
        "l0": metrics.l0(z),
        "r": metrics.shrinkage(y, z.decode(atoms)).r,
        "found": float((cosines > FOUND).double().mean()),
        "slope": slope,
        "intercept": intercept,
        "by factor": by_factor,
        "by amount": by_amount,
    }


def of_coders(d: AbstractDictionary, fit: Float[Tensor, "m d"], x: Float[Tensor, "n d"], k: int) -> dict[str, Any]:
    """`r`, FVU and L0 of coders over one dictionary's atoms, and how far the lasso is from its closed form."""
    atoms = d.atoms.detach().double()
    y = x.double() - d.b_dec.detach().double()
    penalty = _penalty(fit.double() - d.b_dec.detach().double(), atoms, k)
    lasso = fista(y, atoms, penalty, gap=1e-9, max_steps=4000)
    closed = lasso_closed_form(y, atoms, lasso, penalty)
    encoder = coded(d, x)
    codes = {
        "encoder": encoder,
        "encoder, refit": refit(y, atoms, encoder.support()),
        "matching pursuit": matching_pursuit(y, atoms, k),
        "gradient pursuit": gradient_pursuit(y, atoms, k),
        "orthogonal matching pursuit": orthogonal_matching_pursuit(y, atoms, k),
        "lasso": lasso,
        "lasso, debiased": refit(y, atoms, lasso.support()),
    }
    found = {name: _summary(y, code, atoms) for name, code in codes.items()}
    h = float(closed.decode(atoms).square().sum())
    return {
        "coders": found,
        "penalty": penalty,
        "closed form": {
            "values": float((closed.values - lasso.values).abs().max() / lasso.values.max()),
            "r": metrics.shrinkage(y, closed.decode(atoms)).r - h / (h + penalty * float(closed.values.sum())),
        },
    }


def lasso_closed_form(
    y: Float[Tensor, "n d"], atoms: Float[Tensor, "n_latents d"], code: SparseCode, penalty: float
) -> SparseCode:
    """The lasso on its own support `S`: least squares less `penalty (D_S D_S')^-1 1`.

    So the residual has inner product `penalty` with every active atom, and `c - h = penalty sum_j f_j`: the bias of a
    lasso's code is `r = h / (h + penalty E sum_j f_j)`.
    """
    values = torch.zeros_like(code.values)
    for row in range(len(y)):
        on = code.values[row] != 0
        chosen = atoms[code.indices[row, on]]
        if len(chosen):
            values[row, on] = torch.linalg.solve(chosen @ chosen.T, chosen @ y[row] - penalty)
    return SparseCode(code.indices, values, code.n_latents)


def _summary(y: Tensor, code: SparseCode, atoms: Tensor) -> dict[str, float]:
    y_hat = code.decode(atoms)
    family: Shrinkage = metrics.shrinkage(y, y_hat)
    return {"r": family.r, "nu": family.nu, "fvu": metrics.fvu(y, y_hat), "l0": metrics.l0(code)}


def _penalty(y: Tensor, atoms: Tensor, k: int) -> float:
    """The penalty at which the lasso uses `k` latents on average, by bisection."""

    def l0(penalty: float) -> float:
        return metrics.l0(fista(y, atoms, penalty, gap=1e-5))

    return bisected(l0, k, 0.0, float((y @ atoms.T).max()))


def bisected(falling: Callable[[float], float], target: Number, low: float, high: float, steps: int = 14) -> float:
    """Where a falling function of a positive number takes a value."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > target else (low, middle)
    return (low + high) / 2
