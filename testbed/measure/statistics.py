"""What few runs can tell of two variants: medians, and an interval for how they differ. Pure.

The median is compared, not the mean, for a run on a busy machine is now and then far slower and never far
faster. Its uncertainty is bootstrapped (Efron and Tibshirani, *An Introduction to the Bootstrap*, ch. 13):
the runs of each side are drawn again with replacement, many times, and the interval is what the medians of
those draws agree upon.

With very few runs that interval is too narrow: its quantiles promise 95 % where two times three runs of one
and the same thing lie wholly apart in one of ten comparisons. That share is known whatever the noise is
like: of all ways to deal a + b equal runs to two sides, two in C(a + b, a) part them wholly. So where parting
is not rare, the whole range of the draws is taken, which excludes "no difference" only where the two sides
are wholly apart, and the interval's level says how often that is not mere chance: 67 % for two runs a side,
90 % for three, 95 % from four on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb, prod
from typing import Any

import numpy as np

LEVEL = 0.95
DRAWS = 10_000
RARE = (1 - LEVEL) / 2
"""From here down a whole parting by chance is rare enough for the quantiles of the draws to hold."""

Sides = tuple[Sequence[float], Sequence[float]]
Medians = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`; the true value lies outside in a share of at most 1 - `level` of comparisons."""

    low: float
    high: float
    level: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


def interval_of_ratio(first: Sequence[float], second: Sequence[float], seed: int) -> Interval | None:
    """For the median of `first` divided by that of `second`, all above zero; None if a side has one run."""
    return _interval(first, second, seed, np.divide)


def interval_of_difference(first: Sequence[float], second: Sequence[float], seed: int) -> Interval | None:
    """For the median of `first` less that of `second`; None if a side has one run."""
    return _interval(first, second, seed, np.subtract)


def interval_of_effect(strata: Sequence[Sides], seed: int) -> Interval | None:
    """For by how much the medians of the second sides exceed those of the first, on average over strata in
    each of which nothing else differs; None if a side has one run."""
    if not strata or min(len(side) for one in strata for side in one) < 2:
        return None
    drawn = np.random.default_rng(seed)
    exceeding = [_medians(second, drawn) - _medians(first, drawn) for first, second in strata]
    dealings = prod(comb(len(first) + len(second), len(first)) for first, second in strata)
    return _of_draws(np.mean(exceeding, axis=0), 2 / dealings)


def _interval(
    first: Sequence[float], second: Sequence[float], seed: int, compare: Callable[[Medians, Medians], Medians]
) -> Interval | None:
    if min(len(first), len(second)) < 2:
        return None
    drawn = np.random.default_rng(seed)
    compared = compare(_medians(first, drawn), _medians(second, drawn))
    return _of_draws(compared, 2 / comb(len(first) + len(second), len(first)))


def _of_draws(compared: Medians, apart_by_chance: float) -> Interval:
    """What the draws agree upon; the whole of their range where sides part by chance too often for
    quantiles."""
    tail = 0.0 if apart_by_chance > RARE else (1 - LEVEL) / 2
    low, high = np.quantile(compared, [tail, 1 - tail])
    return Interval(float(low), float(high), min(LEVEL, 1 - apart_by_chance))


def _medians(values: Sequence[float], drawn: np.random.Generator) -> Medians:
    """The medians of DRAWS samples of `values` with replacement, each as large as they are."""
    runs = np.asarray(values, dtype=np.float64)
    chosen = drawn.integers(0, len(runs), size=(DRAWS, len(runs)))
    return np.asarray(np.median(runs[chosen], axis=1), dtype=np.float64)
