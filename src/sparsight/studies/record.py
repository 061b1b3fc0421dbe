"""What a study leaves behind: verdicts with their effects, tables, a drawing, and how to get them again."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sparsight.evaluation.record import Record

Finite = Annotated[float, Field(allow_inf_nan=False)]

UNDECIDED = "not decided at this power"
ANSWER = r"^(yes|no|depends on \S.*|not decided at this power)$"

Cell = str | int | Finite | None


class Effect(Record):
    """A number that a verdict rests on.

    Attributes:
        name: What was measured.
        value: Of everything measured.
        low, high: Ends of its 95 % interval; both None where the value is exact.
        n: Independent units behind the interval (documents, seeds ...), not tokens of one document.
        unit: Unit of the value, and in words what `n` counts: "FVU, over documents".
    """

    name: str
    value: Finite
    low: Finite | None = None
    high: Finite | None = None
    n: int = Field(ge=1)
    unit: str

    @model_validator(mode="after")
    def _ordered(self) -> "Effect":
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends: give both low and high, or neither")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low must not exceed high, got {self.low} and {self.high}")
        return self

    def __str__(self) -> str:
        ends = "" if self.low is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g}{ends}"


class Verdict(Record):
    """A question and its answer.

    Attributes:
        question: One that can be answered by the words below.
        answer: "yes", "no", "depends on ..." or "not decided at this power".
        because: One or two sentences with the numbers that decided.
        effects: What the answer rests on, one at least.
        would_change: The number that would turn the answer, and by how much it is away.
    """

    question: str = Field(min_length=1)
    answer: str = Field(pattern=ANSWER)
    because: str = Field(min_length=1)
    effects: list[Effect] = Field(min_length=1)
    would_change: str = Field(min_length=1)


class Table(Record):
    """Rows of cells under named columns; numbers stay numbers, the page rounds them.

    Attributes:
        title: What the rows are.
        columns: Heads, with units.
        rows: As long as `columns`, each.
        note: Definitions, and the source of figures that are not measured here.
    """

    title: str
    columns: list[str] = Field(min_length=1)
    rows: list[list[Cell]]
    note: str = ""

    @model_validator(mode="after")
    def _rectangular(self) -> "Table":
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"every row of {self.title!r} must have {len(self.columns)} cells, got {wrong[0]}")
        return self


class Line(Record):
    """One line, row of points or group of bars of a panel.

    Attributes:
        name: As the legend gives it; "" leaves it out of the legend.
        x: Positions; text for a panel of categories.
        y: Values.
        low, high: Ends of intervals, drawn as whiskers.
        style: "line" joins marked points, "points" does not, "bars" stands on 0, "dashed" is for what is known.
    """

    name: str
    x: list[str | Finite]
    y: list[Finite]
    low: list[Finite] | None = None
    high: list[Finite] | None = None
    style: Literal["line", "points", "bars", "dashed"] = "line"

    @model_validator(mode="after")
    def _of_one_length(self) -> "Line":
        lengths = {len(self.x), len(self.y), *(len(ends) for ends in (self.low, self.high) if ends is not None)}
        if len(lengths) != 1 or (self.low is None) != (self.high is None):
            raise ValueError(f"x, y, low and high of {self.name!r} must be of one length, got {sorted(lengths)}")
        return self


class Panel(Record):
    """Lines over shared axes; panels of one study stand side by side in one drawing."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line] = Field(min_length=1)
    x_log: bool = False
    y_log: bool = False


class Findings(Record):
    """What a study's `run` returns.

    Attributes:
        verdicts: One at least, the headline first.
        tables: Everything the verdicts rest on.
        figures: Panels of the drawing, one to six.
        caption: What the drawing shows, in a sentence or two.
        method: What was done, in plain sentences: data, arms, how the answer was decided.
        limits: What the study cannot say.
        notes: Anything else a reader must know.
    """

    verdicts: list[Verdict] = Field(min_length=1)
    tables: list[Table]
    figures: list[Panel] = Field(min_length=1, max_length=6)
    caption: str
    method: list[str] = Field(min_length=1)
    limits: list[str] = Field(min_length=1)
    notes: list[str] = Field(default_factory=list)


class StudyRecord(Findings):
    """`study.json`: the findings, and what is needed to get them again."""

    schema_version: Literal[1] = 1
    name: str
    question: str
    source: str
    settings: dict[str, Any]
    seed: int
    seconds: dict[str, Finite]
    version: str
    command: str

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """The verdicts for a terminal."""
        from sparsight.studies.study_page import verdicts_text

        return verdicts_text(self)
