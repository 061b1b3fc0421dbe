"""The suite as a table for a terminal. Layout only."""

from typing import TYPE_CHECKING, Any

from sparsight.evaluation.tables import rendered, titled

if TYPE_CHECKING:
    from sparsight.evaluation.benchmarks.run import BenchmarkSuite


def suite_table(suite: "BenchmarkSuite") -> str:
    """One score in each line: value, interval, what knows nothing, what is not bound to the dictionary."""
    parts: list[Any] = []
    for found in suite.benchmarks:
        table = titled(f"{found.benchmark}: {found.question}", "score", "value", "floors", "ceilings", "better")
        for score in found.scores:
            value = score.no_value_because or "" if score.value is None else str(score.value)
            table.add_row(score.name, value, _named(score.floors), _named(score.ceilings), score.better)
        parts.append(table)
        parts += [f"left out: {reason}" for reason in found.left_out[:5]]
        if len(found.left_out) > 5:
            parts.append(f"left out: {len(found.left_out) - 5} more, in the JSON")
    parts += [f"not run: {name.benchmark}: {name.reason}" for name in suite.not_run]
    return rendered(*parts, width=160)


def _named(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
