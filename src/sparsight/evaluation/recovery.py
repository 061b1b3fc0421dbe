"""How much of a known dictionary a learned one has found."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric

_RANDOM_ATOMS = 0xA70  # says what a generator is for, beside the seed
RECOVERED = 0.9  # cosine above which a true atom counts as found
COMPOSITE = 0.3  # cosine above which a true atom is part of a learned one; that of two in equal parts is 0.71


@dataclass(frozen=True)
class CodeRecovery:
    """Agreement of matched latents with the true ones, means over the *true* latents that were ever in use.

    A true latent without a partner scores 0 on both.

    Attributes:
        n: True latents in use.
        f1: F1 of "in use" against "in use", in `[0, 1]`.
        correlation: Pearson correlation of values over tokens, in `[-1, 1]`; 0 for a partner that never varies.
        precision: Share of a partner's uses that are uses of the true latent; 0 for one never in use.
        recall: Share of the true latent's uses that are uses of its partner.
        f1_of_live: `f1` over true latents whose partner is in use at all; 0 when there is none.
    """

    n: int
    f1: float
    correlation: float
    precision: float = 0.0
    recall: float = 0.0
    f1_of_live: float = 0.0


@dataclass(frozen=True)
class Recovery:
    """Agreement of learned atoms with true ones, by signed cosine: non-negative codes cannot use an atom backwards.

    Attributes:
        matched_cosine: Mean cosine under the best one-to-one assignment, over *all* true atoms (those without a partner
            count 0), in `[-1, 1]`.
        matched_cosine_of_pairs: The same over assigned pairs only; flatters a dictionary narrower than the truth.
        mmcs_true_to_learned: Mean over true atoms of the largest cosine to a learned one. Rises with width for free.
        mmcs_learned_to_true: Mean over learned atoms of the largest cosine to a true one. Falls with spurious atoms.
        fraction_recovered: Share of true atoms with a learned one at cosine above `threshold`, in `[0, 1]`.
        uniqueness: Share of learned atoms that are not second or later on the same nearest true atom, in `(0, 1]`.
        duplicates_per_atom: Learned atoms above `threshold` of a true one beyond the first, mean over true atoms found.
        fraction_composite: Share of learned atoms with a cosine above 0.3 to two true atoms or more that lie in the
            span of these: several true atoms in one, in `[0, 1]`.
        chance_mmcs: `mmcs_true_to_learned` of random atoms of the same shape: what 0 looks like.
        threshold: Cosine above which a true atom counts as found.
        codes: Agreement of codes, when both were given.
    """

    matched_cosine: float
    matched_cosine_of_pairs: float
    mmcs_true_to_learned: float
    mmcs_learned_to_true: float
    fraction_recovered: float
    uniqueness: float
    duplicates_per_atom: float
    fraction_composite: float
    chance_mmcs: float
    threshold: float
    codes: CodeRecovery | None


def recovery(
    atoms: Float[Tensor, "n_latents d"],
    true_atoms: Float[Tensor, "n_true d"],
    codes: SparseCode | None = None,
    true_codes: SparseCode | None = None,
    *,
    threshold: float = RECOVERED,
    seed: int = 0,
) -> Recovery:
    """Compare learned atoms, and their codes if given, with the truth.

    The assignment maximises the sum of signed cosines (Hungarian algorithm). Memory is that of one dense code matrix:
    this is for planted data.

    Args:
        atoms: Learned directions, of any non-zero norm.
        true_atoms: True directions, of any non-zero norm.
        codes: Learned codes of some activations.
        true_codes: True codes of the same activations.
        threshold: Cosine above which a true atom counts as found.
        seed: Of the random atoms behind `chance_mmcs`.
    Raises:
        ValueError: one of the codes came without the other, or they do not fit the atoms or each other.
        UndefinedMetric: an atom is zero, or no true latent is ever in use.
    """
    if (codes is None) != (true_codes is None):
        raise ValueError("codes and true_codes come together: give both or neither")
    unit, true_unit = _unit(atoms, "atoms"), _unit(true_atoms, "true_atoms")
    cosines = true_unit @ unit.T
    true_matched, matched = matching(cosines)
    of_pairs = cosines[true_matched, matched]
    # Not the bare seed, which may have drawn the true atoms as well.
    generator = torch.Generator().manual_seed(mix_seed(seed, _RANDOM_ATOMS))
    random = torch.randn(unit.shape, generator=generator, dtype=torch.float64)
    best = cosines.max(dim=1).values
    compared = None
    if codes is not None and true_codes is not None:
        _check_codes(codes, true_codes, len(unit), len(true_unit))
        compared = _compare_codes(codes, true_codes, matched, true_matched)
    return Recovery(
        matched_cosine=of_pairs.sum().item() / len(true_unit),
        matched_cosine_of_pairs=of_pairs.mean().item(),
        mmcs_true_to_learned=best.mean().item(),
        mmcs_learned_to_true=cosines.max(dim=0).values.mean().item(),
        fraction_recovered=(best > threshold).double().mean().item(),
        uniqueness=len(torch.unique(cosines.argmax(dim=0))) / len(unit),
        duplicates_per_atom=_duplicates(cosines, threshold),
        fraction_composite=_composites(unit, true_unit, cosines, threshold),
        chance_mmcs=(true_unit @ _unit(random, "random").T).max(dim=1).values.mean().item(),
        threshold=threshold,
        codes=compared,
    )


def matching(cosines: Float64[Tensor, "n m"]) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"]]:
    """Rows and columns of the one-to-one assignment with the largest sum (Hungarian algorithm)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-cosines.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


