"""Sampling a guest: which intervals, which stretches, and that the tracker is let go of."""

from __future__ import annotations

import pytest

from testbed.memory.pages import PageSet
from testbed.memory.sampling import LONGEST_ALL_NS, SamplingTooDear, intervals, sample

MS = 1_000_000


class Tracker:
    """Reports what the script says, a set of pages for each collection."""

    name = "scripted"

    def __init__(self, *script: list[int], exact: bool = True) -> None:
        self.exact = exact
        self._script = list(script)
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def collect(self) -> PageSet:
        self.calls.append("collect")
        if not self._script:
            raise ProcessLookupError(3, "gone")
        return PageSet.from_indices(self._script.pop(0))

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None: ...


class Clock:
    """A clock that only waiting moves, and a wait that may be interrupted."""

    def __init__(self, patience: int = 1000) -> None:
        self.now_ns = 0
        self._patience = patience

    def __call__(self) -> int:
        return self.now_ns

    def wait(self, duration_ns: int) -> bool:
        self.now_ns += duration_ns
        self._patience -= 1
        return self._patience >= 0


def test_intervals_double_and_the_last_takes_what_is_left() -> None:
    assert intervals(7 * MS) == [MS, 2 * MS, 4 * MS]
    assert intervals(10 * MS) == [MS, 2 * MS, 4 * MS]
    assert intervals(12 * MS) == [MS, 2 * MS, 4 * MS, 5 * MS]
    assert intervals(2 * MS) == intervals(0) == []
    assert sum(intervals(3600 * 10**9)) <= LONGEST_ALL_NS


def test_each_stretch_of_neighbours_is_a_sample_of_distinct_pages() -> None:
    tracker, clock = Tracker([1], [1, 2], [2, 3]), Clock()
    found = sample(tracker, 7 * MS, clock, clock.wait)
    assert sorted(found) == [(MS, 1), (2 * MS, 2), (3 * MS, 2), (4 * MS, 2), (6 * MS, 3), (7 * MS, 3)]
    assert tracker.calls == ["start", "collect", "collect", "collect", "stop"]


def test_an_interruption_ends_it_early_and_keeps_what_was_seen() -> None:
    tracker, clock = Tracker([1], [2], [3]), Clock(patience=1)
    assert sample(tracker, 7 * MS, clock, clock.wait) == [(MS, 1)]
    assert tracker.calls[-1] == "stop"


def test_a_guest_that_is_gone_is_told_and_the_tracker_let_go() -> None:
    tracker, clock = Tracker([1]), Clock()
    with pytest.raises(ProcessLookupError):
        sample(tracker, 7 * MS, clock, clock.wait)
    assert tracker.calls[-1] == "stop"


def test_a_tracker_that_reads_all_of_ram_is_not_asked() -> None:
    tracker, clock = Tracker([1], exact=False), Clock()
    with pytest.raises(SamplingTooDear, match="scripted tracker reads all of RAM"):
        sample(tracker, 7 * MS, clock, clock.wait)
    assert tracker.calls == []
