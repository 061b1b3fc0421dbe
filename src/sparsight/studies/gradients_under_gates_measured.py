"""What gradients make of gates: on one gate, on planted gates, and on trained dictionaries standing in a model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from sparsight.activations import ActivationStore, documents_from_files, harvest
from sparsight.circuits import AbstractNodes, Effects, SmoothedNodes, latent_effects, log_probability, nodes_of
from sparsight.circuits.quadrature import Rule, points
from sparsight.dictionaries import AbstractDictionary, DictionaryConfig, Gated, JumpReLU, ReLU, TopK
from sparsight.evaluation.bootstrap import bootstrap
from sparsight.evaluation.reading import part_of
from sparsight.models import LanguageModel, Site, Tokens, load_model, organism
from sparsight.studies.planted import random_atoms
from sparsight.studies.subject import CORPUS_SEED, is_organism
from sparsight.studies.work import Work
from sparsight.training import Training, train

ARCHITECTURES = ("relu", "gated", "jumprelu", "topk")
# Widths of smoothed gates, as shares of the mean value of an active latent.
WIDTHS = (0.3, 0.03, 0.003)
LENGTH = 10  # tokens of a sequence
CHANGED = 3  # the token that differs is the last but two


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    n_stored: int
    n_trained: int
    n_latents: int
    l0: int
    n_pairs: int
    n_exact: int
    steps: tuple[int, ...]
    n_planted: int
    many: int


FULL = Plan(40_000, 60_000, 256, 16, 12, 4, (1, 2, 5, 10, 20, 50), 100, 1_000)
# Twelve sequences here too: on some the answer is certain and nothing moves it, and a few alone leave no interval.
FAST = Plan(20_000, 40_000, 256, 16, 12, 2, (1, 5, 20), 20, 200)


def configs(plan: Plan) -> list[DictionaryConfig]:
    """One dictionary of each architecture at about the same L0."""
    n, l0 = plan.n_latents, plan.l0
    dead = plan.n_trained // 4
    return [
        ReLU(n, target_l0=l0, dead_after=dead),
        Gated(n, target_l0=l0, dead_after=dead),
        JumpReLU(n, target_l0=l0, dead_after=dead),
        TopK(n, l0, dead_after=dead),
    ]


# ---- one gate, and planted gates: everything is known in closed form


def one_gate(steps: Sequence[int]) -> dict[str, list[float]]:
    """Integrated gradients of `F(a) = a` where `a > 0.37`, else 0: `F(1) - F(0) = 1`, the jump 0.37.

    The derivative is 1 behind the gate and 0 before it, so that every rule tends to 0.63 and misses the jump.
    """
    rules: tuple[Rule, ...] = ("left", "midpoint", "gauss")
    found: dict[str, list[float]] = {}
    for rule in rules:
        found[rule] = []
        for n in steps:
            alphas, weights = points(rule, n)
            found[rule].append(float((weights * (alphas > 0.37)).sum()) - 1)
    return found


def planted(plan: Plan, seed: int) -> dict[str, Any]:
    """Paths between planted activations, through a dictionary of the true atoms with gates of each kind.

    The metric is `sum_k v_k tanh(value_k)`; gates cross their thresholds where straight lines do, so that the sum of
    jumps is known without looking for them.

    Returns:
        For each architecture and rule the relative remainder `sum |sum of effects - total| / sum |total|` by steps;
        `many`: that of very many midpoints, which is what the jumps are worth.
    """
    data = random_atoms(seed + 7919, 32, 64, 4, 0.05, 2 * plan.n_planted)
    g = torch.Generator().manual_seed(seed + 104_729)
    v = torch.randn(64, generator=g, dtype=torch.float64)
    ends = [part @ data.atoms.T for part in (data.x[: plan.n_planted], data.x[plan.n_planted :])]
    gate_at = {"relu": 0.0, "gated": 0.8, "jumprelu": 0.8, "topk": 0.0}
    shift = {"relu": 0.8, "gated": 0.6, "jumprelu": 0.0, "topk": 0.0}
    found: dict[str, Any] = {}
    for name in ARCHITECTURES:
        value = partial(_planted_value, name, gate_at[name], shift[name])
        totals = (value(ends[1]).tanh() - value(ends[0]).tanh()) @ v
        rows: dict[str, list[float]] = {}
        for rule in ("left", "midpoint"):
            rows[rule] = [_planted_remainder(value, v, ends, totals, rule, n) for n in plan.steps]
        rows["many"] = [_planted_remainder(value, v, ends, totals, "midpoint", plan.many)]
        found[name] = rows
    return found


def _planted_value(name: str, threshold: float, shift: float, pre: Float64[Tensor, "n m"]) -> Float64[Tensor, "n m"]:
    """Values of the true latents under gates of one kind. `gated` lets less than its pre-activation through."""
    if name == "topk":
        kept = pre.detach().topk(4, dim=1).indices
        return pre.relu() * torch.zeros_like(pre).scatter(1, kept, 1.0)
    if name == "relu":
        return (pre - shift).relu()
    return (pre - shift).relu() * (pre > threshold)


def _planted_remainder(value: Any, v: Tensor, ends: list[Tensor], totals: Tensor, rule: Rule, steps: int) -> float:
    alphas, weights = points(rule, steps)
    summed = torch.zeros_like(totals)
    for alpha, weight in zip(alphas.tolist(), weights.tolist(), strict=True):
        at = (ends[0] + alpha * (ends[1] - ends[0])).requires_grad_()
        (gradient,) = torch.autograd.grad((value(at).tanh() @ v).sum(), at)
        summed += weight * (gradient * (ends[1] - ends[0])).sum(dim=1)
    return float((summed - totals).abs().sum() / totals.abs().sum())


# ---- trained dictionaries in a model


@dataclass(frozen=True)
class Prepared:
    """What paths through gates are measured on.

    Attributes:
        lm: The model.
        made: By architecture: the dictionary at each of two sites.
        clean, corrupted: Sequences that differ in one token.
        answers: The token that follows each clean one.
    """

    lm: LanguageModel
    made: dict[str, dict[Site, AbstractDictionary]]
    clean: Tokens
    corrupted: Tokens
    answers: Tensor


def sites(lm: LanguageModel) -> tuple[Site, Site]:
    """Where nodes are changed, and where the dictionary stands through which they act."""
    middle = lm.n_layers // 2
    return Site(middle - 1, "resid_post"), Site(middle, "resid_post")


def prepared(work: Work, plan: Plan) -> Prepared:
    """Both dictionaries of each architecture, and sequences to change; all that is slow is done once."""
    lm = load_model(work.options.model, device=work.options.device)
    work.say(f"activations of {lm.name}")
    store = harvest(
        lm,
        _documents(work),
        list(sites(lm)),
        work.scratch("activations"),
        n_tokens=plan.n_stored,
        context=min(128, lm.max_context),
        heldout=0.2,
        resume=True,
        progress=work.progress,
    )
    training = Training(n_tokens=plan.n_trained, batch_size=1024, lr=2e-3, seed=work.options.seed)
    made: dict[str, dict[Site, AbstractDictionary]] = {name: {} for name in ARCHITECTURES}
    for site in sites(lm):
        work.say(f"dictionaries at {site}")
        runs = train(
            store,
            configs(plan),
            training,
            out=work.scratch(f"dictionaries-{site}"),
            site=site,
            resume=True,
            device=work.options.device,
            progress=work.progress,
        )
        for run in runs:
            made[run.dictionary.config.architecture][site] = run.dictionary
    return Prepared(lm, made, *pairs(lm, store, plan.n_pairs))


def _documents(work: Work) -> Iterable[Any]:
    if is_organism(work) != (not work.options.texts):
        raise ValueError("give --text FILE with a --model of your own, and neither for the organism")
    if work.options.texts:
        return documents_from_files(work.options.texts)
    return (d for start in count(0, 1000) for d in organism.corpus(CORPUS_SEED, 1000, start=start))


def pairs(lm: LanguageModel, store: ActivationStore, n: int) -> tuple[Tokens, Tokens, Tensor]:
    """Held-out sequences, the same with one token changed to another sequence's, and the token that follows."""
    kept: list[Tensor] = []
    for batch in part_of(store, "heldout").context_batches(16):
        full = batch.tokens.mask[:, : LENGTH + 1].all(dim=1)
        if batch.tokens.ids.shape[1] > LENGTH:
            kept += list(batch.tokens.ids[full, : LENGTH + 1])
        if len(kept) > 2 * n:
            break
    place = LENGTH - CHANGED
    clean, corrupted = list[Tensor](), list[Tensor]()
    for row, other in zip(kept, [*kept[1:], kept[0]], strict=True):
        if row[place] != other[place] and len(clean) < n:
            clean.append(row)
            corrupted.append(torch.cat([row[:place], other[place : place + 1], row[place + 1 :]]))
    special = torch.zeros(len(clean), LENGTH, dtype=torch.bool)
    first = torch.stack(clean)[:, 0]
    special[:, 0] = bool((first == first[0]).all())  # the token that begins every sequence
    mask = torch.ones_like(special)
    ends = [Tokens(torch.stack(rows)[:, :LENGTH], mask, special).to(lm.device) for rows in (clean, corrupted)]
    return ends[0], ends[1], torch.stack(clean)[:, LENGTH].to(lm.device)


