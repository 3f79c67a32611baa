"""Looks at how a running guest dirties its RAM, with the tracker that will follow its migration.

Intervals that double (1, 2, 4, ... ms) are collected one after the other, each as a pre-copy round would do
it once: the guest pays for the first write to each page in each of them, and the whole costs as many
collections as a migration has rounds. Every stretch of neighbouring intervals is a sample too, by the union
of what they found, so nine collections in half a second give 45 samples.
"""

from __future__ import annotations

from collections.abc import Callable

from testbed.memory.pages import PageSet
from testbed.memory.tracking import DirtyTracker

SHORTEST_NS = 1_000_000
LONGEST_ALL_NS = 4_000_000_000
"""However long the guest may be watched, sampling it takes no longer."""


class SamplingTooDear(Exception):
    """This tracker cannot be asked without disturbing the guest more than a migration does; says why."""


def intervals(all_ns: int) -> list[int]:
    """The intervals that double, as many as fit into `all_ns`, and what is left over as the last one; none
    where that is too short for two."""
    found: list[int] = []
    left_ns, next_ns = min(all_ns, LONGEST_ALL_NS), SHORTEST_NS
    while next_ns <= left_ns:
        found.append(next_ns)
        left_ns, next_ns = left_ns - next_ns, 2 * next_ns
    if left_ns > next_ns // 2:
        found.append(left_ns)
    return found if len(found) > 1 else []


def sample(
    tracker: DirtyTracker, all_ns: int, clock: Callable[[], int], wait: Callable[[int], bool]
) -> list[tuple[int, int]]:
    """(interval in ns as it really was, distinct pages) of every stretch of the intervals that fit `all_ns`.

    `wait` lets a time pass (ns) and says whether to go on. The tracker must not be in use; it is stopped
    again when this returns or raises. Raises SamplingTooDear where each collection is a pass over all of RAM,
    and what the tracker raises.
    """
    if not tracker.exact:
        raise SamplingTooDear(f"the {tracker.name} tracker reads all of RAM for each look")
    found: list[tuple[int, int]] = []
    stretches: list[tuple[int, PageSet]] = []
    tracker.start()
    try:
        begin_ns = clock()
        for interval_ns in intervals(all_ns):
            if not wait(max(begin_ns + interval_ns - clock(), 0)):
                break
            pages, end_ns = tracker.collect(), clock()
            stretches = [(began_ns, before | pages) for began_ns, before in stretches]
            stretches.append((begin_ns, pages))
            found += [(end_ns - began_ns, len(union)) for began_ns, union in stretches]
            begin_ns = end_ns
    finally:
        tracker.stop()
    return found
