"""What every benchmark returns: scores with their floors, details in rows, and why a score is missing."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.record_values import Estimate

Cell = str | float | int | None


class Score(Record):
    """One number of a benchmark.

    Attributes:
        name: What it is, as in docs/evaluation.md.
        value: With its interval where there is one; None where it does not exist.
        better: Which way is better.
        floors: What things that know nothing score on the same examples, by name.
        ceilings: What is not bound to the dictionary scores, by name.
        no_value_because: Why there is none.
    """

    name: str
    value: Estimate | None
    better: Literal["higher", "lower"]
    floors: dict[str, float] = Field(default_factory=dict)
    ceilings: dict[str, float] = Field(default_factory=dict)
    no_value_because: str | None = None


class Benchmark(Record):
    """What one benchmark found.

    Attributes:
        benchmark: Its name.
        question: What it asks.
        settings: Everything it was run with.
        scores: Numbers.
        details: One row for each task, class or setting.
        left_out: What could not be measured, and why.
        metrics: The numbers under the names that SAEBench gives them; those that do not exist are missing.
        seconds: Time it took.
    """

    benchmark: str
    question: str
    settings: dict[str, Any]
    scores: tuple[Score, ...]
    details: tuple[dict[str, Cell], ...]
    left_out: tuple[str, ...]
    metrics: dict[str, dict[str, float]]
    seconds: float


def numbers(rows: Sequence[Mapping[str, Cell]], key: str, **where: Cell) -> list[float]:
    """The numbers under one key of the rows that have given cells."""
    found = []
    for row in rows:
        value = row[key]
        if all(row[name] == cell for name, cell in where.items()) and isinstance(value, int | float):
            found.append(float(value))
    return found


def mean(rows: Sequence[Mapping[str, Cell]], key: str, **where: Cell) -> float:
    """Their mean; there must be at least one."""
    found = numbers(rows, key, **where)
    return sum(found) / len(found)
