"""Does pursuit pick atoms orthogonal to the span chosen so far, and does it matter?"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from sparsight.evaluation.record import Estimate, estimate
from sparsight.studies.deciding import all_on_one_side, effect_of, mean_effect, power_note, side
from sparsight.studies.planted import paired_atoms, random_atoms, tied_encoder
from sparsight.studies.record import Cell, Effect, Findings, Line, Panel, Table, Verdict
from sparsight.studies.subject import Subject, subject, trained
from sparsight.studies.work import Work
from sparsight.training import Training

# (cosine within a pair, both members truly active) -> recall of GP, OMP, tied encoder, by an independent program.
REFERENCE = {
    (0.5, True): (0.997, 1.00, 0.870),
    (0.8, True): (0.851, 0.982, 0.918),
    (0.9, True): (0.741, 0.804, 0.939),
    (0.95, True): (0.672, 0.557, 0.934),
    (0.5, False): None,
    (0.8, False): (0.999, 0.999, 0.655),
    (0.9, False): None,
    (0.95, False): (0.938, 0.941, 0.587),
}
CODERS = ("GP", "OMP", "encoder")
NEAR = 0.8  # cosine from which planted atoms count as near-duplicates
NEAR_LEARNED = 0.5  # learned atoms come less close


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seeds: int
    signals: int
    n_stored: int
    n_trained: int
    n_coded: int


FULL = Plan(seeds=8, signals=300, n_stored=200_000, n_trained=400_000, n_coded=8_192)
FAST = Plan(seeds=3, signals=200, n_stored=40_000, n_trained=60_000, n_coded=2_048)
K = 16


def run(work: Work) -> Findings:
    """Recall of planted near-duplicates; overlap with the chosen span on planted and on learned atoms."""
    plan = FAST if work.options.fast else FULL
    recalls = {
        key: work.part(f"pairs-{key[0]}-{'both' if key[1] else 'one'}", partial(_recalls, key, plan, work.options.seed))
        for key in REFERENCE
    }
    planted = work.part("planted-overlap", partial(_planted_overlap, plan, work.options.seed))
    natural = work.part("learned-overlap", partial(_learned_overlap, work, plan))
    gaps = {key: _recall_gap(key, rows) for key, rows in recalls.items()}
    avoids = [
        *(mean_effect([r["GP"] - r["random"] for r in rows], f"{name}: GP - random atoms", "overlap, over draws")
          for name, rows in planted.items()),
        *(_natural_effect(natural, name, "pursuit - random") for name in natural),
    ]  # fmt: skip
    return Findings(
        verdicts=[
            _avoids(avoids, planted, natural),
            _matters(gaps),
            _prevalence(natural),
        ],
        tables=[_recall_table(recalls), _overlap_table(planted, natural), _near_table(natural)],
        figures=[_recall_panel(recalls, True), _recall_panel(recalls, False), _overlap_panel(planted, natural)],
        caption="Recall of planted near-duplicates, both members of a pair truly active (left) or only one (middle); "
        "crosses: an independent computation. Right: mean overlap of an atom with the span of those chosen before it.",
        method=[
            f"Planted pairs: 64 pairs in 64 dimensions at a given cosine, three pairs active, k as many as are true; "
            f"{plan.seeds} draws of {plan.signals} signals. The encoder is linear and tied to the true atoms.",
            f"Learned atoms: dictionaries of {_width(natural)} latents, k = {K}, trained on {plan.n_trained:,} "
            f"activations; {plan.n_coded:,} held-out tokens. The encoder's picks are its largest pre-activations, "
            "largest first; the Pursuit dictionary has no encoder.",
            "Overlap: length of an atom's projection onto the span of the atoms chosen before it in the same token, 0 "
            "to 1; mean over slots from the second on. Random atoms are projected onto the spans that pursuit chose.",
            "Exact part: after least squares an atom's score is at most |r| times its sine to the span; the largest "
            f"violation over all planted draws is {max(r['violation'] for r in planted['pairs at 0.9']):.1e}.",
            "Decided by, fixed beforehand: pursuit avoids the span if the overlap of its atoms less that of random "
            "atoms lies below 0 everywhere; it matters if the recall of GP less that of the encoder lies below 0 "
            "at every cosine from 0.8 on.",
        ],
        limits=[
            "Whether near-duplicates of a natural dictionary are truly active together cannot be known: only planted "
            "truth says which coder is right.",
            "A random atom is a weak control on natural data: activations lie near few directions, so any atom worth "
            "choosing is nearer to the span than a random one. The encoder's picks are the other control.",
            "The encoder of the planted table is tied and linear; a trained one does better.",
        ],
    )


def _recalls(key: tuple[float, bool], plan: Plan, seed: int) -> list[dict[str, float]]:
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


def _planted_overlap(plan: Plan, seed: int) -> dict[str, list[dict[str, float]]]:
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


def _learned_overlap(work: Work, plan: Plan) -> dict[str, Any]:
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


def _natural_effect(natural: Any, name: str, what: str, kind: str = "overlap", unit: str = "overlap") -> Effect:
    found = natural[name]
    return effect_of(Estimate(**found[kind][what]), f"{name} atoms: {what}", found["n_documents"],
                     f"{unit}, over documents")  # fmt: skip


def _recall_gap(key: tuple[float, bool], rows: list[dict[str, float]]) -> Effect:
    name = f"GP - encoder, cosine {key[0]}, {'both' if key[1] else 'one'} active"
    return mean_effect([r["GP"] - r["encoder"] for r in rows], name, "recall, over draws")


def _avoids(avoids: list[Effect], planted: Any, natural: Any) -> Verdict:
    beside = [
        *(mean_effect([r["GP"] - r["encoder"] for r in rows], f"{name}: GP - encoder", "overlap, over draws")
          for name, rows in planted.items()),
        *(_natural_effect(natural, name, "pursuit - encoder") for name in natural
          if "pursuit - encoder" in natural[name]["overlap"]),
    ]  # fmt: skip
    below = [e.name.split(":")[0] for e in beside if side(e) < 0]
    return Verdict(
        question="Does pursuit choose atoms further from the span of those chosen so far than chance would?",
        answer=all_on_one_side(avoids, wanted=-1, on="the dictionary"),
        because=f"Against random atoms its overlap is lower in {sum(side(e) < 0 for e in avoids)} of {len(avoids)} "
        f"cases and higher in {sum(side(e) > 0 for e in avoids)}. Against the encoder's picks it is lower in: "
        f"{'; '.join(below) or 'none'}.",
        effects=[*avoids, *beside],
        would_change=power_note(avoids),
    )


def _matters(gaps: dict[tuple[float, bool], Effect]) -> Verdict:
    deciding = [e for (cosine, _), e in gaps.items() if cosine >= NEAR]
    worst = gaps[0.95, True]
    best = gaps[0.95, False]
    return Verdict(
        question="Does it cost recall of near-duplicates (planted truth)?",
        answer=all_on_one_side(deciding, wanted=-1, on="whether near-duplicates are truly active together"),
        because=f"At cosine 0.95, GP less encoder in recall is {worst} where both members of a pair are active, and "
        f"{best} where only one is.",
        effects=list(gaps.values()),
        would_change=power_note(deciding),
    )


def _prevalence(natural: Any) -> Verdict:
    effect = _natural_effect(natural, "TopK", "pursuit - encoder", "together", "share of tokens")
    share = natural["TopK"]["with_twin"]
    coder = natural["TopK"]["together"]
    return Verdict(
        question="On learned atoms, does pursuit use two near-duplicates together less often than the encoder does "
        f"(cosine above {NEAR_LEARNED})?",
        answer=all_on_one_side([effect], wanted=-1, on="the dictionary")
        if share > 0
        else "depends on whether the dictionary has near-duplicates, and this one has none",
        because=f"{share:.1%} of the TopK dictionary's atoms have a near-duplicate. A token uses two together in "
        f"{coder['pursuit']['value']:.2%} of pursuit's codes and in {coder['encoder']['value']:.2%} of the encoder's.",
        effects=[effect],
        would_change=power_note([effect]),
    )


def _recall_table(recalls: dict[tuple[float, bool], list[dict[str, float]]]) -> Table:
    rows: list[list[Cell]] = []
    for key, found in recalls.items():
        known = REFERENCE[key]
        cells: list[Cell] = [key[0], "both" if key[1] else "one"]
        for i, name in enumerate(CODERS):
            mean = mean_effect([r[name] for r in found], name, "recall")
            cells += [str(mean), None if known is None else known[i]]
        rows.append(cells)
    return Table(
        title="Recall of planted near-duplicates, mean over draws of the atoms with its 95 % interval",
        columns=["cosine", "truly active", *(head for name in CODERS for head in (name, f"{name}, reference"))],
        rows=rows,
        note="Reference: one draw, an independent computation in numpy.",
    )


def _overlap_table(planted: Any, natural: Any) -> Table:
    rows: list[list[Cell]] = []
    for name, found in planted.items():
        means = {c: str(mean_effect([r[c] for r in found], c, "")) for c in ("GP", "OMP", "encoder", "random")}
        rows.append([f"planted: {name}", means["GP"], means["OMP"], means["encoder"], means["random"]])
    for name, found in natural.items():
        by = {c: str(effect_of(Estimate(**e), c, 1, "")) for c, e in found["overlap"].items()}
        rows.append([f"{name} atoms", by["pursuit"], "", by.get("encoder", "no encoder"), by["random"]])
    return Table(
        title="Mean overlap of an atom with the span of those chosen before it",
        columns=["atoms", "gradient pursuit", "OMP", "encoder", "random atoms, pursuit's spans"],
        rows=rows,
    )


def _near_table(natural: Any) -> Table:
    rows: list[list[Cell]] = []
    for name, found in natural.items():
        shares = [str(effect_of(Estimate(**found["together"][c]), c, 1, "")) if c in found["together"] else ""
                  for c in ("pursuit", "encoder")]  # fmt: skip
        rows.append([name, *found["nearest"], found["with_twin"], *shares])
    return Table(
        title="Near-duplicates among learned atoms",
        columns=["atoms", "cosine to nearest: median", "90 %", "99 %", f"share with one above {NEAR_LEARNED}",
                 "tokens using two together: pursuit", "encoder"],
        rows=rows,
    )  # fmt: skip


def _recall_panel(recalls: dict[tuple[float, bool], list[dict[str, float]]], both: bool) -> Panel:
    cosines = [c for c, b in recalls if b == both]
    lines = []
    for name in CODERS:
        means = [mean_effect([r[name] for r in recalls[c, both]], name, "recall") for c in cosines]
        low, high = [e.low or e.value for e in means], [e.high or e.value for e in means]
        lines.append(Line(name=name, x=list(cosines), y=[e.value for e in means], low=low, high=high))
    for i in range(len(CODERS)):
        known = [(c, r[i]) for c in cosines if (r := REFERENCE[c, both]) is not None]
        lines.append(Line(name="reference" if i == 0 else "", x=[c for c, _ in known], y=[y for _, y in known],
                          style="dashed"))  # fmt: skip
    title = "both members active" if both else "one member active"
    return Panel(title=title, x_label="cosine within a pair", y_label="recall", lines=lines)


def _overlap_panel(planted: Any, natural: Any) -> Panel:
    lines = []
    for mine, theirs in (("GP", "pursuit"), ("encoder", "encoder"), ("random", "random")):
        x = [*planted, *(f"{n} atoms" for n in natural if theirs in natural[n]["overlap"])]
        y = [_mean_of(rows, mine) for rows in planted.values()]
        y += [natural[n]["overlap"][theirs]["value"] for n in natural if theirs in natural[n]["overlap"]]
        lines.append(Line(name=theirs, x=list(x), y=y, style="bars"))
    return Panel(title="overlap with the span", x_label="", y_label="overlap", lines=lines)


def _mean_of(rows: list[dict[str, float]], name: str) -> float:
    return sum(r[name] for r in rows) / len(rows)


def _width(natural: Any) -> str:
    return f"{natural['TopK']['n_latents']:,}"
