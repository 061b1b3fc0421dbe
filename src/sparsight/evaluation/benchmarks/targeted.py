"""Targeted probe perturbation: does ablating one class's latents hurt its probe and leave the others alone?"""

import time
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.benchmarks.ablating import accuracy, effects, without
from sparsight.evaluation.benchmarks.examples import Examples, balanced
from sparsight.evaluation.benchmarks.record import Benchmark, Cell, Score
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.features.probes import LinearProbe, logistic
from sparsight.evaluation.record_values import Resampling

NS = (2, 5, 10, 20, 50)
_RANDOM = 0x799
QUESTION = "does ablating the latents of one class hurt the probe of that class, and only that one?"


def drops(
    probes: Sequence[LinearProbe],
    test: Examples,
    of_class: Sequence[Tensor],
    labels: Sequence[Tensor],
    rows: Sequence[Tensor],
    atoms: Float[Tensor, "m d"],
    level: Float[Tensor, " m"] | None = None,
) -> dict[tuple[int, int], Tensor]:
    """For classes `(ablated, judged)`: by how much each test example of the judged probe is told less often right.

    Args:
        probes: One for each class, against the others.
        test: Test examples.
        of_class: Latents of each class.
        labels: Of each probe's examples, 1 for its class.
        rows: Of each probe's examples.
        atoms: What each latent writes.
        level: Where ablated latents are held; 0 when None.
    """
    found = {}
    for judged, probe in enumerate(probes):
        mine = test[rows[judged]]
        before = accuracy(probe, mine.x, labels[judged])
        for ablated, latents in enumerate(of_class):
            after = accuracy(probe, without(mine.x, mine.z, atoms, latents, level), labels[judged])
            found[ablated, judged] = before - after
    return found


def targeted_perturbation(
    train: Examples,
    test: Examples,
    classes: Sequence[str],
    atoms: Float[Tensor, "m d"],
    *,
    ns: Sequence[int] = NS,
    resampling: Resampling | None = None,
    seed: int = 0,
    recorded: Mapping[str, Cell] | None = None,
) -> Benchmark:
    """`mean over classes of [drop of its own probe - mean drop of the others]`, latents ranked on training documents.

    Ablated latents are held at their training mean; the published numbers, under `metrics`, set them to zero.

    Args:
        train: Labels in column 0 of `y`, from 0.
        test: The same of held-out documents.
        classes: Names of the classes.
        atoms: What each latent writes.
        ns: Latents ablated for each class: those that argue most for it.
        resampling: How intervals are drawn, over test documents.
        seed: Of balanced draws and of the random latents.
        recorded: To be recorded.
    Raises:
        UndefinedMetric: fewer than two classes have examples on both sides.
    """
    began = time.perf_counter()
    resampling = resampling or Resampling()
    kept = [c for c in range(len(classes)) if min(int((side.y[:, 0] == c).sum()) for side in (train, test)) >= 8]
    if len(kept) < 2:
        raise UndefinedMetric(f"targeted perturbation needs two classes with 8 examples on both sides, got {len(kept)}")
    probes, rankings, rows, labels = [], [], [], []
    for c in kept:
        side = train[balanced((train.y[:, 0] == c).long(), seed, 2)]
        y = (side.y[:, 0] == c).long()
        probes.append(logistic(side.x, y, 2))
        rankings.append(effects(side.z, y, atoms, probes[-1]).argsort(descending=True, stable=True))
        chosen = balanced((test.y[:, 0] == c).long(), seed, 2)
        rows.append(chosen)
        labels.append((test.y[chosen, 0] == c).long())
    generator = torch.Generator().manual_seed(mix_seed(seed, _RANDOM))
    live = (train.z != 0).any(dim=0).nonzero()[:, 0]
    shuffled = live[torch.randperm(len(live), generator=generator)]
    scores, details, metrics = [], [], {}
    level = train.z.mean(dim=0)
    for n in ns:
        chance = [shuffled.roll(i * n)[:n] for i in range(len(kept))]
        floor, *_ = _targeted(drops(probes, test, chance, labels, rows, atoms, level), len(kept))
        chosen_latents = [ranking[:n] for ranking in rankings]
        found = drops(probes, test, chosen_latents, labels, rows, atoms, level)
        to_zero = drops(probes, test, chosen_latents, labels, rows, atoms)
        value, intended, unintended = _targeted(to_zero, len(kept))
        estimate = resampling.estimate(_sums(found, test, rows, len(kept)), lambda s: _statistic(s, len(kept)))
        scores.append(Score(name=f"targeted, N={n}", value=estimate, better="higher", floors={"random latents": floor}))
        metrics[f"tpp_threshold_{n}_total_metric"] = value
        metrics[f"tpp_threshold_{n}_intended_diff_only"] = intended
        metrics[f"tpp_threshold_{n}_unintended_diff_only"] = unintended
        for i, c in enumerate(kept):
            others = [float(found[i, j].mean()) for j in range(len(kept)) if j != i]
            row: dict[str, Cell] = {"class": classes[c], "N": n, "own_drop": float(found[i, i].mean())}
            details.append(row | {"others_drop": sum(others) / len(others)})
    return Benchmark(
        benchmark="tpp",
        question=QUESTION,
        settings={"ns": list(ns), "classes": [classes[c] for c in kept], "seed": seed, **(recorded or {})},
        scores=tuple(scores),
        details=tuple(details),
        left_out=tuple(f"{classes[c]}: too few examples" for c in range(len(classes)) if c not in kept),
        metrics={"tpp_metrics": metrics},
        seconds=time.perf_counter() - began,
    )


def _targeted(found: Mapping[tuple[int, int], Tensor], n: int) -> tuple[float, float, float]:
    """Own drop less the others', own drop, the others' drop: means over classes."""
    own = sum(float(found[i, i].mean()) for i in range(n)) / n
    others = sum(float(found[i, j].mean()) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return own - others, own, others


def _sums(found: Mapping[tuple[int, int], Tensor], test: Examples, rows: Sequence[Tensor], n: int) -> DocumentSums:
    """For each judged class: its examples, the drop of its own ablation, the mean drop of the others'."""
    sums = DocumentSums(3 * n)
    for j in range(n):
        others = torch.stack([found[i, j] for i in range(n) if i != j]).mean(dim=0)
        terms = torch.zeros(len(rows[j]), 3 * n, dtype=torch.float64)
        terms[:, 3 * j], terms[:, 3 * j + 1], terms[:, 3 * j + 2] = 1, found[j, j], others
        sums.add(test.documents[rows[j]], terms)
    return sums


def _statistic(s: Tensor, n: int) -> Tensor:
    wide = s.view(*s.shape[:-1], n, 3)
    value: Tensor = ((wide[..., 1] - wide[..., 2]) / wide[..., 0]).mean(dim=-1)
    return value
