"""The curve of distinct pages: from samples and from formulas, within what was looked at and beyond."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.guest.load import LoadSpec, pages_of
from testbed.memory.dirty_curve import DirtyCurve

MS = 1_000_000
MANY = 1 << 20
samples = st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 10**5)), max_size=30)


def test_without_a_sample_nothing_is_written() -> None:
    assert DirtyCurve.measured([], MANY).pages(10**9) == 0


def test_between_samples_it_is_straight_and_from_nothing() -> None:
    curve = DirtyCurve.measured([(10 * MS, 100), (20 * MS, 150)], MANY)
    assert [curve.pages(at * MS) for at in (0, 5, 10, 15, 20)] == [0, 50, 100, 125, 150]


def test_samples_of_one_interval_count_as_their_mean_and_noise_is_pooled() -> None:
    curve = DirtyCurve.measured([(MS, 4), (MS, 8), (2 * MS, 20), (3 * MS, 10)], MANY)
    assert curve.points == ((MS, 6), (2 * MS, 15), (3 * MS, 15))


@given(samples)
def test_it_never_falls_and_its_bounds_enclose_it(found: list[tuple[int, int]]) -> None:
    curve = DirtyCurve.measured(found, 50_000)
    before = 0.0
    for at in range(0, 3_000 * MS, 97 * MS):
        low, likely, high = (curve.pages(at, side) for side in ("low", "likely", "high"))
        assert low - 1e-6 <= likely <= high + 1e-6
        assert before - 1e-6 <= likely <= 50_000
        before = likely


def test_beyond_the_samples_a_fixed_set_of_pages_is_found_again() -> None:
    """The likely value is exact for equal chances; the bounds hold for any guest that goes on as it does."""

    def truth(at_ms: float) -> float:
        return 10_000 * (1 - exp(-at_ms / 400))

    curve = DirtyCurve.measured([(at * MS, round(truth(at))) for at in (64, 128, 256, 512)], MANY)
    for at in (800, 1600, 10_000):
        assert curve.pages(at * MS) == pytest.approx(truth(at), rel=0.02)
        assert curve.pages(at * MS, "low") <= truth(at) <= curve.pages(at * MS, "high")


def test_a_guest_that_never_writes_a_page_twice_goes_on_in_a_straight_line() -> None:
    curve = DirtyCurve.measured([(MS, 10), (2 * MS, 20)], MANY)
    assert curve.pages(100 * MS) == 1000
    assert DirtyCurve.measured([(MS, 10), (2 * MS, 20)], 64).pages(100 * MS) == 64


def test_pages_in_use_bound_what_is_likely_and_not_what_may_be() -> None:
    curve = DirtyCurve.measured([(MS, 10), (2 * MS, 20)], MANY, in_use=500)
    assert [curve.pages(100 * MS, side) for side in ("low", "likely", "high")] == [20, 500, 1000]


@pytest.mark.parametrize("pattern", ["uniform", "hot-cold", "sequential"])
def test_the_formula_of_a_load_is_what_the_load_writes(pattern: str) -> None:
    spec = LoadSpec(10_000, 4000 * 4096, pattern, seed=3)
    curve = DirtyCurve.of_load(10_000, 4000, pattern, MANY)
    for writes in (500, 3000, 8000):
        distinct = len(np.unique(pages_of(spec, 0, writes)))
        assert curve.pages(writes * 100_000) == pytest.approx(distinct, rel=0.06)


def test_what_is_written_all_the_time_comes_on_top() -> None:
    assert DirtyCurve.of_load(0, 100, "uniform", MANY).besides(7).pages(MS) == 7
    busy = DirtyCurve.of_load(1000, 100, "sequential", MANY).besides(7)
    assert busy.pages(32 * MS) == pytest.approx(39, abs=1)


@pytest.mark.parametrize("sample", [(0, 1), (-1, 1), (1, -1)])
def test_what_is_no_sample_is_refused(sample: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no time"):
        DirtyCurve.measured([sample], MANY)
