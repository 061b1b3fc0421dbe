"""Absorption: does a concept's latent fall silent where a more specific latent has swallowed its direction?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.benchmarks.record import Benchmark, Cell, Score, numbers
from sparsight.evaluation.benchmarks.sparse_probing import Task
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.features.probes import k_sparse, logistic
from sparsight.evaluation.record_values import Estimate, Resampling, ratio

QUESTION = "on how many tokens of a concept are its own latents silent while another latent carries its direction?"


@dataclass(frozen=True, kw_only=True)
class AbsorptionRule:
    """When a latent counts as an absorber.

    Attributes:
        full_cosine: Cosine to the concept's direction, at least, for full absorption.
        fraction_cosine: The same for the fraction.
        share: Of the token's projection on the direction that absorbers must carry.
        n_absorbers: Latents that may share the absorption of one token.
        gain: F1 that one more latent must add to belong to the concept (splitting).
        most: Latents at most that may belong to it.
    """

    full_cosine: float = 0.025
    fraction_cosine: float = 0.1
    share: float = 0.4
    n_absorbers: int = 3
    gain: float = 0.03
    most: int = 10


@dataclass(frozen=True, eq=False)
class Absorbed:
    """Tokens of a concept, each with what became of it.

    Attributes:
        full: Its own latents are silent and one other latent carries the direction.
        fraction: Share of the direction that others carry, in `[0, 1]`.
        absorber: The other latent that carries most of it; -1 where none carries any.
    """

    full: Bool[Tensor, " n"]
    fraction: Float64[Tensor, " n"]
    absorber: Int64[Tensor, " n"]


def absorbed(
    x: Float[Tensor, "n d"],
    z: Float[Tensor, "n m"],
    atoms: Float[Tensor, "m d"],
    direction: Float[Tensor, " d"],
    own: Int64[Tensor, " k"],
    rule: AbsorptionRule | None = None,
) -> Absorbed:
    """Judge tokens of a concept, one by one.

    With the concept's unit direction `p`, latent `j` carries `z_j <d_j, p>` of the token's projection `<x, p>`. With
    `A` what at most `n_absorbers` other latents near `p` carry, and `M` what the concept's own carry:

    - full: every own latent is 0, and the other latent that carries most has cosine at least `full_cosine` to `p` and
      carries at least `share` of the projection;
    - fraction: `A' / (A' + M)` with `A' = min(A, <x, p> - M)`, if `A` is at least `share` of the projection; 1 where
      `M <= 0`, 0 where `M` reaches the projection.

    Args:
        x: Activations less the dictionary's offset: what latents must add up to.
        z: Their codes.
        atoms: Of unit norm; refused otherwise, since the cosine is read off the product.
        direction: Of the concept, any length.
        own: The concept's latents.
        rule: Thresholds.
    Raises:
        ValueError: atoms are not of unit norm, or a token has no projection on the direction (drop it).
    """
    rule = rule or AbsorptionRule()
    lengths = torch.linalg.vector_norm(atoms.double(), dim=1)
    if not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3):
        raise ValueError(f"atoms must be of unit norm, got norms from {lengths.min():.3g} to {lengths.max():.3g}")
    unit = torch.nn.functional.normalize(direction.double(), dim=0)
    projection = x.double() @ unit
    if not bool((projection > 0).all()):
        raise ValueError(f"{int((projection <= 0).sum())} tokens have no projection on the direction; leave them out")
    cosine = atoms.double() @ unit
    carried = z.double() * cosine
    mine = carried[:, own].sum(dim=1)
    others = carried.clone()
    others[:, own] = -torch.inf
    most, absorber = others.max(dim=1)
    silent = (z[:, own] == 0).all(dim=1)
    full = silent & (cosine[absorber] >= rule.full_cosine) & (most >= rule.share * projection)
    near = others.masked_fill(cosine < rule.fraction_cosine, -torch.inf)
    taken = near.topk(min(rule.n_absorbers, near.shape[1]), dim=1).values.clamp_min(0).sum(dim=1)
    capped = torch.minimum(taken, (projection - mine).clamp_min(0))
    ratio_ = torch.where(mine <= 0, 1.0, capped / (capped + mine.clamp_min(0)).clamp_min(1e-300))
    counted = (taken >= rule.share * projection) & (mine < projection)
    return Absorbed(full, torch.where(counted, ratio_, 0.0), torch.where(most > 0, absorber, -1))


def own_latents(
    z: Float[Tensor, "n m"],
    y: Int64[Tensor, " n"],
    check_z: Float[Tensor, "v m"],
    check_y: Int64[Tensor, " v"],
    rule: AbsorptionRule | None = None,
) -> tuple[Int64[Tensor, " k"], list[float]]:
    """The latents a concept has of its own: one, and every further one that raises F1 by more than `gain`.

    Latents are ranked and fitted on one part of the training documents and F1 is read on another.

    Returns:
        The latents, and F1 at 1, 2, ... of them.
    """
    rule = rule or AbsorptionRule()
    scores: list[float] = []
    ranked = k_sparse(z, y, 2, min(rule.most, z.shape[1])).columns
    for k in range(1, len(ranked) + 1):
        fitted = logistic(z[:, ranked[:k]], y, 2).scores(check_z[:, ranked[:k]])
        scores.append(_f1(fitted[:, 1] > fitted[:, 0], check_y == 1))
        if k > 1 and scores[-1] <= scores[-2] + rule.gain:
            return ranked[: k - 1], scores
    return ranked, scores


def _f1(said: Bool[Tensor, " n"], truly: Bool[Tensor, " n"]) -> float:
    both = int((said & truly).sum())
    return 2 * both / max(int(said.sum()) + int(truly.sum()), 1)


def absorption(
    tasks: Sequence[Task],
    atoms: Float[Tensor, "m d"],
    offset: Float[Tensor, " d"],
    *,
    rule: AbsorptionRule | None = None,
    least_f1: float = 0.6,
    resampling: Resampling | None = None,
    settings: dict[str, Cell] | None = None,
    left_out: Sequence[str] = (),
) -> Benchmark:
    """Absorption and splitting of every concept that a probe of activations can tell.

    Args:
        tasks: Concepts: 1 is the concept, 0 is not. A third of the training documents chooses how many latents a
            concept has of its own.
        atoms: Of unit norm.
        offset: What the dictionary reconstructs when every latent is silent.
        rule: Thresholds.
        least_f1: Of the probe of activations, on held-out documents; a concept below it is left out.
        resampling: How intervals are drawn, over held-out documents.
        settings: To be recorded.
        left_out: What could not be made a task, and why.
    Raises:
        UndefinedMetric: no concept can be judged.
    """
    began = time.perf_counter()
    rule, resampling = rule or AbsorptionRule(), resampling or Resampling()
    documents, rows, skipped = DocumentSums(3), [], list(left_out)
    for task in tasks:
        try:
            row = _judge(task, atoms, offset, rule, least_f1, documents)
        except UndefinedMetric as error:
            skipped.append(f"{task.name}: {error}")
            continue
        rows.append(row)
    if not rows:
        raise UndefinedMetric(f"absorption: no concept can be judged: {'; '.join(skipped[:3])}")
    drawn = resampling.over(documents)
    full, fraction = drawn.estimate(ratio(0, 2)), drawn.estimate(ratio(1, 2))
    means = {key: numbers(rows, key) for key in _MEANS}
    return Benchmark(
        benchmark="absorption",
        question=QUESTION,
        settings={**rule.__dict__, "least_f1": least_f1, **(settings or {})},
        scores=(
            Score(name="full absorption", value=full, better="lower"),
            Score(name="absorption fraction", value=fraction, better="lower"),
            _probing(rows),
        ),
        details=tuple(rows),
        left_out=tuple(skipped),
        metrics={"mean": _metrics(means)},
        seconds=time.perf_counter() - began,
    )


_MEANS = {
    "absorption_fraction": "absorption_fraction_score",
    "full_absorption": "full_absorption_score",
    "own_latents": "num_split_features",
}


def _probing(rows: Sequence[dict[str, Cell]]) -> Score:
    """Without it a dictionary whose latents mean nothing looks free of absorption."""
    own, ceilings = numbers(rows, "f1_own_latents"), numbers(rows, "f1_activations")
    return Score(
        name="F1 of the concepts' own latents (read beside it)",
        value=Estimate(value=sum(own) / len(own)),
        better="higher",
        ceilings={"activations": sum(ceilings) / len(ceilings)},
    )


def _metrics(means: dict[str, list[float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, name in _MEANS.items():
        values = torch.tensor(means[key], dtype=torch.float64)
        found[f"mean_{name}"] = values.mean().item()
        found[f"std_dev_{name}"] = values.std(unbiased=False).item()
    return found


def _judge(
    task: Task,
    atoms: Float[Tensor, "m d"],
    offset: Float[Tensor, " d"],
    rule: AbsorptionRule,
    least_f1: float,
    documents: DocumentSums,
) -> dict[str, Cell]:
    """One concept; adds its tokens to `documents`: full, fraction, one."""
    probe = logistic(task.train.x, task.train_y, 2)
    margin = probe.scores(task.test.x)
    right = margin[:, 1] > margin[:, 0]
    f1 = _f1(right, task.test_y == 1)
    if f1 < least_f1:
        raise UndefinedMetric(f"a probe of activations has F1 {f1:.2f}, below {least_f1}: not told even from them")
    chooses = task.train.documents % 3 == 0
    own, scores = own_latents(
        task.train.z[~chooses], task.train_y[~chooses], task.train.z[chooses], task.train_y[chooses], rule
    )
    direction = probe.weights[1] - probe.weights[0]
    centred = task.test.x.double() - offset.double()
    there = right & (task.test_y == 1) & (centred @ direction > 0)
    if not bool(there.any()):
        raise UndefinedMetric("the probe tells no held-out token of it right")
    found = absorbed(centred[there].float(), task.test.z[there], atoms, direction.float(), own, rule)
    terms = torch.stack([found.full.double(), found.fraction, torch.ones_like(found.fraction)], dim=1)
    documents.add(task.test.documents[there], terms)
    worst = torch.bincount(found.absorber[found.full], minlength=len(atoms)) if bool(found.full.any()) else None
    return {
        "concept": task.name,
        "full_absorption": found.full.double().mean().item(),
        "absorption_fraction": found.fraction.mean().item(),
        "n_full": int(found.full.sum()),
        "n_tokens": len(found.full),
        "own_latents": len(own),
        "f1_own_latents": scores[len(own) - 1],
        "f1_activations": f1,
        "main_absorber": None if worst is None else int(worst.argmax()),
    }
