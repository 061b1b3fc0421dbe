"""Figures for a page that must open anywhere: plain SVG, a few kilobytes each, coloured by the page's own style sheet.

Drawn here and not by a plotting library, because a page then weighs what its content weighs (a library embeds 5 MB of
script), prints, follows the reader's light or dark scheme, and shows its figures with scripts turned off. Every mark
carries its numbers in `data-tip` for the pointer and in a `<title>` for assistive tools.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 42


Real = float | int


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    Attributes:
        name: As the legend gives it.
        x, y: Points, in the order in which the line joins them.
        low, high: Ends of each point's interval; both or neither.
        slot: Colour and dash of the line, in [0, 6); series that mean the same thing share it across charts.
        marks: Draw a dot at each point: for few, measured points.
        steps: Draw horizontal steps: `x` are then left edges of bins of equal width.
    """

    name: str
    x: Sequence[Real]
    y: Sequence[Real]
    low: Sequence[Real] | None = None
    high: Sequence[Real] | None = None
    slot: int = 0
    marks: bool = False
    steps: bool = False

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y), *(len(ends) for ends in (self.low, self.high) if ends is not None)}
        if len(lengths) != 1 or (self.low is None) != (self.high is None):
            raise ValueError(
                f"x, y and both ends of the intervals must be of one length, got lengths {sorted(lengths)}"
            )


@dataclass(frozen=True)
class Axis:
    """A range of values laid along a stretch of the page, evenly in value or in its logarithm."""

    low: Real
    high: Real
    start: Real
    stop: Real
    log: bool = False

    @staticmethod
    def over(values: Iterable[Real], start: Real, stop: Real, *, log: bool, from_zero: bool = False) -> "Axis":
        """The axis that just holds the values, widened to whole ticks; a log axis leaves out values at or below 0."""
        kept = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        low, high = (min(kept), max(kept)) if kept else (1.0, 10.0)
        if log:
            if high < low * 1.2:
                low, high = low / 1.5, high * 1.5
            return Axis(low / (high / low) ** 0.05, high * (high / low) ** 0.05, start, stop, log=True)
        low = min(0.0, low) if from_zero else low
        if high - low < 1e-12:
            low, high = low - 0.5, high + 0.5
        step = _step(low, high)
        low = low if from_zero and low == 0 else math.floor(low / step) * step
        return Axis(low, math.ceil(high / step - 1e-3) * step, start, stop)

    def at(self, value: Real) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[Real]:
        if not self.log:
            step = _step(self.low, self.high)
            first = math.ceil(self.low / step - 1e-9)
            return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for mantissas in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 4, 6, 8), (1, 2, 5), (1, 3), (1,)):
            ticks = [m * 10.0**e for e in exponents for m in mantissas if self.low <= m * 10.0**e <= self.high]
            if len(ticks) <= 7:
                return ticks
        return ticks[:: math.ceil(len(ticks) / 7)]


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_log: bool = False,
    y_log: bool = False,
    x_ticks: Sequence[Real] | None = None,
) -> Markup:
    """Lines over shared axes, with whiskers where intervals are given and a legend where there are several lines.

    Args:
        series: Lines, drawn in order.
        x_label, y_label: Quantity and unit.
        x_log, y_log: Whether an axis is logarithmic.
        x_ticks: Where to put ticks, when the values measured at are the natural ones.
    """
    xs = [x for s in series for x in s.x] + [s.x[-1] + (s.x[1] - s.x[0]) for s in series if s.steps and len(s.x) > 1]
    ys = [y for s in series for values in (s.y, s.low or (), s.high or ()) for y in values]
    x_axis = Axis.over(xs, LEFT, WIDTH - RIGHT, log=x_log, from_zero=not x_log and min(xs, default=0) >= 0)
    y_axis = Axis.over(ys, HEIGHT - BOTTOM, TOP, log=y_log, from_zero=not y_log)
    body = _frame(x_axis, y_axis, x_label, y_label, x_ticks)
    for s in series:
        body += _line(s, x_axis, y_axis, x_label, y_label)
    svg = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"{y_label} against {x_label}: {', '.join(s.name for s in series)}", body
    )
    return _legend(series) + svg if len(series) > 1 else svg


