"""Removal of a spurious correlation: does ablating a concept's latents repair a probe that learnt to lean on it?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.benchmarks.ablating import accuracy, effects, without
from sparsight.evaluation.benchmarks.examples import Examples, balanced
from sparsight.evaluation.benchmarks.record import Benchmark, Cell, Score, mean
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.features.leace import Leace
from sparsight.evaluation.features.probes import LinearProbe, logistic
from sparsight.evaluation.record_values import Drawn, Resampling, mean_estimate

NS = (2, 5, 10, 20, 50)
_RANDOM = 0x5C4
LEAST_GAP = 0.02  # accuracy that a biased probe must lose, or there is nothing to repair
QUESTION = "a probe learnt a concept from data where another goes with it: does ablating the other's latents repair it?"


@dataclass(frozen=True, eq=False)
class Setting:
    """One direction: a wanted concept, and the one to be removed.

    Attributes:
        name: Wanted, less removed.
        biased: Probe of the wanted concept from data where both agree.
        clean: Accuracy of each test example under a probe from balanced data.
        order: Latents by their effect on the probe of the removed concept, largest first.
        test: Balanced test examples.
        wanted: Their labels.
        removed_train: Balanced training activations, and the labels of the removed concept.
        level: Mean of each latent over them: where ablated latents are held.
    """

    name: str
    biased: LinearProbe
    clean: Float64[Tensor, " n"]
    order: Int64[Tensor, " m"]
    test: Examples
    wanted: Int64[Tensor, " n"]
    removed_train: tuple[Tensor, Tensor]
    level: Float[Tensor, " m"]

    def right(self, x: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """Which test examples the biased probe tells right from some activations."""
        return accuracy(self.biased, x, self.wanted)


def prepare(
    name: str,
    train: Examples,
    test: Examples,
    wanted: int,
    removed: int,
    atoms: Float[Tensor, "m d"],
    seed: int = 0,
) -> Setting:
    """Fit the probes and rank the latents; all on training documents, balanced over the four combinations of classes.

    Args:
        name: For the record.
        train: Both concepts labelled 0 and 1 in columns `wanted` and `removed` of `y`.
        test: The same of held-out documents; balanced here, once, so that every arm is judged on the same examples.
        wanted: Column of the concept to keep.
        removed: Column of the concept to remove.
        atoms: What each latent writes.
        seed: Of the balanced draws.
    Raises:
        UndefinedMetric: a combination of classes has no examples.
    """
    cell, test_cell = (2 * side.y[:, wanted] + side.y[:, removed] for side in (train, test))
    even = train[balanced(cell, seed, 4)]
    judged = test[balanced(test_cell, seed, 4)]
    # The correlated data are as many as the balanced ones, and hold both classes evenly.
    agree = torch.where(train.y[:, wanted] == train.y[:, removed], train.y[:, wanted], -1)
    correlated = train[balanced(agree, seed, 2)]
    biased = logistic(correlated.x, correlated.y[:, wanted], 2)
    fair = logistic(even.x, even.y[:, wanted], 2)
    concept = logistic(even.x, even.y[:, removed], 2)
    order = effects(even.z, even.y[:, removed], atoms, concept).abs().argsort(descending=True, stable=True)
    labels = judged.y[:, wanted]
    removed_train = (even.x, even.y[:, removed])
    return Setting(
        name, biased, accuracy(fair, judged.x, labels), order, judged, labels, removed_train, even.z.mean(dim=0)
    )


def repaired(ablated: Tensor, biased: Tensor, clean: Tensor) -> Tensor:
    """`(ablated - biased) / (clean - biased)`: 0 nothing repaired, 1 as good as a probe of balanced data."""
    return (ablated - biased) / (clean - biased)


def spurious_removal(
    settings: Sequence[Setting],
    atoms: Float[Tensor, "m d"],
    *,
    ns: Sequence[int] = NS,
    resampling: Resampling | None = None,
    seed: int = 0,
    recorded: dict[str, Cell] | None = None,
    left_out: Sequence[str] = (),
) -> Benchmark:
    """Every direction at every number of latents, beside as many random latents and erasing the concept itself.

    Args:
        settings: Directions.
        atoms: What each latent writes.
        ns: Latents ablated.
        resampling: How intervals are drawn, over test documents.
        seed: Of the random latents.
        recorded: To be recorded.
        left_out: What could not be prepared, and why.
    Raises:
        UndefinedMetric: no biased probe is worse than its clean twin by at least 2 points: nothing to repair.
    """
    began = time.perf_counter()
    resampling = resampling or Resampling()
    rows: list[dict[str, Cell]] = []
    drawn: dict[str, tuple[Drawn, dict[str, int]]] = {}
    skipped = list(left_out)
    for setting in settings:
        columns = _arms(setting, atoms, ns, seed)
        means = {name: float(values.mean()) for name, values in columns.items()}
        gap = means["clean"] - means["biased"]
        if gap < LEAST_GAP:
            skipped.append(
                f"{setting.name}: the biased probe is right on {means['biased']:.3f}, the clean one on "
                f"{means['clean']:.3f}: nothing to repair"
            )
            continue
        sums = DocumentSums(1 + len(columns))
        one = torch.ones(len(setting.test), dtype=torch.float64)
        sums.add(setting.test.documents, torch.stack([one, *columns.values()], dim=1))
        drawn[setting.name] = resampling.over(sums), {name: 1 + i for i, name in enumerate(columns)}
        for name, value in means.items():
            rows.append(
                {"direction": setting.name, "arm": name, "accuracy": value, "repaired": (value - means["biased"]) / gap}
            )
    if not rows:
        raise UndefinedMetric(f"spurious correlation: {'; '.join(skipped) or 'no direction was given'}")
    return Benchmark(
        benchmark="scr",
        question=QUESTION,
        settings={"ns": list(ns), "seed": seed, **(recorded or {})},
        scores=tuple(_score(n, drawn, rows) for n in ns),
        details=tuple(rows),
        left_out=tuple(skipped),
        metrics={"scr_metrics": _metrics(rows, ns)},
        seconds=time.perf_counter() - began,
    )


def _arms(setting: Setting, atoms: Tensor, ns: Sequence[int], seed: int) -> dict[str, Tensor]:
    test = setting.test
    found = {"biased": setting.right(test.x), "clean": setting.clean}
    for n in ns:
        chosen = setting.order[:n]
        found[f"latents, N={n}"] = setting.right(without(test.x, test.z, atoms, chosen, setting.level))
        found[f"latents to zero, N={n}"] = setting.right(without(test.x, test.z, atoms, chosen))
    generator = torch.Generator().manual_seed(mix_seed(seed, _RANDOM))
    live = (test.z != 0).any(dim=0).nonzero()[:, 0]
    shuffled = live[torch.randperm(len(live), generator=generator)]
    for n in ns:
        found[f"random latents, N={n}"] = setting.right(without(test.x, test.z, atoms, shuffled[:n], setting.level))
    found["concept erased (LEACE)"] = setting.right(Leace.of(*setting.removed_train).erase(test.x))
    return found


def _score(n: int, drawn: dict[str, tuple[Drawn, dict[str, int]]], rows: Sequence[dict[str, Cell]]) -> Score:
    """The mean over directions. Ends of intervals are averaged too: the directions share documents, so it is wide."""

    def statistic(at: dict[str, int]) -> Callable[[Tensor], Tensor]:
        return lambda s: repaired(s[..., at[f"latents, N={n}"]], s[..., at["biased"]], s[..., at["clean"]])

    found = mean_estimate([sums.estimate(statistic(at)) for sums, at in drawn.values()])
    return Score(
        name=f"repaired, N={n}",
        value=found,
        better="higher",
        floors={"random latents": mean(rows, "repaired", arm=f"random latents, N={n}")},
        ceilings={"concept erased (LEACE)": mean(rows, "repaired", arm="concept erased (LEACE)")},
    )


def _metrics(rows: Sequence[dict[str, Cell]], ns: Sequence[int]) -> dict[str, float]:
    """As published: latents set to zero, the direction where the biased probe does worse; both directions beside it."""
    names = list(dict.fromkeys(str(row["direction"]) for row in rows))
    worst = min(names, key=lambda name: mean(rows, "accuracy", direction=name, arm="biased"))
    found: dict[str, float] = {}
    for n in ns:
        here = {name: mean(rows, "repaired", direction=name, arm=f"latents to zero, N={n}") for name in names}
        found[f"scr_metric_threshold_{n}"] = here[worst]
        for i, value in enumerate(here.values()):
            found[f"scr_dir{i + 1}_threshold_{n}"] = value
    return found
