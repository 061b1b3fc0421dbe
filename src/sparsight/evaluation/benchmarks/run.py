"""The benchmarks by name, on a labelled store and its model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sparsight.activations.split import mix_seed
from sparsight.codes import SparseCode
from sparsight.coding import gradient_pursuit
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import DataError, SparsightError, UndefinedMetric
from sparsight.evaluation.benchmarks import organism
from sparsight.evaluation.benchmarks.absorption import absorption
from sparsight.evaluation.benchmarks.examples import dense, pool_documents
from sparsight.evaluation.benchmarks.interchange import interchange
from sparsight.evaluation.benchmarks.record import Benchmark
from sparsight.evaluation.benchmarks.sparse_probing import Task, sparse_probing
from sparsight.evaluation.benchmarks.spurious import prepare, spurious_removal
from sparsight.evaluation.benchmarks.targeted import targeted_perturbation
from sparsight.evaluation.benchmarks.unlearning import unlearning
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.reading import StoredActivations, reported, site_for
from sparsight.evaluation.record_values import Resampling
from sparsight.models import Site
from sparsight.models.organism import FEATURES

_RANDOM = 0x5EED


class NotRun(Record):
    """A benchmark that has no number, and why."""

    benchmark: str
    reason: str


class BenchmarkSuite(Record):
    """What the benchmarks found about one dictionary.

    Attributes:
        site, model: Where the activations are from.
        n_latents: Width of the dictionary.
        benchmarks: Those that ran.
        not_run: Those that could not, and why.
    """

    schema_version: Literal[1] = 1
    site: str
    model: str
    n_latents: int
    benchmarks: tuple[Benchmark, ...]
    not_run: tuple[NotRun, ...]

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """A table for people: every score with its interval, floors and ceilings."""
        from sparsight.evaluation.benchmarks.table import suite_table

        return suite_table(self)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every benchmark is given.

    Attributes:
        dictionary: Judged.
        store: Labelled activations of both sides.
        site: Where.
        model: Of the store; None leaves out what needs one.
        resampling: How intervals are drawn.
        n_examples: Examples of a class, prompts and documents are scaled by it.
        seed: Every random choice follows from it.
    """

    dictionary: AbstractDictionary
    store: StoredActivations
    site: Site
    model: Any
    resampling: Resampling
    n_examples: int
    seed: int

    def encode(self, x: Tensor) -> SparseCode:
        """The dictionary's own code, on the CPU."""
        with torch.no_grad():
            return self.dictionary.encode(x.to(self.dictionary.atoms)).to("cpu")

    @property
    def atoms(self) -> Tensor:
        """What each latent writes."""
        return self.dictionary.atoms.detach().cpu()


def _probing(bench: Bench) -> Benchmark:
    tasks, left_out = organism.tasks(
        bench.store, bench.site, bench.encode, organism.PROBED, bench.n_examples, bench.seed
    )
    return sparse_probing(
        tasks,
        random_codes=_random_codes(bench, tasks),
        resampling=bench.resampling,
        left_out=left_out,
        settings={"per_class": bench.n_examples},
        seed=bench.seed,
    )


def _random_codes(bench: Bench, tasks: Sequence[Task]) -> dict[str, tuple[Tensor, Tensor]]:
    """Codes of the same examples over random atoms, at the dictionary's L0."""
    if not tasks:
        return {}
    generator = torch.Generator().manual_seed(mix_seed(bench.seed, _RANDOM))
    shape = bench.atoms.shape
    atoms = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)
    offset = bench.dictionary.b_dec.detach().cpu()
    k = max(1, round(float((tasks[0].train.z != 0).sum(dim=1).double().mean())))

    def code(x: Tensor) -> SparseCode:
        return gradient_pursuit(x - offset, atoms, min(k, len(atoms)))

    return {task.name: (dense(code, task.train.x), dense(code, task.test.x)) for task in tasks}


def _absorption(bench: Bench) -> Benchmark:
    tasks, left_out = organism.tasks(
        bench.store, bench.site, bench.encode, organism.PARENTS, 2 * bench.n_examples, bench.seed
    )
    offset = bench.dictionary.b_dec.detach().cpu()
    return absorption(
        tasks,
        bench.atoms,
        offset,
        resampling=bench.resampling,
        left_out=left_out,
        settings={"per_class": 2 * bench.n_examples},
    )


def _scr(bench: Bench) -> Benchmark:
    wanted, removed = organism.WANTED, organism.REMOVED
    train, test = organism.two_concepts(
        bench.store, bench.site, bench.encode, bench.dictionary.n_latents, wanted, removed
    )
    settings, left_out = [], []
    for name, keep, drop in ((f"{wanted} without {removed}", 0, 1), (f"{removed} without {wanted}", 1, 0)):
        try:
            settings.append(prepare(name, train, test, keep, drop, bench.atoms, bench.seed))
        except UndefinedMetric as error:
            left_out.append(f"{name}: {error}")
    return spurious_removal(
        settings,
        bench.atoms,
        resampling=bench.resampling,
        seed=bench.seed,
        left_out=left_out,
        recorded={"wanted": wanted, "removed": removed},
    )


