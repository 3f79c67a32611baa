"""What few runs can tell: intervals that hold what they promise, also of very few runs."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.measure.statistics import interval_of_difference, interval_of_ratio

RUNS = st.lists(st.floats(0.1, 1e6), min_size=2, max_size=6)
COMPARISONS = 300


def test_equal_runs_have_no_error() -> None:
    ratio = interval_of_ratio([4.0] * 5, [2.0] * 5, seed=1)
    assert ratio is not None
    assert (ratio.low, ratio.high, ratio.level) == (2.0, 2.0, 0.95)
    difference = interval_of_difference([4.0] * 5, [2.0] * 5, seed=1)
    assert difference is not None
    assert (difference.low, difference.high) == (2.0, 2.0)


@pytest.mark.parametrize(("runs", "level"), [(2, 1 - 2 / 6), (3, 0.9), (4, 0.95), (5, 0.95), (30, 0.95)])
def test_few_runs_promise_less(runs: int, level: float) -> None:
    values = [float(value) for value in range(1, runs + 1)]
    interval = interval_of_ratio(values, values, seed=1)
    assert interval is not None
    assert interval.level == pytest.approx(level)
    assert not interval.excludes(1)


@pytest.mark.parametrize("sides", [([1.0], [2.0, 3.0]), ([2.0, 3.0], [1.0]), ([1.0], [2.0])])
def test_one_run_tells_no_error(sides: tuple[list[float], list[float]]) -> None:
    assert interval_of_ratio(*sides, seed=1) is None
    assert interval_of_difference(*sides, seed=1) is None


def test_the_same_seed_gives_the_same_interval() -> None:
    sides = [list(np.random.default_rng(side).lognormal(size=20)) for side in (1, 2)]
    intervals = {interval_of_ratio(*sides, seed=seed) for seed in (3, 3, 3, 4)}
    assert len(intervals) == 2, "with so many values the draws show in the bounds"


@given(RUNS, RUNS)
def test_the_interval_holds_the_ratio_of_the_medians(ours: list[float], theirs: list[float]) -> None:
    interval = interval_of_ratio(ours, theirs, seed=1)
    assert interval is not None
    ratio = np.median(ours) / np.median(theirs)
    assert interval.low * (1 - 1e-9) <= ratio <= interval.high * (1 + 1e-9)


@pytest.mark.parametrize("runs", [2, 3, 4])
def test_of_few_runs_the_interval_is_all_that_they_allow(runs: int) -> None:
    ours, theirs = [10.0, 12.0, 11.0, 14.0][:runs], [5.0, 4.0, 7.0, 5.5][:runs]
    interval = interval_of_ratio(ours, theirs, seed=1)
    assert interval is not None
    assert (interval.low, interval.high) == (min(ours) / max(theirs), max(ours) / min(theirs))


def test_three_runs_a_side_differ_only_where_they_lie_wholly_apart() -> None:
    apart = interval_of_ratio([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], seed=1)
    mixed = interval_of_ratio([1.0, 1.1, 1.35], [1.3, 1.4, 1.5], seed=1)
    assert apart is not None
    assert mixed is not None
    assert apart.excludes(1)
    assert not mixed.excludes(1)


@pytest.mark.parametrize("runs", [2, 3, 4, 5, 10])
def test_of_equals_no_more_seem_to_differ_than_the_level_says(runs: int) -> None:
    """The negative control of every sentence: one and the same thing, compared with itself many times. The
    bound leaves three standard errors of a share in so many comparisons."""
    drawn = np.random.default_rng(20)
    wrong, level = 0, 0.0
    for number in range(COMPARISONS):
        ours, theirs = (list(np.exp(drawn.normal(0, 0.2, runs))) for _ in range(2))
        interval = interval_of_ratio(ours, theirs, seed=number)
        assert interval is not None
        wrong, level = wrong + interval.excludes(1), interval.level
    share = 1 - level
    assert level == pytest.approx(min(0.95, 1 - 2 / comb(2 * runs, runs)))
    assert wrong / COMPARISONS <= share + 3 * (share * (1 - share) / COMPARISONS) ** 0.5
