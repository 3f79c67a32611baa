"""How many distinct pages a guest writes within a time: the curve from which pre-copy is foretold. Pure.

A dirty *rate* does not tell what a round leaves behind: a guest that writes one page a million times a second
leaves one page. What does is Clark et al.'s writable working set (NSDI 2005, section 5.2): the number w(t) of
different pages that are written within t. It never falls, and while the guest goes on as it does, each
further moment adds no more pages than the one before: w is concave. So beyond the longest interval that was
looked at, w is at least what it was there and at most what it would be if it went on as straight as it ended;
those are the bounds here, and not a guess of an error. Between them lies the likely value, for writes that
fall on a fixed number of pages with equal chance: N (1 - exp(-t / tau)).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Literal

Side = Literal["low", "likely", "high"]
SHARE_OF_HOT_WRITES, SHARE_OF_HOT_PAGES = 230 / 256, 0.1
"""Of the load's hot-cold pattern (testbed.guest.load)."""
POINTS_NS = tuple(round(1e6 * 2 ** (step / 8)) for step in range(129))
"""From 1 ms to 65 s, eight in each doubling, where a curve that is known as a formula is written down."""


@dataclass(frozen=True)
class DirtyCurve:
    """`points` are (interval in ns, distinct pages written within it), both rising; `most` bounds the pages
    from above: those that there are; where that is not known for sure, those in use bound the likely value
    (`in_use`). Without a point the guest writes nothing."""

    points: tuple[tuple[int, float], ...]
    most: int
    in_use: int | None = None

    @classmethod
    def measured(
        cls, samples: Sequence[tuple[int, int]], most: int, in_use: int | None = None
    ) -> DirtyCurve:
        """Of samples in any order, as they come from :func:`testbed.memory.sampling.sample`. What is noise
        between them is smoothed so that the curve never falls. ValueError for an interval that is no time.
        """
        if any(interval_ns <= 0 or pages < 0 for interval_ns, pages in samples):
            raise ValueError(
                "an interval of a sample is more than no time, and its pages are no fewer than none"
            )
        by_interval: dict[int, list[int]] = {}
        for interval_ns, pages in samples:
            by_interval.setdefault(interval_ns, []).append(pages)
        means = [(interval_ns, sum(found) / len(found)) for interval_ns, found in sorted(by_interval.items())]
        rising = _never_falling([mean for _, mean in means])
        points = tuple((interval_ns, value) for (interval_ns, _), value in zip(means, rising, strict=True))
        return cls(points, most, in_use)

    @classmethod
    def of_load(cls, pages_per_s: float, working_set_pages: int, pattern: str, most: int) -> DirtyCurve:
        """Of the load that :mod:`testbed.guest.load` makes, by its formula: what options alone can tell.

        With `pattern` sequential it is Akoush et al.'s AVG model (MASCOTS 2010): a steady rate of pages that
        are all different, up to the working set.
        """
        if not pages_per_s or not working_set_pages:
            return cls((), most)
        points = [
            (t_ns, _of_load(pages_per_s * t_ns / 1e9, working_set_pages, pattern)) for t_ns in POINTS_NS
        ]
        return cls(tuple(points), most)

    def besides(self, pages: int) -> DirtyCurve:
        """With `pages` more that are written all the time, as a program's own."""
        points = self.points or tuple((t_ns, 0.0) for t_ns in POINTS_NS)
        return replace(self, points=tuple((t_ns, found + pages) for t_ns, found in points))

    def pages(self, interval_ns: float, side: Side = "likely") -> float:
        """Distinct pages written within so long. Beyond the last point `side` picks the bound."""
        if not self.points or interval_ns <= 0:
            return 0.0
        last_ns, last = self.points[-1]
        if interval_ns <= last_ns:
            return min(self._between(interval_ns), float(self.most))
        most = self.most if side == "high" or self.in_use is None else max(self.in_use, last)
        return min(max(self._beyond(interval_ns, side), last), float(most), float(self.most))

    def _between(self, interval_ns: float) -> float:
        at = bisect_left(self.points, interval_ns, key=lambda point: point[0])
        right_ns, right = self.points[at]
        left_ns, left = self.points[at - 1] if at else (0, 0.0)
        return left + (right - left) * (interval_ns - left_ns) / (right_ns - left_ns)

    def _beyond(self, interval_ns: float, side: Side) -> float:
        """`growth` is how much of what the first half of the last interval found its second half found anew:
        0 where all was found, 1 where nothing was found twice."""
        last_ns, last = self.points[-1]
        half = self._between(last_ns / 2)
        growth = min(max(last / half - 1, 0.0), 1.0) if half else 1.0
        if side == "low":
            return last
        straight = last + (last - half) * (interval_ns - last_ns) / (last_ns / 2)
        if side == "high" or growth == 1.0:
            return straight
        return half / (1 - growth) * float(1 - growth ** (2 * interval_ns / last_ns))


def _never_falling(values: Sequence[float]) -> list[float]:
    """What comes nearest to `values` and never falls: neighbours that fall are pooled (isotonic regression,
    Ayer et al. 1955)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (left, ours), (right, theirs) = pools[-2:]
            pools[-2:] = [((left * ours + right * theirs) / (ours + theirs), ours + theirs)]
    return [mean for mean, count in pools for _ in range(count)]


def _of_load(writes: float, pages: int, pattern: str) -> float:
    if pattern == "sequential":
        return min(writes, float(pages))
    if pattern == "uniform":
        return _hit(writes, pages)
    hot = max(1, int(pages * SHARE_OF_HOT_PAGES))
    cold = _hit(writes * (1 - SHARE_OF_HOT_WRITES), pages - hot) if pages > hot else 0.0
    return _hit(writes * SHARE_OF_HOT_WRITES, hot) + cold


def _hit(writes: float, pages: int) -> float:
    """Of `pages` how many `writes` hit that fall anywhere with equal chance."""
    return pages * (1 - exp(-writes / pages))