@dataclass(frozen=True)
class Stability:
    """Agreement of dictionaries trained alike from several seeds: what the data fix, and what the seed does.

    Attributes:
        matched_cosine: Mean cosine under the best one-to-one assignment, mean over pairs of dictionaries.
        fraction_shared: Share of atoms whose partner is above `threshold`, mean over pairs.
        fraction_orphan: Share of atoms of the first dictionary that have a neighbour above `threshold` in no other.
        chance_cosine: `matched_cosine` of random atoms of the same shape.
        n_dictionaries: How many there are.
        threshold: Cosine above which two atoms count as one.
    """

    matched_cosine: float
    fraction_shared: float
    fraction_orphan: float
    chance_cosine: float
    n_dictionaries: int
    threshold: float


def stability(dictionaries: Sequence[Float[Tensor, "_ d"]], *, threshold: float = 0.7, seed: int = 0) -> Stability:
    """Compare dictionaries that differ by their seed, every two of them, by signed cosine.

    Args:
        dictionaries: Their atoms, of any non-zero norm; at least two.
        threshold: Cosine above which two atoms count as one.
        seed: Of the random atoms behind `chance_cosine`.
    Raises:
        ValueError: there are fewer than two.
        UndefinedMetric: an atom is zero.
    """
    if len(dictionaries) < 2:
        raise ValueError(f"stability compares at least two dictionaries, got {len(dictionaries)}")
    units = [_unit(atoms, f"dictionary {i}") for i, atoms in enumerate(dictionaries)]
    means, shares = [], []
    for i, first in enumerate(units):
        for second in units[i + 1 :]:
            cosines = first @ second.T
            rows, columns = matching(cosines)
            of_pairs = cosines[rows, columns]
            n = max(len(first), len(second))  # an atom without a partner counts 0
            means.append(of_pairs.sum().item() / n)
            shares.append((of_pairs > threshold).sum().item() / n)
    nearest = torch.stack([(units[0] @ other.T).max(dim=1).values for other in units[1:]])
    generator = torch.Generator().manual_seed(mix_seed(seed, _RANDOM_ATOMS))
    random = [_unit(torch.randn(units[0].shape, generator=generator, dtype=torch.float64), "random") for _ in (0, 1)]
    chance = random[0] @ random[1].T
    rows, columns = matching(chance)
    return Stability(
        matched_cosine=sum(means) / len(means),
        fraction_shared=sum(shares) / len(shares),
        fraction_orphan=(nearest <= threshold).all(dim=0).double().mean().item(),
        chance_cosine=chance[rows, columns].mean().item(),
        n_dictionaries=len(units),
        threshold=threshold,
    )


