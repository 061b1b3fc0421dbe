"""How much of a known dictionary a learned one has found."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric

_RANDOM_ATOMS = 0xA70  # says what a generator is for, beside the seed
RECOVERED = 0.9  # cosine above which a true atom counts as found


@dataclass(frozen=True)
class CodeRecovery:
    """Agreement of matched latents with the true ones, means over the *true* latents that were ever in use.

    A true latent without a partner scores 0 on both.

    Attributes:
        n: True latents in use.
        f1: F1 of "in use" against "in use", in `[0, 1]`.
        correlation: Pearson correlation of values over tokens, in `[-1, 1]`; 0 for a partner that never varies.
    """

    n: int
    f1: float
    correlation: float


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
        chance_mmcs: `mmcs_true_to_learned` of random atoms of the same shape: what 0 looks like.
        threshold: Cosine above which a true atom counts as found.
        codes: Agreement of codes, when both were given.
    """

    matched_cosine: float
    matched_cosine_of_pairs: float
    mmcs_true_to_learned: float
    mmcs_learned_to_true: float
    fraction_recovered: float
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
    from scipy.optimize import linear_sum_assignment

    true_matched, matched = (torch.from_numpy(side) for side in linear_sum_assignment(-cosines.numpy()))
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
        chance_mmcs=(true_unit @ _unit(random, "random").T).max(dim=1).values.mean().item(),
        threshold=threshold,
        codes=compared,
    )


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
    truth, found = truth - truth.mean(dim=0), found - found.mean(dim=0)
    product = truth.norm(dim=0) * found.norm(dim=0)
    dot = (truth * found).sum(dim=0)
    correlation = torch.where(product > 0, dot / product.clamp_min(torch.finfo(product.dtype).tiny), 0.0)
    return CodeRecovery(int(in_use.sum()), f1.mean().item(), correlation.mean().item())
