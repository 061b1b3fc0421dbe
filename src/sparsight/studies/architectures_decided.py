"""What the literature reports about the order of architectures, and whether measured frontiers agree."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from sparsight.studies.deciding import mean_effect
from sparsight.studies.record import UNDECIDED, Effect, Verdict

MARGIN = math.log(1.05)
REACH = math.log(1.15)
REST = "the best of the rest"

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Reported:
    """One relation between two architectures at equal L0.

    Attributes:
        first, second: Names of architectures; `REST` for the best of all others.
        relation: Of the first's FVU to the second's: "below"; "not above", by more than 5 %; "about", within 5 %.
        source: Who reports it.
    """

    first: str
    second: str
    relation: Literal["below", "not above", "about"]
    source: str

    def __str__(self) -> str:
        return f"{self.first} {self.relation} {self.second}"


REPORTED = (
    Reported("Gated", "ReLU", "below", "Rajamanoharan et al., arXiv 2404.16014"),
    Reported("ReLU, p annealed", "ReLU", "below", "Karvonen et al., arXiv 2408.00113"),
    Reported("Gated", "ReLU, p annealed", "not above", "Karvonen et al., arXiv 2408.00113"),
    Reported("TopK", "ReLU", "below", "Gao et al., arXiv 2406.04093"),
    Reported("JumpReLU", "Gated", "not above", "Rajamanoharan et al., arXiv 2407.14435"),
    Reported("TopK", "Gated", "not above", "Rajamanoharan et al., arXiv 2407.14435"),
    Reported("JumpReLU", "TopK", "not above", "Rajamanoharan et al., arXiv 2407.14435"),
    Reported("BatchTopK", "TopK", "not above", "Bussmann et al., arXiv 2412.06410"),
    Reported("BatchTopK", "JumpReLU", "about", "Bussmann et al., arXiv 2412.06410"),
    Reported("BatchTopK", "Matryoshka", "below", "Bussmann et al., arXiv 2503.17547"),
    Reported("Pursuit", REST, "below", "Smith, DeepMind's progress update on sparse autoencoders, 2024"),
    Reported("ReLU, free norms", "ReLU", "about", "no source: both losses have the same minima (dictionaries.md)"),
)


def at_l0(points: Sequence[tuple[float, float]], wanted: float | int) -> float | None:
    """FVU of a frontier at an L0: straight lines between its points in the logarithms of both.

    The outer lines are followed beyond the ends by a factor of 1.15 in L0 and no further.

    Args:
        points: Pairs of L0 and FVU, two at least, all positive.
        wanted: L0.
    Returns:
        None beyond that, or where two points share an L0.
    """
    logs = sorted((math.log(x), math.log(y)) for x, y in points)
    target = math.log(wanted)
    if not logs[0][0] - REACH <= target <= logs[-1][0] + REACH:
        return None
    (x0, y0), (x1, y1) = next((p for p in pairwise(logs) if target <= p[1][0]), (logs[-2], logs[-1]))
    return None if x1 == x0 else math.exp(y0 + (target - x0) / (x1 - x0) * (y1 - y0))


def matched(seeds: Sequence[Rows], targets: Sequence[int]) -> dict[str, dict[int, list[float | None]]]:
    """For each architecture and L0 the FVU of each seed's frontier there."""
    names = dict.fromkeys(row["architecture"] for row in seeds[0])

    def frontier(rows: Rows, name: str) -> list[tuple[float, float]]:
        return [(row["l0"], row["fvu"]) for row in rows if row["architecture"] == name]

    return {name: {t: [at_l0(frontier(rows, name), t) for rows in seeds] for t in targets} for name in names}