def _duplicates(cosines: Float64[Tensor, "n m"], threshold: float) -> float:
    """Learned atoms beyond the first above the threshold, mean over true atoms that have one; 0 when none has."""
    found = (cosines > threshold).sum(dim=1)
    return float((found[found > 0] - 1).double().mean()) if bool((found > 0).any()) else 0.0


def _composites(
    unit: Float64[Tensor, "m d"], true_unit: Float64[Tensor, "n d"], cosines: Float64[Tensor, "n m"], threshold: float
) -> float:
    """Share of learned atoms that are none of the true ones, and are explained by several near ones together."""
    composite = 0
    for j in range(len(unit)):
        near = cosines[:, j] > COMPOSITE
        if int(near.sum()) < 2 or float(cosines[:, j].max()) > threshold:
            continue
        basis = true_unit[near].T
        residual = unit[j] - basis @ torch.linalg.lstsq(basis, unit[j, :, None]).solution[:, 0]
        # The cosine to the span is above the threshold; a span of all d dimensions explains anything.
        whole = int(near.sum()) < unit.shape[1]
        composite += whole and 1 - float(residual.square().sum()) > threshold**2
    return composite / len(unit)


def _unit(atoms: Tensor, name: str) -> Tensor:
    rows = atoms.detach().double().cpu()
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not len(rows) or not (norms > 0).all():
        raise UndefinedMetric(
            f"{name} must be non-zero directions, got {int((norms == 0).sum())} zero rows of {len(rows)}"
        )
    unit: Tensor = rows / norms
    return unit


def _check_codes(codes: SparseCode, true_codes: SparseCode, n_latents: int, n_true: int) -> None:
    if len(codes) != len(true_codes):
        raise ValueError(f"codes must be of the same activations, got {len(codes)} and {len(true_codes)} rows")
    if (codes.n_latents, true_codes.n_latents) != (n_latents, n_true):
        raise ValueError(
            f"codes must be over the atoms given ({n_latents} and {n_true}), "
            f"got {codes.n_latents} and {true_codes.n_latents}"
        )


def _compare_codes(codes: SparseCode, true_codes: SparseCode, matched: Tensor, true_matched: Tensor) -> CodeRecovery:
    truth = true_codes.to("cpu").to_dense().double()
    in_use = (truth != 0).any(dim=0)
    if not in_use.any():
        raise UndefinedMetric("code recovery is undefined: no true latent is ever in use")
    found = torch.zeros_like(truth)  # a true latent without a partner is matched with silence
    found[:, true_matched] = codes.to("cpu").to_dense().double()[:, matched]
    truth, found = truth[:, in_use], found[:, in_use]
    both = ((truth != 0) & (found != 0)).sum(dim=0)
    f1 = 2 * both.double() / ((truth != 0).sum(dim=0) + (found != 0).sum(dim=0))
    used = (found != 0).sum(dim=0).double()
    precision = torch.where(used > 0, both.double() / used.clamp_min(1), 0.0)
    recall = both.double() / (truth != 0).sum(dim=0)
    live = f1[used > 0].mean().item() if bool((used > 0).any()) else 0.0
    truth, found = truth - truth.mean(dim=0), found - found.mean(dim=0)
    product = truth.norm(dim=0) * found.norm(dim=0)
    dot = (truth * found).sum(dim=0)
    correlation = torch.where(product > 0, dot / product.clamp_min(torch.finfo(product.dtype).tiny), 0.0)
    return CodeRecovery(
        int(in_use.sum()),
        f1.mean().item(),
        correlation.mean().item(),
        precision.mean().item(),
        recall.mean().item(),
        live,
    )
