"""Post-hoc scales: what multiplying the latents of a given code can win back."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding.arguments import check_code


@torch.no_grad()
def fit_scale(
    x: Float[Tensor, "n d"],
    code: SparseCode,
    atoms: Float[Tensor, "n_latents d"],
    *,
    per_latent: bool = True,
) -> Float[Tensor, "..."]:
    """The factors by which to multiply the latents of `code` so that `x` is reconstructed best.

    One scalar: `E<x, x_hat> / E|x_hat|^2`. One factor per latent, all fitted jointly: the `s` that minimises
    `E|x - sum_j s_j z_j d_j|^2`, that is `A s = c` with `A_jl = E[z_j z_l] <d_j, d_l>` and `c_j = E[z_j <d_j, x>]`.
    Fitting each alone, the others held at 1, is wrong wherever latents fire together. `A` has an entry for each pair of
    latents that ever fire together and is never formed: conjugate gradients need only decoded codes.

    Args:
        x: Activations less the decoder's bias, in the units of the code.
        code: A code of them over these atoms.
        atoms: Directions of unit norm.
        per_latent: One factor for each latent; else one for all.
    Returns:
        `[n_latents]` factors, 1 for a latent that never fires; or a scalar, 1 if nothing fires. Not constrained to be
        positive.
    Raises:
        ValueError: `x` not finite; atoms not of unit norm; shapes disagree.
    """
    check_code(x, code, atoms)
    # One power of two for everything: squares of tiny and huge units stay in range, ratios do not change.
    largest = float(x.abs().max()) if x.numel() else 0.0
    unit = 2.0 ** math.frexp(largest)[1] if largest > 0 else 1.0
    x, values = x.double() / unit, code.values.double() / unit
    scaled = SparseCode(code.indices, values, code.n_latents)
    atoms = atoms.double()
    if not per_latent:
        x_hat = scaled.decode(atoms)
        energy = x_hat.square().sum()
        return torch.where(energy > 0, (x * x_hat).sum() / energy, 1).to(code.values.dtype)
    return _joint(x, scaled, atoms).to(code.values.dtype)


def _joint(
    x: Float[Tensor, "n d"], code: SparseCode, atoms: Float[Tensor, "n_latents d"]
) -> Float[Tensor, " n_latents"]:
    """Conjugate gradients on the normal equations, starting at scale 1, preconditioned by each latent's energy."""
    energy = _gathered(code, code.values)
    active = energy > 0
    weight = torch.where(active, 1 / energy.clamp_min(torch.finfo(energy.dtype).tiny), 0)
    factors = torch.ones_like(energy)
    residual = x - code.decode(atoms)
    gradient = _gradient(residual, code, atoms)
    downhill = weight * gradient
    slope = start = (gradient * downhill).sum()
    direction = downhill
    for _ in range(min(10 * len(energy), 1000)):
        # CGLS keeps the residual of the data itself, which squares no condition number.
        if slope <= 1e-28 * start or slope == 0:
            break
        moved = _stretched(code, direction).decode(atoms)
        step = slope / moved.square().sum()
        factors = factors + step * direction
        residual = residual - step * moved
        gradient = _gradient(residual, code, atoms)
        downhill = weight * gradient
        slope, before = (gradient * downhill).sum(), slope
        direction = downhill + (slope / before) * direction
    return factors


def _stretched(code: SparseCode, factors: Float[Tensor, " n_latents"]) -> SparseCode:
    return SparseCode(code.indices, code.values * factors[code.indices], code.n_latents)


def _gradient(
    residual: Float[Tensor, "n d"], code: SparseCode, atoms: Float[Tensor, "n_latents d"]
) -> Float[Tensor, " n_latents"]:
    """`sum_rows z_j <d_j, residual>` for each latent."""
    products = torch.empty_like(code.values)
    for slot in range(code.k):
        products[:, slot] = (atoms[code.indices[:, slot]] * residual).sum(dim=1)
    return _gathered(code, products)


def _gathered(code: SparseCode, products: Float[Tensor, "n k"]) -> Float[Tensor, " n_latents"]:
    """`sum_rows z_j * products` for each latent."""
    sums = products.new_zeros(code.n_latents)
    return sums.index_add_(0, code.indices.flatten(), (code.values * products).flatten())
