"""Figures, read back from the drawing."""

import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from sparsight.interpretation.figures import HEIGHT, WIDTH, Axis, Series, bar_strip, line_chart


def drawing(markup: str) -> ET.Element:
    return ET.fromstring(f"<div>{markup}</div>")


def test_each_point_carries_its_numbers_and_lies_inside_the_figure():
    series = Series(name="encoder", x=[4, 8, 16], y=[0.3, 0.2, 0.1], low=[0.29, 0.19, 0.09], high=[0.31, 0.21, 0.11])
    root = drawing(line_chart([series], x_label="L0", y_label="FVU", x_log=True))
    hits = [e for e in root.iter("circle") if e.get("class") == "hit"]
    assert len(hits) == 3
    assert hits[1].get("data-tip") == "encoder L0: 8 FVU: 0.2 [0.19, 0.21]"  # XML reads a new line as a space
    for hit in hits:
        assert 0 <= float(hit.get("cx")) <= WIDTH
        assert 0 <= float(hit.get("cy")) <= HEIGHT
    assert len([e for e in root.iter("path") if e.get("class") == "whisker s0"]) == 3


def test_equal_ratios_take_equal_lengths_on_a_logarithmic_axis():
    axis = Axis.over([2, 32], 0, 100, log=True)
    places = [axis.at(v) for v in (2, 4, 8, 16, 32)]
    steps = [b - a for a, b in itertools.pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 4)


def test_a_linear_axis_holds_all_values_and_ends_on_its_ticks():
    axis = Axis.over([0.07, 0.33], 0, 100, log=False)
    ticks = axis.ticks()
    assert ticks[0] <= 0.07
    assert ticks[-1] >= 0.33
    assert 4 <= len(ticks) <= 11


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [5.0, 5.0]])
@pytest.mark.parametrize("log", [False, True])
def test_an_axis_exists_for_no_value_and_for_equal_values(values, log):
    axis = Axis.over(values, 0, 100, log=log)
    assert axis.low < axis.high
    assert len(axis.ticks()) >= 1


def test_a_value_of_zero_is_left_out_of_a_logarithmic_figure():
    root = drawing(line_chart([Series(name="a", x=[1, 2], y=[0, 0.1])], x_label="x", y_label="y", y_log=True))
    assert len([e for e in root.iter("circle") if e.get("class") == "hit"]) == 1


def test_names_are_escaped_in_figures():
    markup = line_chart(
        [Series(name="<b>", x=[1, 2], y=[1, 2]), Series(name="c", x=[1, 2], y=[1, 2])], x_label="<i>", y_label="y"
    )
    assert "<b>" not in markup
    assert "<i>" not in markup
    drawing(markup)  # still well-formed


def test_bars_of_a_histogram_name_their_range_and_count():
    root = drawing(bar_strip([10, 0, 1], 3.0))
    assert [e.get("data-tip") for e in root.iter("rect")] == ["0 to 1: 10 tokens", "2 to 3: 1 tokens"]
    heights = [float(e.get("height")) for e in root.iter("rect")]
    assert heights[0] > heights[1] > 0


def test_an_empty_histogram_draws_no_bars():
    assert not re.findall("<rect", bar_strip([0, 0], 0.0))


def test_intervals_need_both_ends():
    with pytest.raises(ValueError, match="both ends"):
        Series(name="a", x=[1], y=[1], low=[0])