def ratios(at: Mapping[str, Mapping[int, Sequence[float | None]]], claim: Reported) -> dict[int, Effect]:
    """Logarithm of the first's FVU over the second's at each L0 where both are known for all seeds."""
    found = {}
    for target, firsts in at[claim.first].items():
        others = [name for name in at if name != claim.first] if claim.second == REST else [claim.second]
        seconds = [_least(at[name][target][i] for name in others) for i in range(len(firsts))]
        logs = [math.log(a / b) for a, b in zip(firsts, seconds, strict=True) if a is not None and b is not None]
        if len(logs) == len(firsts):
            found[target] = mean_effect(logs, f"{claim.first} / {claim.second}, L0 {target}", "log ratio, over seeds")
    return found


def agrees(effects: Sequence[Effect], relation: str) -> str:
    """Whether measured log ratios have the reported relation: "yes", "no", "depends on L0" or not decided.

    Of one effect: "below" is yes where the interval lies below 0 and no where it lies above; "not above" is yes where
    it lies below `MARGIN` and no where above; "about" is yes within `MARGIN` on both sides, no where it lies wholly
    outside. All effects must say the same.
    """
    if not effects:
        return UNDECIDED
    said = {_one(effect, relation) for effect in effects}
    if len(said) == 1:
        return said.pop()
    return "depends on L0" if {"yes", "no"} <= said else UNDECIDED


def order_verdict(model: str, at: Mapping[str, Mapping[int, Sequence[float | None]]]) -> Verdict:
    """Whether all reported relations hold on a model; which do not."""
    answers, effects = {}, []
    for claim in REPORTED:
        found = ratios(at, claim)
        answers[claim] = agrees(list(found.values()), claim.relation)
        effects += [pooled(at, claim)] if found else []
    groups = {word: [str(c) for c, a in answers.items() if a == word] for word in ("yes", "no", "depends on L0")}
    rest = [str(c) for c in REPORTED if answers[c] == UNDECIDED]
    if len(groups["yes"]) == len(REPORTED):
        answer = "yes"
    elif len(groups["no"]) == len(REPORTED):
        answer = "no"
    else:
        answer = UNDECIDED if not groups["no"] and not groups["depends on L0"] else "depends on the pair"
    parts = [f"as reported at every L0: {'; '.join(groups['yes']) or 'none'}"]
    parts += [f"{word}: {'; '.join(claims)}" for word, claims in
              (("the other way", groups["no"]), ("differing by L0", groups["depends on L0"]), ("not decided", rest))
              if claims]  # fmt: skip
    return Verdict(
        question=f"Are the frontiers on {model} in the order that the literature reports?",
        answer=answer,
        because=". ".join(part[0].upper() + part[1:] for part in parts) + ".",
        effects=effects,
        would_change="A relation turns when its interval comes to lie on the other side of its bound: 0 for below, "
        f"{MARGIN:.3f} for the others.",
    )


def pooled(at: Mapping[str, Mapping[int, Sequence[float | None]]], claim: Reported) -> Effect:
    """The mean over L0 of `ratios`, seed by seed: for the overview, not for the answer."""
    targets = list(ratios(at, claim))
    others = [name for name in at if name != claim.first] if claim.second == REST else [claim.second]
    n = len(at[claim.first][targets[0]])
    logs = []
    for i in range(n):
        one = [math.log(_known(at[claim.first][t][i]) / _known(_least(at[name][t][i] for name in others)))
               for t in targets]  # fmt: skip
        logs.append(sum(one) / len(one))
    return mean_effect(logs, f"{claim}: first / second, mean over L0", "log ratio of FVU, over seeds")


def _one(effect: Effect, relation: str) -> str:
    low = effect.value if effect.low is None else effect.low
    high = effect.value if effect.high is None else effect.high
    if relation == "about":
        outside = low > MARGIN or high < -MARGIN
        return "no" if outside else "yes" if low >= -MARGIN and high <= MARGIN else UNDECIDED
    bound = MARGIN if relation == "not above" else 0.0
    return "yes" if high < bound else "no" if low > bound else UNDECIDED


def _least(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None


def _known(value: float | None) -> float:
    assert value is not None  # `ratios` keeps only L0 where all are known
    return value