def measured(work: Work, plan: Plan, name: str, made: dict[str, Prepared]) -> dict[str, Any]:
    """Remainders by rule and steps in both regimes, and node effects beside exact patching, for one architecture.

    Args:
        work, plan: Where and how much.
        name: The architecture.
        made: Filled by the first call.
    """
    if not made:
        made["all"] = prepared(work, plan)
    on = made["all"]
    first, second = sites(on.lm)
    nodes = nodes_of(on.lm, on.made[name])
    here = partial(_effects, on, slice(None), first)
    found: dict[str, Any] = {"kept": {}, "dropped": {}, "smoothed": {}}
    for error in ("kept", "dropped"):
        for rule in ("left", "midpoint", "gauss") if error == "dropped" else ("left", "midpoint"):
            most = 20 if error == "kept" or rule == "gauss" else max(plan.steps)
            found[error][rule] = [
                [float(n), *_remainder(work, here(nodes, steps=n, rule=rule, jumps=False, error=error), first)]
                for n in plan.steps
                if n <= most
            ]
        found[error]["attribution"] = _remainder(work, here(nodes, method="attribution", error=error), first)
    counted = here(nodes, steps=10, error="dropped")
    found["jumps"] = _remainder(work, counted, first)
    found["flips"] = float(counted[first].n_flips.double().mean())
    found["passes"] = counted.passes.forward / len(on.clean)
    scale = _mean_value(on, nodes[second])
    for width in WIDTHS:
        smooth = {first: nodes[first], second: SmoothedNodes(nodes[second], width * scale)}
        found["smoothed"][str(width)] = [
            [float(n), *_remainder(work, here(smooth, steps=n, jumps=False, error="dropped"), first)]
            for n in plan.steps
            if n <= 50
        ]
    found["nodes"] = _against_exact(work, plan, on, nodes, scale)
    found["l0"] = _mean_l0(on, on.made[name])
    return found


