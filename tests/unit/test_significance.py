"""Chances by permutation: against what can be counted by hand, and what chance alone does to many figures."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.measure.significance import FALSE_DISCOVERIES, Stratum, adjusted, chance, least_chance


def test_sides_that_are_wholly_parted_are_two_dealings_of_all() -> None:
    assert chance([Stratum([1, 2, 3], [7, 8, 9])], 1) == pytest.approx(2 / 20)
    assert chance([Stratum([7, 8, 9, 10, 11], [1, 2, 3, 4, 5])], 1) == pytest.approx(2 / 252)


def test_equal_sides_are_certain_to_be_parted_as_far() -> None:
    assert chance([Stratum([5, 5, 5], [5, 5, 5])], 1) == 1
    assert chance([Stratum([1, 4], [2, 3])], 1) == 1


def test_strata_add_up_and_what_lies_between_them_does_not_count() -> None:
    """Each stratum is wholly parted, though the first side of one lies above all of the other."""
    strata = [Stratum([1, 2, 3], [4, 5, 6]), Stratum([101, 102, 103], [104, 105, 106])]
    assert chance(strata, 1) == pytest.approx(2 / 400)
    mixed = [Stratum([1, 2, 3, 101, 102, 103], [4, 5, 6, 104, 105, 106])]
    assert (chance(mixed, 1) or 0) > 0.1
    assert chance([strata[0], Stratum([104, 105, 106], [101, 102, 103])], 1) == 1


def test_many_dealings_are_drawn_and_never_come_to_none() -> None:
    apart = chance([Stratum(range(20), range(100, 120))], 1)
    assert apart is not None
    assert 0 < apart < 0.001
    assert chance([Stratum(range(20), range(20))], 7) == chance([Stratum(range(20), range(20))], 7)


def test_without_a_side_there_is_no_chance() -> None:
    assert chance([Stratum([], [1, 2])], 1) is None
    assert chance([], 1) is None


def test_few_runs_can_show_nothing() -> None:
    assert least_chance([(3, 3)]) == pytest.approx(0.1)
    assert least_chance([(5, 5)]) == pytest.approx(2 / 252)
    assert least_chance([(3, 3), (3, 3)]) == pytest.approx(2 / 400)
    assert least_chance([(1, 1)]) == 1


def test_chances_are_adjusted_as_benjamini_and_hochberg_do() -> None:
    """Worked by hand: p times the number of them, over its rank, and never less than the next one's."""
    assert adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert adjusted([0.5, None, 0.9]) == [pytest.approx(0.9), None, pytest.approx(0.9)]
    assert adjusted([]) == []


def test_of_many_figures_that_do_not_differ_hardly_one_is_called_real() -> None:
    """The negative control: without the adjustment a comparison of equals calls something real in most
    cases."""
    noise = np.random.default_rng(5)
    loud = honest = 0
    for _ in range(60):
        chances = [
            chance([Stratum(noise.lognormal(size=6), noise.lognormal(size=6))], 1) for _ in range(24)
        ]
        loud += any(one is not None and one <= FALSE_DISCOVERIES for one in chances)
        honest += any(one is not None and one <= FALSE_DISCOVERIES for one in adjusted(chances))
    assert loud > 30
    assert honest < 12
