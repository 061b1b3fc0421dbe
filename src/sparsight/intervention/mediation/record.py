"""What the battery leaves behind: its tests, and a verdict."""

from typing import Literal, TypeAlias

from sparsight.evaluation.frozen_record import Record
from sparsight.intervention.mediation.measure import Effect

ENOUGH, LITTLE = 0.5, 0.2
"""A fraction counts as large from the first on, and as small up to the second."""

Said: TypeAlias = Literal["mediates", "mediates in part", "does not mediate"]


class MediationTest(Record):
    """One test.

    Attributes:
        name: Which.
        value: The effect, with its interval where it has one.
        control: The same for the control, or the bound it is held against.
        passed: Whether it speaks for mediation; None where it only informs.
        meaning: What was measured, and what its ends mean.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    control: float | None = None
    passed: bool | None
    meaning: str

    @staticmethod
    def of(effect: Effect, name: str, meaning: str, *, control: float, passed: bool) -> "MediationTest":
        """An effect with its interval, held against something."""
        return MediationTest(
            name=name,
            value=effect.value,
            low=effect.low,
            high=effect.high,
            control=control,
            passed=passed,
            meaning=meaning,
        )

    @staticmethod
    def beyond(effect: Effect, name: str, meaning: str, *, control: float) -> "MediationTest":
        """Passed if the whole interval is large, and larger than the control."""
        passed = effect.low >= ENOUGH and effect.low > control
        return MediationTest.of(effect, name, meaning, control=control, passed=passed)


class Mediation(Record):
    """The verdict table of one direction (or subspace).

    Attributes:
        direction: How it was found.
        rank: Its dimensions.
        tests: The battery.
        dimensions: Mediated fraction of growing subspaces, from `rank` on.
        verdict: "mediates" if every test that counts is passed; "mediates in part" if interchange carries a fifth of
            the effect or more, beyond all random subspaces but 5 %, and is no illusion; else "does not mediate".
    """

    schema_version: Literal[1] = 1
    direction: str
    rank: int
    n_pairs: int
    tests: list[MediationTest]
    dimensions: list[float]
    verdict: Said

    def test(self, name: str) -> MediationTest:
        """The test of that name.

        Raises:
            ValueError: there is none.
        """
        for test in self.tests:
            if test.name == name:
                return test
        raise ValueError(f"no test {name!r}; there are: {', '.join(test.name for test in self.tests)}")

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """One test in each line."""
        from sparsight.evaluation.tables import rendered, titled

        title = f"{self.direction}, rank {self.rank}, {self.n_pairs} pairs: {self.verdict}"
        table = titled(title, "test", "value", "95 %", "control", "passed")
        for t in self.tests:
            ends = "" if t.low is None else f"{t.low:.3f} to {t.high:.3f}"
            control = "" if t.control is None else f"{t.control:.3f}"
            said = "" if t.passed is None else "yes" if t.passed else "NO"
            table.add_row(t.name, f"{t.value:.3f}", ends, control, said)
        grown = ", ".join(f"{self.rank + i}: {value:.2f}" for i, value in enumerate(self.dimensions))
        meanings = [f"{t.name}: {t.meaning}" for t in self.tests]
        return rendered(table, f"mediated fraction by dimension: {grown}", *meanings)
