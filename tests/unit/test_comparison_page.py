"""A comparison's pictures and page: one file that loads nothing, with what was measured in it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from testbed.experiment.comparison import Circumstances, Finished, comparison
from testbed.report.comparison_page import page
from testbed.report.strip import LEFT, RIGHT, WIDTH, Axis, Line, steps, strip
from tests.unit.test_comparison import CONTENDERS, FAR, NEAR, contender, grid_of, result, runs

SVG = "{http://www.w3.org/2000/svg}"
LINES = [Line("hold=yes", [10, 11, 12]), Line("hold=no & <more>", [200, 201, 1000])]


def show(value: float) -> str:
    return f"{value:g} ms"


def drawn(picture: str, tag: str, kind: str) -> list[ElementTree.Element]:
    found = ElementTree.fromstring(picture).iter(f"{SVG}{tag}")
    return [one for one in found if kind in (one.get("class") or "").split()]


def test_each_run_is_a_dot_in_its_variants_row_at_its_value() -> None:
    picture = strip("longest wait", LINES, show)
    dots = drawn(picture, "circle", "dot")
    assert len(dots) == 6
    assert [one.get("class") for one in dots] == ["dot v0"] * 3 + ["dot v1"] * 3
    places = [float(one.get("cx") or 0) for one in dots]
    assert places == sorted(places)
    assert all(LEFT <= place <= WIDTH - RIGHT for place in places)
    told = [one.findtext(f"{SVG}title") for one in dots]
    assert told[-1] == "hold=no & <more>: 1000 ms"


def test_the_median_is_a_bar_where_it_lies() -> None:
    bars = drawn(strip("x", [Line("a", [1, 2, 9]), Line("b", [4.0])], show), "line", "median")
    axis = Axis([1, 2, 9, 4])
    assert [float(one.get("x1") or 0) for one in bars] == [
        pytest.approx(axis.at(2), abs=0.1), pytest.approx(axis.at(4), abs=0.1),
    ]  # fmt: skip


def test_what_lies_far_apart_is_drawn_by_its_logarithm() -> None:
    assert Axis([1, 100]).is_log
    assert not Axis([1, 20]).is_log
    assert not Axis([0, 100]).is_log
    axis = Axis([1, 10, 100])
    assert axis.at(10) - axis.at(1) == pytest.approx(axis.at(100) - axis.at(10))


@pytest.mark.parametrize("values", [[5, 5], [0, 0], [0, 3], [1e-3, 1e3], [7.1, 7.2], [1, 29]])
def test_ticks_are_few_and_lie_on_the_axis(values: list[float]) -> None:
    axis = Axis(values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(LEFT - 1 <= axis.at(tick) <= WIDTH - RIGHT + 1 for tick in ticks)


def test_a_staircase_rises_from_none_to_all_of_the_runs() -> None:
    (stairs, other) = drawn(steps("x", LINES, show), "polyline", "steps")
    heights = [float(point.split(",")[1]) for point in (stairs.get("points") or "").split()]
    assert heights == sorted(heights, reverse=True)
    assert len(heights) == 8
    assert other.findtext(f"{SVG}title") == "hold=no & <more>"


def test_without_a_run_there_is_no_picture() -> None:
    assert strip("x", [Line("a", [])], show) == steps("x", [Line("a", [])], show) == ""


def test_the_page_needs_nothing_from_outside_and_says_what_differs() -> None:
    text = page(grid_of(yes_keep=NEAR, yes_moves=NEAR, no_keep=FAR, no_moves=FAR))
    assert not re.search(r"(?:src|href)\s*=|@import|url\(|<script", text)
    assert "hold=no makes the blackout 200 ms longer than hold=yes, whatever mac is" in text
    assert "<svg" in text
    assert "Benjamini" in text


def test_what_went_wrong_and_what_is_spoiled_stands_on_the_page_and_cannot_be_markup() -> None:
    labels = (contender("<b>a</b>", CONTENDERS[0].options), CONTENDERS[1])  # type: ignore[arg-type]
    finished = [
        *runs("<b>a</b>", *[result(5)] * 5),
        *runs("quick", *[result(50)] * 4, result(50, "rolled-back")),
        Finished("quick", 6, "0012-quick", None, "ProcessDied: <host-a>"),
    ]
    text = page(comparison("x", "x", Circumstances(6, complete=False, workers=3), labels, finished))
    assert "<b>" not in text
    assert "ended before all runs were over" in text
    assert "3 labs ran beside each other: all times are spoiled" in text
    assert "0012-quick: the lab failed: ProcessDied: &lt;host-a&gt;" in text
    assert "rolled-back; failed: migrated" in text