def bar_strip(counts: Sequence[int], maximum: Real) -> Markup:
    """A small histogram of values in `[0, maximum]`; bar heights are logarithms of counts, as counts fall fast."""
    width, height = 240.0, 56.0
    step = width / max(1, len(counts))
    top = math.log1p(max(counts, default=0)) or 1.0
    bars = Markup("").join(
        Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" data-tip="{}"/>').format(
            i * step,
            height - height * math.log1p(count) / top,
            step - 1.5,
            height * math.log1p(count) / top,
            f"{_number(maximum * i / len(counts))} to {_number(maximum * (i + 1) / len(counts))}: {count:,} tokens",
        )
        for i, count in enumerate(counts)
        if count
    )
    return Markup('<svg class="strip" viewBox="0 0 240 57" role="img" aria-label="{}">{}</svg>').format(
        "Histogram of the values above 0", bars
    )


def _line(s: Series, x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> Markup:
    shown = [i for i, y in enumerate(s.y) if y > 0 or not y_axis.log]
    points = [(x_axis.at(s.x[i]), y_axis.at(s.y[i])) for i in shown]
    width = x_axis.at(s.x[1]) - x_axis.at(s.x[0]) if s.steps and len(s.x) > 1 else 0.0
    path, area = "", Markup("")
    if s.steps and points:
        path = "".join(f"{'L' if i else 'M'}{x:.1f},{y:.1f}H{x + width:.1f}" for i, (x, y) in enumerate(points))
        floor = y_axis.start
        area = Markup('<path class="area s{}" d="{}V{:.1f}H{:.1f}Z"/>').format(s.slot, path, floor, points[0][0])
    else:
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawn = area + Markup('<path class="line s{}" d="{}"/>').format(s.slot, path)
    for i, (x, y) in zip(shown, points, strict=True):
        tip = f"{s.name}\n{x_label}: {_number(s.x[i])}\n{y_label}: {_number(s.y[i])}"
        if s.low is not None and s.high is not None:
            tip += f" [{_number(s.low[i])}, {_number(s.high[i])}]"
            ends = (y_axis.at(s.low[i]), y_axis.at(s.high[i]))
            drawn += Markup('<path class="whisker s{}" d="M{:.1f},{:.1f}V{:.1f}"/>').format(s.slot, x, *ends)
        if s.marks:
            drawn += Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(s.slot, x, y)
        if s.steps:
            hit = Markup('<rect class="hit" x="{:.1f}" y="{}" width="{:.1f}" height="{}" data-tip="{}"/>')
            drawn += hit.format(x, TOP, width, HEIGHT - BOTTOM - TOP, tip)
        else:
            hit = Markup('<circle class="hit" cx="{:.1f}" cy="{:.1f}" r="7" data-tip="{}"><title>{}</title></circle>')
            drawn += hit.format(x, y, tip, tip)
    return Markup("<g>{}</g>").format(drawn)


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, x_ticks: Sequence[Real] | None) -> Markup:
    drawn = Markup("")
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        drawn += Markup('<path class="grid" d="M{},{:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT)
        drawn += Markup('<text x="{}" y="{:.1f}" class="y">{}</text>').format(LEFT - 7, y + 3.5, _tick(tick))
    for tick in x_ticks if x_ticks is not None else x_axis.ticks():
        x, floor = x_axis.at(tick), HEIGHT - BOTTOM
        drawn += Markup('<path class="tick" d="M{:.1f},{}v4"/>').format(x, floor)
        drawn += Markup('<text x="{:.1f}" y="{}" class="x">{}</text>').format(x, floor + 17, _tick(tick))
    drawn += Markup('<path class="axis" d="M{},{}H{}"/>').format(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT)
    drawn += Markup('<text x="{}" y="{}" class="x label">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_label
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return drawn + Markup('<text x="12" y="{}" class="x label" transform="rotate(-90 12 {})">{}</text>').format(
        middle, middle, y_label
    )


def _legend(series: Sequence[Series]) -> Markup:
    keys = Markup("").join(
        Markup(
            '<li><svg viewBox="0 0 26 8" aria-hidden="true"><path class="line s{}" d="M1,4H25"/></svg>{}</li>'
        ).format(s.slot, s.name)
        for s in series
    )
    return Markup('<ul class="legend">{}</ul>').format(keys)


def _step(low: Real, high: Real) -> Real:
    """The 1, 2 or 5 times a power of ten that cuts the range into four to ten parts."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return power * min((m for m in (1, 2, 5, 10) if m * power >= raw * 0.999), default=10)


def _number(value: Real) -> str:
    """Four significant digits, thousands in full."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _tick(value: Real) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    if value and abs(value) < 1e-4:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        mantissa = value / 10.0**exponent
        power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return power if abs(mantissa - 1) < 1e-9 else f"{mantissa:g}·{power}"
    return f"{value:g}"