def _effects(on: Prepared, rows: slice, site: Site, nodes: Mapping[Site, AbstractNodes], **settings: Any) -> Effects:
    clean, corrupted, answers = on.clean[rows], on.corrupted[rows], on.answers[rows]
    metric = log_probability(clean, answers)
    return latent_effects(on.lm, nodes, clean, corrupted, metric, at=[site], batch_size=64, **settings)


def _remainder(work: Work, effects: Effects, site: Site) -> list[float]:
    """`sum |sum of effects - total| / sum |total|` over sequences, with its interval."""
    at = effects[site]
    sums = torch.stack([at.completeness.abs(), at.total.double().abs()], dim=1)
    found = bootstrap(sums, lambda s: s[..., 0] / s[..., 1], seed=work.options.seed)
    return [found.value, found.low, found.high]


def _against_exact(
    work: Work, plan: Plan, on: Prepared, nodes: dict[Site, AbstractNodes], scale: float
) -> dict[str, dict[str, list[float]]]:
    """Node by node: `sum |effect - exact| / sum |exact|` and the rank correlation, latents of the first sequences."""
    first, second = nodes
    run = partial(_effects, on, slice(0, plan.n_exact), first)
    smooth = {first: nodes[first], second: SmoothedNodes(nodes[second], WIDTHS[1] * scale)}
    arms: dict[str, Any] = {
        "attribution": lambda e: run(nodes, method="attribution", error=e),
        "left, 10 steps": lambda e: run(nodes, rule="left", jumps=False, error=e),
        "midpoint, 10 steps": lambda e: run(nodes, jumps=False, error=e),
        "midpoint, 50 steps": lambda e: run(nodes, steps=50, jumps=False, error=e),
        "jumps counted": lambda e: run(nodes, error=e),
        f"gates smoothed by {WIDTHS[1]}, 50 steps": lambda e: run(smooth, steps=50, jumps=False, error=e),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for error in ("kept", "dropped"):
        exact = run(nodes, method="exact", error=error)[first]
        rows: dict[str, list[float]] = {"n": [float((exact.change != 0).sum())]}
        for arm, make in arms.items():
            if error == "kept" and ("jumps" in arm or "smoothed" in arm):
                continue
            at = make(error)[first]
            off = torch.stack(
                [(at.values - exact.values).abs().sum(dim=(1, 2)), exact.values.abs().sum(dim=(1, 2))], dim=1
            )
            gap = bootstrap(off.double(), lambda s: s[..., 0] / s[..., 1], seed=work.options.seed)
            rows[arm] = [gap.value, gap.low, gap.high, _rank_correlation(at.values, exact.values, exact.change != 0)]
        found[error] = rows
    return found


def _rank_correlation(a: Tensor, b: Tensor, used: Tensor) -> float:
    ranks = torch.stack([side[used].double().argsort().argsort().double() for side in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _mean_value(on: Prepared, nodes: AbstractNodes) -> float:
    """Mean value of an active latent of the standing dictionary."""
    with torch.no_grad():
        x = on.lm.activations(on.clean, [nodes.reads])[nodes.reads]
        values = nodes.encode(x[on.clean.counted]).values
    return float(values[values > 0].mean())


def _mean_l0(on: Prepared, dictionaries: dict[Site, AbstractDictionary]) -> list[float]:
    with torch.no_grad():
        x = on.lm.activations(on.clean, list(dictionaries))
        return [float(d.encode(x[s][on.clean.counted]).l0().double().mean()) for s, d in sorted(dictionaries.items())]
