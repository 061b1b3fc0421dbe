"""From effects with intervals to one of four answers, by rules fixed before the numbers are seen."""

import math
from collections.abc import Sequence

from sparsight.evaluation.record import Estimate
from sparsight.studies.record import UNDECIDED, Effect


def side(effect: Effect, margin: float = 0.0) -> int:
    """-1 if the whole interval is below `-margin`, 1 if it is above `margin`, else 0 (an exact value is its interval).

    With a margin, 0 does not mean that there is no effect, but that a larger one is not shown.
    """
    low = effect.value if effect.low is None else effect.low
    high = effect.value if effect.high is None else effect.high
    return -1 if high < -margin else 1 if low > margin else 0


def all_on_one_side(effects: Sequence[Effect], *, wanted: int, on: str, margin: float = 0.0) -> str:
    """ "yes" if every interval is on the wanted side of 0, "no" if every one is on the other.

    Where intervals on both sides occur the answer is "depends on (what the effects differ in)"; where some interval
    holds 0 and none contradicts the others, "not decided at this power".

    Args:
        effects: One for each setting.
        wanted: -1 or 1, the side that means yes.
        on: What the effects differ in.
        margin: Smaller effects do not count.
    Raises:
        ValueError: there is no effect, or `wanted` is neither.
    """
    if not effects or wanted not in (-1, 1):
        raise ValueError(f"wanted must be -1 or 1 and effects not empty, got {wanted} and {len(effects)} effects")
    sides = {side(effect, margin) for effect in effects}
    if sides == {wanted}:
        return "yes"
    if sides == {-wanted}:
        return "no"
    return f"depends on {on}" if {-1, 1} <= sides else UNDECIDED


def n_needed(effect: Effect) -> int | None:
    """How many independent units would bring the interval off 0, were the value to stay: widths fall as `1/sqrt(n)`.

    None where the value is 0 or exact: no number would.
    """
    if effect.low is None or effect.high is None or effect.value == 0:
        return None
    half = effect.high - effect.value if effect.value < 0 else effect.value - effect.low
    return math.ceil(effect.n * (half / effect.value) ** 2) + 1


def power_note(effects: Sequence[Effect]) -> str:
    """What would change the answer: units needed where an interval holds 0, else the distance of the nearest one."""
    open_ones = [effect for effect in effects if side(effect) == 0]
    if open_ones:
        parts = []
        for effect in open_ones:
            needed = n_needed(effect)
            parts.append(
                f"{effect.name}: no number of units, the value is 0"
                if needed is None
                else f"{effect.name}: about {needed:,} units instead of {effect.n:,} would bring its interval off 0"
            )
        return "; ".join(parts) + "."
    nearest = min(effects, key=_gap)
    return f"The interval nearest to 0 is that of {nearest.name}, {_gap(nearest):.2g} away ({nearest})."


def effect_of(estimate: Estimate, name: str, n: int, unit: str) -> Effect:
    """An estimate of an evaluation as an effect."""
    return Effect(name=name, value=estimate.value, low=estimate.low, high=estimate.high, n=n, unit=unit)


def separate_difference(first: Estimate, second: Estimate, name: str, n: int, unit: str) -> Effect:
    """`first - second` from two separate intervals: its ends are the furthest apart that theirs allow.

    Wider than a paired interval, so what it decides is decided; what it leaves open may not be.
    """
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Effect(name=name, value=first.value - second.value, n=n, unit=unit)
    low, high = first.low - second.high, first.high - second.low
    return Effect(name=name, value=first.value - second.value, low=low, high=high, n=n, unit=unit)


def mean_effect(values: Sequence[float], name: str, unit: str) -> Effect:
    """Mean over independent repeats with its 95 % Student interval; no interval for a single one."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return Effect(name=name, value=mean, n=1, unit=unit)
    from scipy.stats import t

    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(t.ppf(0.975, n - 1)) * spread
    return Effect(name=name, value=mean, low=mean - half, high=mean + half, n=n, unit=unit)


def _gap(effect: Effect) -> float:
    low = effect.value if effect.low is None else effect.low
    high = effect.value if effect.high is None else effect.high
    return min(abs(low), abs(high))
