"""Whether two sides differ at all, judged fairly when much is judged at once. Pure.

By permutation of ranks (Wilcoxon's rank sum; stratified, it is van Elteren's test): if the sides did not
differ, the labels of the runs could be dealt out in any other way, and the ranks that one side got would be
as likely as any. So the share of all dealings that part the sides at least as far is the chance to see such
a difference where there is none, whatever the noise is like. All dealings are gone through where there are
few, else :data:`DRAWS` of them are drawn.

Whoever looks at forty figures sees two of them "differ" at 5 % by chance alone. So the chances are adjusted
by Benjamini and Hochberg's step-up procedure (1995): of all that is called real, 5 % on average is not. It
holds for figures that hang together positively (Benjamini and Yekutieli 2001), as a blackout and the longest
wait in it do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, prod
from typing import Any

import numpy as np
import numpy.typing as npt

FALSE_DISCOVERIES = 0.05
"""The share of what is called real that may be chance."""
DRAWS = 20_000
MOST_DEALINGS = 20_000

Values = Sequence[float]
Ranks = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stratum:
    """Runs of both sides that differ in nothing else."""

    first: Values
    second: Values


def chance(strata: Sequence[Stratum], seed: int) -> float | None:
    """The chance of a parting as far as this, either way, if the sides do not differ; None where no stratum
    has both sides."""
    both = [one for one in strata if len(one.first) and len(one.second)]
    if not both:
        return None
    ranked = [(_ranks([*one.first, *one.second]), len(one.first)) for one in both]
    seen = sum(_weighted(ranks, ranks[:count].sum(), count) for ranks, count in ranked)
    if prod(comb(len(ranks), count) for ranks, count in ranked) <= MOST_DEALINGS:
        sums = np.zeros(1)
        for ranks, count in ranked:
            sums = np.add.outer(sums, _all_sums(ranks, count)).ravel()
        return float(np.mean(np.abs(sums) >= abs(seen) - 1e-9))
    drawn = np.random.default_rng(seed)
    sums = np.zeros(DRAWS)
    for ranks, count in ranked:
        dealt = drawn.permuted(np.tile(ranks, (DRAWS, 1)), axis=1)[:, :count].sum(axis=1)
        sums += _weighted(ranks, dealt, count)
    return float((1 + np.count_nonzero(np.abs(sums) >= abs(seen) - 1e-9)) / (1 + DRAWS))


def least_chance(runs: Sequence[tuple[int, int]]) -> float:
    """What sides that are wholly parted come to, with so many runs a side in each stratum: no fewer runs can
    show anything below that."""
    return min(1.0, 2 / prod(comb(first + second, first) for first, second in runs))


def adjusted(chances: Sequence[float | None]) -> list[float | None]:
    """Each chance as Benjamini and Hochberg have it: to be called real at a share of false discoveries q
    where it is at most q. None stays None and does not count."""
    known = sorted((one, place) for place, one in enumerate(chances) if one is not None)
    found: list[float | None] = [None] * len(chances)
    least = 1.0
    for rank in range(len(known), 0, -1):
        one, place = known[rank - 1]
        least = min(least, one * len(known) / rank)
        found[place] = least
    return found


def _ranks(values: Values) -> Ranks:
    """From 1; equals share the mean of theirs."""
    array = np.asarray(values, np.float64)
    _, place, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Ranks = last - (counts - 1) / 2
    return means[place]


def _weighted(ranks: Ranks, sums: Any, count: int) -> Any:
    """How far rank sums are from what they are on average, by the weight of a stratum: van Elteren's."""
    return (sums - count * ranks.mean()) / (len(ranks) + 1)


def _all_sums(ranks: Ranks, count: int) -> Ranks:
    chosen = np.array(list(combinations(range(len(ranks)), count)))
    sums: Ranks = _weighted(ranks, ranks[chosen].sum(axis=1), count)
    return sums
