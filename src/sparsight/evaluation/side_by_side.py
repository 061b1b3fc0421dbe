"""Several dictionaries measured on the same documents: their numbers in columns, and the differences that are real."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Literal

from sparsight.dictionaries import AbstractDictionary
from sparsight.evaluation import sums as terms
from sparsight.evaluation.benchmarks.run import BenchmarkSuite, run_suite, with_floors
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.measuring import Measuring, Settings
from sparsight.evaluation.reading import StoredActivations, check_model
from sparsight.evaluation.record import Evaluation
from sparsight.evaluation.record_values import Estimate, Resampling, ratio
from sparsight.models import Site

CLOSE = 1.05  # mean L0 that differs by more than 5 % makes two FVU incomparable


class PairDifference(Record):
    """The FVU of one dictionary less that of another, the same documents drawn for both.

    Attributes:
        first, second: Their names.
        fvu: Below 0, the first is better.
        l0_ratio: Mean L0 of the first over that of the second.
        comparable: Whether their mean L0 is within 5 %.
        verdict: The better one; "undecided" where the interval holds 0 or there is none; "not comparable" at other L0.
    """

    first: str
    second: str
    fvu: Estimate
    l0_ratio: float
    comparable: bool
    verdict: str


class SideBySide(Record):
    """Several dictionaries.

    Attributes:
        evaluations: By name.
        differences: Of every two at one site.
        suites: Benchmarks, by name; empty when none was asked for.
    """

    schema_version: Literal[1] = 1
    evaluations: dict[str, Evaluation]
    differences: tuple[PairDifference, ...]
    suites: dict[str, BenchmarkSuite]

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """The numbers in columns; the whole table where there is one dictionary."""
        from sparsight.evaluation.tables import side_by_side_table

        return side_by_side_table(self)


def evaluate_side_by_side(
    dictionaries: Mapping[str, AbstractDictionary],
    store: StoredActivations | Sequence[StoredActivations],
    *,
    model: Any = None,
    site: Site | str | None = None,
    settings: Settings | None = None,
    resampling: Resampling | None = None,
    suite: Sequence[str] | None = None,
    suite_examples: int = 256,
) -> SideBySide:
    """Measure every dictionary on the same rows, and compare every two of the same site.

    Args:
        dictionaries: By name.
        store: As for `evaluate`.
        model: For the loss, and for the benchmarks that answer prompts.
        site: Where, if not at the dictionaries' own sites.
        settings: What each evaluation is asked for.
        resampling: How intervals are drawn; the same documents for all.
        suite: Benchmarks to run; none when None.
        suite_examples: Their examples of a class.
    Raises:
        ValueError: there is no dictionary, or as `evaluate` and `run_suite`.
        DataError, UndefinedMetric: as `evaluate` and `run_suite`.
    """
    if not dictionaries:
        raise ValueError("give at least one dictionary")
    settings, resampling = settings or Settings(), resampling or Resampling()
    found: dict[str, Measuring] = {}
    evaluations: dict[str, Evaluation] = {}
    for name, dictionary in dictionaries.items():
        began = time.perf_counter()
        measuring = Measuring(dictionary, store, site, settings, resampling)
        if model is not None:
            check_model(model, measuring.part, force=settings.force)
        measuring.pass_over_rows()
        evaluations[name] = measuring.record(model, began)
        found[name] = measuring
    suites = {}
    run_alike = partial(
        run_suite,
        names=suite or None,
        n_examples=suite_examples,
        n_resamples=resampling.n_resamples,
        level=resampling.level,
        seed=settings.seed,
        progress=settings.progress,
    )
    for name, dictionary in dictionaries.items() if suite is not None else ():
        first = store if isinstance(store, StoredActivations) else store[0]
        run = run_alike(dictionary, first, model=model, site=site, force=settings.force)
        for one in found[name].retrained:
            # Without a model: nothing is asked of one that has learnt nothing.
            run = with_floors(run, one.name, run_alike(one.dictionary, one.store))
        suites[name] = run
    pairs = tuple(
        _difference(first, second, found[first], found[second])
        for first, second in combinations(found, 2)
        if found[first].reading.site == found[second].reading.site
    )
    return SideBySide(evaluations=evaluations, differences=pairs, suites=suites)


def _difference(first: str, second: str, a: Measuring, b: Measuring) -> PairDifference:
    # One seed and one list of documents: both were drawn alike, so that the difference is paired.
    fvu = a.drawn.minus(b.drawn, ratio(terms.RESIDUAL, terms.CENTRED))
    # A dictionary that never fires has no ratio of L0: it is comparable with nothing.
    l0 = a.sums.l0.value / b.sums.l0.value if b.sums.l0.value > 0 else 0.0
    comparable = 1 / CLOSE <= l0 <= CLOSE
    if not comparable:
        verdict = "not comparable"
    elif fvu.low is None or fvu.high is None or fvu.low <= 0 <= fvu.high:
        verdict = "undecided"
    else:
        verdict = first if fvu.high < 0 else second
    return PairDifference(first=first, second=second, fvu=fvu, l0_ratio=l0, comparable=comparable, verdict=verdict)
