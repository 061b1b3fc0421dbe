"""Moving atoms when codes are given: four classical updates as pure functions of codes and activations.

Codes `F` `[n, m]` are non-negative and sparse, activations `X` `[n, d]` have the offset taken off, atoms `D` `[m, d]`
are rows. All lower the squared error `|X - F D|^2`. Sums over tokens are float64.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode


def co_activations(code: SparseCode) -> Float[Tensor, "m m"]:
    """`F^T F`, in float64: sums over tokens of products of two latents' values. Touches `n k^2` pairs, not `n m^2`."""
    m = code.n_latents
    values = code.values.double()
    pairs = (code.indices.unsqueeze(2) * m + code.indices.unsqueeze(1)).flatten()
    products = (values.unsqueeze(2) * values.unsqueeze(1)).flatten()
    return values.new_zeros(m * m).index_add_(0, pairs, products).view(m, m)


def cross_moments(code: SparseCode, x: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """`F^T X`, in float64."""
    tokens = torch.arange(len(code), device=x.device).repeat_interleave(code.k)
    weighted = x.double()[tokens] * code.values.double().flatten().unsqueeze(1)
    return weighted.new_zeros(code.n_latents, x.shape[1]).index_add_(0, code.indices.flatten(), weighted)


def mod_update(
    gram: Float[Tensor, "m m"], cross: Float[Tensor, "m d"], atoms: Float[Tensor, "m d"], *, ridge: float = 0.0
) -> Float[Tensor, "m d"]:
    """Method of optimal directions: `(G + delta I)^{-1} (F^T X + delta D)` with `G = F^T F`, all atoms at once.

    The minimiser of `|X - F D'|^2 + delta |D' - D|^2`. At `delta` = 0 the residual is orthogonal to the codes,
    `(X - F D')^T F = 0`. Atoms without use stay where they are.

    Args:
        gram: Co-activations, float64.
        cross: `F^T X`, float64.
        atoms: The atoms of the codes.
        ridge: `delta` as a fraction of the mean of `G`'s positive diagonal. 0 needs codes of full column rank.
    Returns:
        Atoms in float64, not of unit norm.
    Raises:
        ValueError: `ridge` is 0 and the codes do not determine the atoms.
    Source:
        Engan, Aase & Husoy, 1999. We draw towards the old atoms where a plain ridge draws towards 0, which would favour
        frequent latents.
    """
    used = gram.diagonal() > 0
    updated = atoms.double().clone()
    if not bool(used.any()):
        return updated
    system, wanted = gram[used][:, used].clone(), cross[used]
    delta = ridge * float(system.diagonal().mean())
    system.diagonal().add_(delta)
    factor, failed = torch.linalg.cholesky_ex(system)
    if int(failed) > 0:
        raise ValueError("the codes do not determine the atoms: some latents are always active together; set ridge > 0")
    updated[used] = torch.cholesky_solve(wanted + delta * updated[used], factor)
    return updated


def online_update(
    gram: Float[Tensor, "m m"], cross: Float[Tensor, "m d"], atoms: Float[Tensor, "m d"], *, sweeps: int = 1
) -> Float[Tensor, "m d"]:
    """Block coordinate descent on `|X - F D|^2`: each atom in turn is set to its optimum, the others held.

    `d_j <- d_j + (c_j - g_j D) / G_jj`, one Gauss-Seidel sweep over MOD's normal equations: many sweeps end where
    `mod_update` does, one sweep with orthogonal codes already. Atoms without use stay where they are.

    Args:
        gram: Co-activations, float64.
        cross: `F^T X`, float64.
        atoms: The atoms of the codes.
        sweeps: Times that every atom is visited.
    Returns:
        Atoms in float64, not of unit norm.
    Source:
        Mairal et al., 2010, algorithm 2. We leave out the projection onto the unit ball: norms go into the codes.
    """
    updated = atoms.double().clone()
    diagonal = gram.diagonal()
    used = diagonal.nonzero()[:, 0].tolist()
    for _ in range(sweeps):
        for j in used:
            updated[j] += (cross[j] - gram[j] @ updated) / diagonal[j]
    return updated


def ksvd_update(
    code: SparseCode,
    x: Float[Tensor, "n d"],
    atoms: Float[Tensor, "m d"],
    *,
    inertia: Float[Tensor, " m"] | None = None,
    rounds: int = 2,
) -> tuple[SparseCode, Float[Tensor, "m d"]]:
    """Non-negative K-SVD: for each latent, the best atom *and* values, all else held.

    On the tokens that use latent `j`, with `E` their residual without its contribution, alternate the two optima
    `d <- (E^T f + m_j d_old) / |.|` and `f <- max(0, E d)`. They minimise `|E - f d^T|^2 + m_j |d - d_old|^2`, so that
    the squared error of the batch never rises. Supports only shrink.

    Args:
        code: Codes over `atoms`.
        x: Activations less the offset.
        atoms: Unit rows.
        inertia: `m_j`, the sum of squared values with which the past holds an atom in place; none when not given.
        rounds: Alternations for each latent.
    Returns:
        The code with new values, and atoms of unit norm.
    Source:
        Aharon, Elad & Bruckstein, 2005, "K-SVD and its non-negative variant". We add the inertia, for streams.
    """
    values, updated = code.values.clone().flatten(), atoms.clone()
    residual = x - code.decode(atoms)
    slots = (values > 0).nonzero()[:, 0]
    slots = slots[code.indices.flatten()[slots].argsort(stable=True)]
    counts = torch.bincount(code.indices.flatten()[slots], minlength=code.n_latents)
    for j, users in enumerate(torch.split(slots, counts.tolist())):
        if len(users) == 0:
            continue
        tokens = users.div(code.k, rounding_mode="floor")
        f, d = values[users], updated[j]
        alone = torch.addr(residual[tokens], f, d)
        held = 0.0 if inertia is None else inertia[j] * updated[j]
        for _ in range(rounds):
            direction = f @ alone + held
            norm = direction.norm()
            if not norm > 0:  # every value has gone to 0: the old atom stays
                break
            d = direction / norm
            f = (alone @ d).relu()
        residual[tokens] = torch.addr(alone, f, d, alpha=-1)
        values[users], updated[j] = f, d
    return SparseCode(code.indices, values.view_as(code.values), code.n_latents), updated


def stop_gradient_loss(code: SparseCode, x: Float[Tensor, "n d"], atoms: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """`|X - F D|^2 / n` with `F` held constant, differentiable in the atoms.

    By the envelope theorem its derivative is that of `min_F |X - F D|^2 / n` over values on the supports, provided that
    `code` attains this minimum (`refit`, or a polished pursuit). For raw values of gradient pursuit it is not.
    """
    held = SparseCode(code.indices, code.values.detach(), code.n_latents)
    return (x - held.decode(atoms)).square().sum(dim=1).mean()


def unit_norm(
    atoms: Float[Tensor, "m d"], fallback: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
    """Atoms of norm 1, and the norms by which codes are to be multiplied so that `F D` is what it was.

    An atom of norm 0 gets the direction of `fallback` and norm 0: its codes vanish.
    """
    norms = atoms.norm(dim=1)
    unit = torch.where(
        (norms > 0).unsqueeze(1), atoms / norms.clamp_min(torch.finfo(atoms.dtype).tiny).unsqueeze(1), fallback
    )
    return unit, norms


def worst_reconstructed(residual: Float[Tensor, "n d"], count: int) -> Float[Tensor, "c d"]:
    """Unit residuals of the `count` tokens that have the largest (fewer, if fewer are not 0), in this order."""
    sizes = residual.norm(dim=1)
    worst: Int64[Tensor, " n"] = sizes.argsort(descending=True, stable=True)[: min(count, int((sizes > 0).sum()))]
    rows: Tensor = residual[worst] / sizes[worst].unsqueeze(1)
    return rows
