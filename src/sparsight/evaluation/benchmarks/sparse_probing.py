"""k-sparse probing: can a concept be told from the `k` latents that differ most, chosen on training documents only?"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.benchmarks.examples import Examples
from sparsight.evaluation.benchmarks.record import Benchmark, Cell, Score, mean
from sparsight.evaluation.bootstrap import DocumentSums
from sparsight.evaluation.classification import auroc
from sparsight.evaluation.features.probes import k_sparse, logistic
from sparsight.evaluation.record_values import Estimate, Resampling, ratio

KS = (1, 2, 5, 10, 20)
_SHUFFLE = 0x5B0F
QUESTION = "how well do the k latents that differ most between two classes tell them apart, on held-out documents?"


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """A probe of one task on the held-out side.

    Attributes:
        right: Whether each held-out example was told right.
        auroc: Of its scores.
        columns: What it read, best first; empty when it read everything.
    """

    right: Bool[Tensor, " n"]
    auroc: float
    columns: Int64[Tensor, " k"]

    @property
    def accuracy(self) -> float:
        """Share told right."""
        return self.right.double().mean().item()


def probe(
    train: Float[Tensor, "n c"],
    train_y: Int64[Tensor, " n"],
    test: Float[Tensor, "m c"],
    test_y: Int64[Tensor, " m"],
    k: int | None,
) -> ProbeResult:
    """Fit on the training side, score on the other. Nothing of the test side reaches the choice or the fit.

    Columns are ranked by the share of their variance that lies between the classes, so that no column wins by its
    scale; a logistic regression with a fixed L2 penalty is fitted on standardised columns.

    Args:
        train: Latent values, or activations.
        train_y: 0 or 1.
        test: The same columns of other documents.
        test_y: 0 or 1.
        k: How many columns to read; None for all.
    Raises:
        UndefinedMetric: a class has no examples on one of the sides.
    """
    if len(torch.unique(test_y)) < 2:
        raise UndefinedMetric(f"class {1 - int(test_y[0]) if len(test_y) else 0} has no held-out examples")
    columns = torch.zeros(0, dtype=torch.int64)
    if k is None:
        scores = logistic(train, train_y, 2).scores(test)
    else:
        fitted = k_sparse(train, train_y, 2, min(k, train.shape[1]))
        scores, columns = fitted.scores(test), fitted.columns
    margin: Float64[Tensor, " m"] = (scores[:, 1] - scores[:, 0]).double()
    right: Bool[Tensor, " m"] = (margin > 0) == (test_y == 1)
    return ProbeResult(right, auroc(margin, test_y == 1), columns)


@dataclass(frozen=True, eq=False)
class Task:
    """Two classes to be told apart.

    Attributes:
        name: Feature and class.
        train, test: Examples of both sides.
        train_y, test_y: 0 or 1.
    """

    name: str
    train: Examples
    test: Examples
    train_y: Int64[Tensor, " n"]
    test_y: Int64[Tensor, " m"]


def sparse_probing(
    tasks: Sequence[Task],
    *,
    ks: Sequence[int] = KS,
    random_codes: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    resampling: Resampling | None = None,
    left_out: Sequence[str] = (),
    settings: dict[str, Cell] | None = None,
    seed: int = 0,
) -> Benchmark:
    """Every task at every `k`, beside probes of activations, of a random dictionary, and of shuffled labels.

    Args:
        tasks: What to tell apart.
        ks: Numbers of latents.
        random_codes: Codes of a random dictionary of the same shape for the examples of each task, by its name.
        resampling: How intervals are drawn; over held-out documents, all tasks together.
        left_out: What could not be made a task, and why.
        settings: To be recorded.
        seed: Of the shuffled labels.
    Raises:
        UndefinedMetric: there is no task.
    """
    began = time.perf_counter()
    if not tasks:
        raise UndefinedMetric("sparse probing has no task; label documents with at least two classes")
    resampling = resampling or Resampling()
    hits = {f"latents, k={k}": DocumentSums(2) for k in ks}
    rows: list[dict[str, Cell]] = []
    skipped = list(left_out)
    for task in tasks:
        try:
            results = _arms(task, ks, (random_codes or {}).get(task.name), seed)
        except UndefinedMetric as error:
            skipped.append(f"{task.name}: {error}")
            continue
        for arm, found in results.items():
            rows.append({"task": task.name, "arm": arm, "accuracy": found.accuracy, "auroc": found.auroc})
            if arm in hits:
                one = torch.ones(len(found.right), dtype=torch.float64)
                hits[arm].add(task.test.documents, torch.stack([found.right.double(), one], dim=1))
    if not rows:
        raise UndefinedMetric(f"sparse probing has no task with examples of both classes: {'; '.join(skipped[:3])}")
    accuracy = {arm: mean(rows, "accuracy", arm=arm) for arm in dict.fromkeys(str(row["arm"]) for row in rows)}
    return Benchmark(
        benchmark="sparse_probing",
        question=QUESTION,
        settings={"ks": list(ks), "seed": seed, **(settings or {})},
        scores=tuple(_score(k, hits[f"latents, k={k}"], accuracy, resampling) for k in ks),
        details=tuple(rows),
        left_out=tuple(skipped),
        metrics=_metrics(accuracy, ks),
        seconds=time.perf_counter() - began,
    )


def _arms(task: Task, ks: Sequence[int], random: tuple[Tensor, Tensor] | None, seed: int) -> dict[str, ProbeResult]:
    y, test_y = task.train_y, task.test_y
    found = {f"latents, k={k}": probe(task.train.z, y, task.test.z, test_y, k) for k in ks}
    found["latents, all"] = probe(task.train.z, y, task.test.z, test_y, None)
    found |= {f"coordinates, k={k}": probe(task.train.x, y, task.test.x, test_y, k) for k in ks}
    found["activations, all"] = probe(task.train.x, y, task.test.x, test_y, None)
    if random is not None:
        found |= {f"random atoms, k={k}": probe(random[0], y, random[1], test_y, k) for k in ks}
    generator = torch.Generator().manual_seed(mix_seed(seed, _SHUFFLE))
    shuffled = y[torch.randperm(len(y), generator=generator)]
    found |= {f"shuffled labels, k={k}": probe(task.train.z, shuffled, task.test.z, test_y, k) for k in ks}
    return found


def _score(k: int, hits: DocumentSums, accuracy: Mapping[str, float], resampling: Resampling) -> Score:
    # The interval is of hits over all held-out examples; the value is the mean over tasks, as published.
    pooled = resampling.estimate(hits, ratio(0, 1))
    value, shift = accuracy[f"latents, k={k}"], accuracy[f"latents, k={k}"] - pooled.value
    ends = {"low": pooled.low, "high": pooled.high}
    moved = {name: None if end is None else end + shift for name, end in ends.items()}
    floors = {
        arm: accuracy[f"{arm}, k={k}"]
        for arm in ("random atoms", "coordinates", "shuffled labels")
        if f"{arm}, k={k}" in accuracy
    }
    return Score(
        name=f"accuracy, k={k}",
        value=Estimate(value=value, standard_error=pooled.standard_error, **moved),
        better="higher",
        floors=floors,
        ceilings={"activations, all": accuracy["activations, all"]},
    )


def _metrics(accuracy: Mapping[str, float], ks: Sequence[int]) -> dict[str, dict[str, float]]:
    return {
        "llm": {"llm_test_accuracy": accuracy["activations, all"]}
        | {f"llm_top_{k}_test_accuracy": accuracy[f"coordinates, k={k}"] for k in ks},
        "sae": {"sae_test_accuracy": accuracy["latents, all"]}
        | {f"sae_top_{k}_test_accuracy": accuracy[f"latents, k={k}"] for k in ks},
    }
