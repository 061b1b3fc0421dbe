"""What the study of the orthogonality quirk measures: recall of planted pairs, overlap with the chosen span."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import gradient_pursuit, orthogonal_matching_pursuit, span_overlap
from sparsight.dictionaries import AbstractDictionary, Pursuit, TopK
from sparsight.evaluation import DocumentSums
from sparsight.evaluation.arms import Setting as ArmSetting
from sparsight.evaluation.arms import topk
from sparsight.evaluation.evaluate import ratio
from sparsight.evaluation.reading import batches, part_of, row_blocks
from sparsight.evaluation.record import estimate
from sparsight.studies.planted import paired_atoms, random_atoms, tied_encoder
from sparsight.studies.subject import Subject, subject, trained
from sparsight.studies.work import Work
from sparsight.training import Training

CODERS = ("GP", "OMP", "encoder")
NEAR_LEARNED = 0.5  # learned atoms come less close


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seeds: int
    signals: int
    n_stored: int
    n_trained: int
    n_coded: int


K = 16


def pair_recalls(key: tuple[float, bool], plan: Plan, seed: int) -> list[dict[str, float]]:
    """Recall of each coder on each draw."""
    cosine, both = key
    rows = []
    for s in range(plan.seeds):
        planted = paired_atoms(1000 * seed + s, cosine, both=both, n=plan.signals)
        codes = (
            gradient_pursuit(planted.x, planted.atoms, planted.k),
            orthogonal_matching_pursuit(planted.x, planted.atoms, planted.k),
            tied_encoder(planted, planted.k),
        )
        rows.append({name: planted.recall(code) for name, code in zip(CODERS, codes, strict=True)})
    return rows


def planted_overlap(plan: Plan, seed: int) -> dict[str, list[dict[str, float]]]:
    """Mean overlaps, and the largest violation of the bound on scores, for each draw."""
    problems: dict[str, Callable[[int], Any]] = {
        "incoherent, 64 d": lambda s: random_atoms(s, 64, 256, 6, 0.0, plan.signals),
        "incoherent, 32 d": lambda s: random_atoms(s, 32, 512, 8, 0.05, plan.signals),
        "pairs at 0.9": lambda s: paired_atoms(s, 0.9, both=True, n=plan.signals),
    }
    found: dict[str, list[dict[str, float]]] = {}
    for name, problem in problems.items():
        for s in range(plan.seeds):
            planted = problem(1000 * seed + s)
            x, atoms, k = planted.x, planted.atoms, planted.k
            gp, omp = gradient_pursuit(x, atoms, k), orthogonal_matching_pursuit(x, atoms, k)
            probes = _random_latents(gp, seed + s)
            found.setdefault(name, []).append(
                {
                    "GP": _mean(row_overlaps(gp, atoms)),
                    "OMP": _mean(row_overlaps(omp, atoms)),
                    "encoder": _mean(row_overlaps(tied_encoder(planted, k), atoms)),
                    "random": _mean(row_overlaps(gp, atoms, probes)),
                    "violation": score_violation(x, atoms, k - 1),
                }
            )
    return found


def row_overlaps(code: SparseCode, atoms: Tensor, probes: Tensor | None = None) -> Tensor:
    """Sum of overlaps and number of slots counted (used, from the second used one on), for each row: `[n, 2]`."""
    used = code.values != 0
    counted = (used & (used.cumsum(dim=1) > 1)).double()
    overlaps = span_overlap(code, atoms, probes=probes).double()
    return torch.stack([(overlaps * counted).sum(dim=1), counted.sum(dim=1)], dim=1)


def score_violation(x: Tensor, atoms: Tensor, k: int) -> float:
    """Largest excess of a score over `|r|` times the atom's sine to the span, relative to `|x|`; at most rounding.

    Signed pursuit: only there is the residual orthogonal to the whole span of the chosen atoms.
    """
    code = orthogonal_matching_pursuit(x, atoms, k, nonnegative=False)
    residual = x - code.decode(atoms)
    basis = torch.linalg.qr(atoms[code.indices].transpose(1, 2)).Q  # [n, d, k]
    inside = (atoms @ basis).norm(dim=2).clamp_max(1)
    bound = residual.norm(dim=1, keepdim=True) * (1 - inside.square()).clamp_min(0).sqrt()
    return float((((residual @ atoms.T).abs() - bound).amax(dim=1) / x.norm(dim=1)).max())


def learned_overlap(work: Work, plan: Plan) -> dict[str, Any]:
    on = subject(work, n_tokens=plan.n_stored)
    n_latents = 8 * on.lm.width(on.site)
    configs = [TopK(n_latents, k=K, dead_after=20_000), Pursuit(n_latents, k=K, dead_after=20_000)]
    training = Training(n_tokens=plan.n_trained, batch_size=1024, lr=2e-3, seed=work.options.seed)
    dictionaries = zip(("TopK", "Pursuit"), trained(work, on, configs, training), strict=True)
    return {name: measure_natural(on, d, plan.n_coded, work.options.seed) for name, d in dictionaries}


@torch.no_grad()
def measure_natural(on: Subject, dictionary: AbstractDictionary, n_coded: int, seed: int) -> dict[str, Any]:
    """Overlaps over documents, and how many near-duplicates a dictionary has and its coders use together."""
    part = part_of(on.store, "heldout")
    atoms = dictionary.atoms.detach()
    cosines = atoms @ atoms.T - 2 * torch.eye(len(atoms))
    twins = cosines > NEAR_LEARNED
    picks: dict[str, Callable[[Tensor], SparseCode]] = {
        "pursuit": lambda x: gradient_pursuit(x - dictionary.b_dec, atoms, K)
    }
    if hasattr(dictionary, "W_enc"):
        arm = topk(ArmSetting(dictionary, False, K, lambda: torch.empty(0)))
        picks["encoder"] = lambda x: arm(x, torch.full((len(x),), K))
    names = [*picks, "random"]
    sums = DocumentSums(2 * len(names) + 1 + len(picks))
    for block, x in batches(part, on.site, row_blocks(len(part), 1024, n_coded), atoms.device):
        codes = {name: pick(x) for name, pick in picks.items()}
        terms = [row_overlaps(code, atoms) for code in codes.values()]
        terms.append(row_overlaps(codes["pursuit"], atoms, _random_latents(codes["pursuit"], seed)))
        terms.append(torch.ones(len(x), 1, dtype=torch.float64))
        terms += [_together(code, twins)[:, None] for code in codes.values()]
        sums.add(part.tokens(block).document_ids, torch.cat(terms, dim=1).double())
    made: dict[str, Any] = {"n_latents": len(atoms), "n_documents": len(sums), "overlap": {}, "together": {}}
    statistics = {name: ratio(2 * i, 2 * i + 1) for i, name in enumerate(names)}
    count = 2 * len(names)
    for name in names:
        made["overlap"][name] = _estimate(sums, statistics[name], seed)
    for name in names[1:]:
        made["overlap"][f"pursuit - {name}"] = _estimate(sums, less(statistics["pursuit"], statistics[name]), seed)
    for i, name in enumerate(picks):
        made["together"][name] = _estimate(sums, ratio(count + 1 + i, count), seed)
    if "encoder" in picks:
        first, second = ratio(count + 1, count), ratio(count + 2, count)
        made["together"]["pursuit - encoder"] = _estimate(sums, less(first, second), seed)
    nearest = cosines.amax(dim=1)
    made["nearest"] = [float(nearest.quantile(q)) for q in (0.5, 0.9, 0.99)]
    made["with_twin"] = float(twins.any(dim=1).double().mean())
    return made


def _together(code: SparseCode, twins: Tensor) -> Tensor:
    """Whether some two latents in use in a row are near-duplicates of each other."""
    used = code.values != 0
    pairs = twins[code.indices[:, :, None], code.indices[:, None, :]] & used[:, :, None] & used[:, None, :]
    return pairs.any(dim=2).any(dim=1).double()


def less(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The difference of two statistics of the same sums."""
    return lambda s: first(s) - second(s)


def _random_latents(code: SparseCode, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(code.n_latents, tuple(code.indices.shape), generator=g)


def _mean(terms: Tensor) -> float:
    total = terms.sum(dim=0)
    return float(total[0] / total[1])


def _estimate(sums: DocumentSums, statistic: Callable[[Tensor], Tensor], seed: int) -> Any:
    return estimate(sums, statistic, n_resamples=1000, level=0.95, seed=seed).model_dump()