def _tpp(bench: Bench) -> Benchmark:
    feature = organism.TARGETED
    sides = [
        pool_documents(bench.store.split(name), bench.site, bench.encode, [feature], bench.dictionary.n_latents)
        for name in ("train", "heldout")
    ]
    classes = FEATURES[feature].classes
    return targeted_perturbation(
        sides[0],
        sides[1],
        classes,
        bench.atoms,
        resampling=bench.resampling,
        seed=bench.seed,
        recorded={"feature": feature},
    )


def _ravel(bench: Bench) -> Benchmark:
    families, train, left_out = [], [], []
    for feature in organism.ANSWERS:
        try:
            prompts, rows = organism.prompts(bench.model, 2 * bench.n_examples, feature, bench.seed)
        except UndefinedMetric as error:
            left_out.append(str(error))
            continue
        families.append(prompts)
        train.append(rows)
    return interchange(
        bench.model,
        bench.dictionary,
        bench.site,
        families,
        train,
        n_train=bench.n_examples,
        n_test=bench.n_examples,
        resampling=bench.resampling,
        seed=bench.seed,
        left_out=left_out,
    )


def _unlearning(bench: Bench) -> Benchmark:
    n = max(8, bench.n_examples // 4)
    forget = organism.exams(bench.model, [organism.FORGOTTEN], n, bench.seed)
    retain = organism.exams(bench.model, organism.KEPT, n, bench.seed)
    return unlearning(
        bench.model,
        bench.dictionary,
        bench.site,
        forget,
        retain,
        resampling=bench.resampling,
        seed=bench.seed,
        recorded={"forget": organism.FORGOTTEN, "retain": ", ".join(organism.KEPT)},
    )


BENCHMARKS: dict[str, Callable[[Bench], Benchmark]] = {
    "sparse_probing": _probing,
    "absorption": _absorption,
    "scr": _scr,
    "tpp": _tpp,
    "ravel": _ravel,
    "unlearning": _unlearning,
}
NEED_MODEL = ("ravel", "unlearning")
NEED_ORGANISM = NEED_MODEL  # their prompts are in its words


def run_suite(
    dictionary: AbstractDictionary,
    store: StoredActivations,
    *,
    model: Any = None,
    names: Sequence[str] | None = None,
    n_examples: int = 256,
    site: Site | str | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> BenchmarkSuite:
    """Run benchmarks on a store labelled with the organism's features. Each also runs alone on other ingredients.

    Args:
        dictionary: Takes raw activations.
        store: Labelled activations.
        model: For the benchmarks that answer prompts; those are left out without it.
        names: Which; all when None.
        n_examples: Examples of a class; prompts and documents are scaled by it.
        site: Where, if not at the dictionary's own site.
        n_resamples, level: Of the bootstrap over documents.
        seed: Every random choice follows from it.
        force: Measure though the dictionary was made for another site or model.
        progress: Show a bar on stderr.
    Raises:
        ValueError: a name is unknown, or widths differ.
        DataError: the store has no labels, or provenance forbids it.
    """
    unknown = [name for name in names or () if name not in BENCHMARKS]
    if unknown:
        raise ValueError(f"unknown benchmark {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    if not store.label_names:
        raise DataError("the store has no labels; harvest documents that carry labels, such as the organism's")
    chosen = site_for(dictionary, store, site, force=force)
    bench = Bench(dictionary, store, chosen, model, Resampling(n_resamples, level, seed), n_examples, seed)
    found, not_run = [], []
    asked = list(names or BENCHMARKS)
    with reported("benchmarks", len(asked), shown=progress) as advance:
        for name in asked:
            try:
                _refuse_without_model(name, model, store)
                found.append(BENCHMARKS[name](bench))
            except (UndefinedMetric, SparsightError) as error:
                not_run.append(NotRun(benchmark=name, reason=str(error)))
            advance(1)
    return BenchmarkSuite(
        site=str(chosen),
        model=store.model,
        n_latents=dictionary.n_latents,
        benchmarks=tuple(found),
        not_run=tuple(not_run),
    )


def with_floors(suite: BenchmarkSuite, name: str, beside: BenchmarkSuite) -> BenchmarkSuite:
    """The scores of one run, with those of another as floors of that name, where both have a value."""
    others = {(b.benchmark, s.name): s.value for b in beside.benchmarks for s in b.scores}

    def floored(benchmark: Benchmark) -> Benchmark:
        scores = []
        for score in benchmark.scores:
            value = others.get((benchmark.benchmark, score.name))
            floors = score.floors if value is None else {**score.floors, name: value.value}
            scores.append(score.model_copy(update={"floors": floors}))
        return benchmark.model_copy(update={"scores": tuple(scores)})

    return suite.model_copy(update={"benchmarks": tuple(floored(b) for b in suite.benchmarks)})


def _refuse_without_model(name: str, model: Any, store: StoredActivations) -> None:
    if name in NEED_MODEL and model is None:
        raise DataError("no model was given to answer its prompts")
    if name in NEED_ORGANISM and not store.model.rstrip("/").rsplit("/", 1)[-1].startswith("organism"):
        raise DataError(f"its prompts are in the organism's words, got model {store.model}; give prompts of your own")
