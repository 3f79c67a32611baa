"""Errors against known pauses: a model of a service that pauses, and probes of it whose error is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from testbed.measure.accuracy import FLOOR_NS, Definition, Deviation, Sight, Stall, deviation, spread
from testbed.measure.continuity import Waits, Window, closed_loop, figures, open_loop, split

US, MS = 1_000, 1_000_000
INTERVAL_NS = 1 * MS
BEGUN_NS = 50 * MS


@dataclass(frozen=True)
class World:
    """Messages are sent each INTERVAL_NS from zero on, and take `way_ns` to the guest and `way_ns` back. The
    guest answers at once, but not in the pause; the clock of the probe is `clock_ns` ahead."""

    phase_ns: int
    pause_ns: int
    way_ns: int
    clock_ns: int = 0

    @property
    def stall(self) -> Stall:
        begin_ns = BEGUN_NS + self.phase_ns
        return Stall(self.pause_ns, begin_ns, begin_ns + self.pause_ns)

    def answered_ns(self, sent_ns: int) -> int:
        arrived_ns, stall = sent_ns + self.way_ns, self.stall
        if stall.paused_ns <= arrived_ns < stall.running_ns:
            arrived_ns = stall.running_ns
        return arrived_ns + self.way_ns

    def closed(self) -> Waits:
        """Of one connection that asks again when it is time, or as soon as it has its reply."""
        sent, received, now_ns = [], [], 0
        while now_ns < self.stall.running_ns + 20 * MS:
            sent.append(now_ns)
            received.append(self.answered_ns(now_ns))
            now_ns = max(now_ns + INTERVAL_NS, -(-received[-1] // INTERVAL_NS) * INTERVAL_NS)
        times = np.array([sent, received]) + self.clock_ns
        return closed_loop(times[0], times[1], [0] * len(sent))

    def open(self) -> Waits:
        sent = list(range(0, self.stall.running_ns + 20 * MS, INTERVAL_NS))
        times = np.array([sent, [self.answered_ns(one) for one in sent]]) + self.clock_ns
        return open_loop(times[0], times[1], [0] * len(sent), INTERVAL_NS)


def seen(waits: Waits, stall: Stall, definition: Definition) -> Deviation:
    """As a probe's report tells it: the longest of the waits that overlap the window."""
    (during,) = split(waits, [Window(*stall.window)]).during
    longest = figures(during)
    sight = None
    if longest.longest_ns is not None and longest.longest_at_ns is not None:
        sight = Sight(longest.longest_ns, longest.longest_at_ns)
    return deviation(definition, INTERVAL_NS, stall, sight)


worlds = st.builds(
    World,
    phase_ns=st.integers(0, INTERVAL_NS),
    pause_ns=st.integers(1, 200 * MS),
    way_ns=st.integers(0, 200 * US),
)


@given(worlds)
def test_of_a_request_the_error_is_the_way_back_alone(world: World) -> None:
    """A short pause may meet no request: what was on its way then has part of its round trip for error."""
    found = seen(world.closed(), world.stall, Definition.REQUEST)
    if world.pause_ns >= INTERVAL_NS:
        assert found.error_ns == world.way_ns
    else:
        assert found.error_ns is None or 0 <= found.error_ns <= 2 * world.way_ns


@given(worlds)
def test_of_a_delivery_the_error_is_at_most_the_way_back(world: World) -> None:
    """Less where the pause ends before a message was due: then it keeps nobody waiting."""
    found = seen(world.open(), world.stall, Definition.DELIVERY)
    assert found.error_ns is None or 0 <= found.error_ns <= world.way_ns
    if world.pause_ns >= INTERVAL_NS + world.way_ns:
        assert found.error_ns == world.way_ns


@given(worlds)
def test_the_longest_wait_lies_within_the_bounds_that_are_given_for_it(world: World) -> None:
    request = seen(world.closed(), world.stall, Definition.REQUEST)
    delivery = seen(world.open(), world.stall, Definition.DELIVERY)
    if world.pause_ns >= INTERVAL_NS:
        assert -INTERVAL_NS <= request.of_pause_ns <= 2 * world.way_ns
    assert -INTERVAL_NS <= delivery.of_pause_ns <= 0 or world.pause_ns < INTERVAL_NS


@given(worlds, st.integers(1, 30 * MS))
def test_a_clock_that_is_ahead_is_found_by_as_much(world: World, ahead_ns: int) -> None:
    world = World(world.phase_ns, INTERVAL_NS + world.pause_ns, world.way_ns, ahead_ns)
    waits = world.closed()
    at = int(np.argmax(waits.length_ns))
    sight = Sight(int(waits.length_ns[at]), int(waits.begin_ns[at]))
    found = deviation(Definition.REQUEST, INTERVAL_NS, world.stall, sight)
    due_ns = world.stall.running_ns - sight.longest_at_ns
    assert found.error_ns == (ahead_ns + world.way_ns if due_ns >= 0 else sight.longest_ns)


@given(worlds, st.integers(1, 30 * MS))
def test_a_probe_that_reads_late_is_found_by_as_much(world: World, late_ns: int) -> None:
    world = World(world.phase_ns, INTERVAL_NS + world.pause_ns, world.way_ns)
    waits = world.closed()
    later = Waits(waits.begin_ns, waits.end_ns + late_ns, waits.length_ns + late_ns, waits.connection)
    assert seen(later, world.stall, Definition.REQUEST).error_ns == world.way_ns + late_ns


def test_a_probe_that_stamps_its_sending_late_is_found_against_the_pause() -> None:
    """Against its definition it is not: the definition begins where the probe says that it sent."""
    world = World(100 * US, 50 * MS, 0)
    waits = world.closed()
    late = Waits(waits.begin_ns + 5 * MS, waits.end_ns, waits.length_ns - 5 * MS, waits.connection)
    found = seen(late, world.stall, Definition.REQUEST)
    assert found.error_ns == 0
    assert found.of_pause_ns < -5 * MS
    assert seen(waits, world.stall, Definition.REQUEST).of_pause_ns >= -INTERVAL_NS


def test_a_pause_that_no_request_met_goes_unnoticed_only_if_it_is_short() -> None:
    short, long = Stall(1, 0, INTERVAL_NS // 2), Stall(1, 0, 2 * INTERVAL_NS)
    before = Sight(longest_ns=100 * US, longest_at_ns=-90 * US)
    for sight in (None, before):
        assert deviation(Definition.REQUEST, INTERVAL_NS, short, sight).error_ns is None
        missed = deviation(Definition.REQUEST, INTERVAL_NS, long, sight).error_ns
        assert missed is not None
        assert missed <= -2 * INTERVAL_NS + 100 * US


def test_where_nothing_was_done_whatever_is_measured_is_error() -> None:
    nothing = Stall(0, 1000, 1000)
    assert nothing.window == (1000, 1000 + FLOOR_NS)
    for definition in Definition:
        found = deviation(definition, INTERVAL_NS, nothing, Sight(70, 900))
        assert (found.error_ns, found.of_pause_ns) == (70, 70)
        assert deviation(definition, INTERVAL_NS, nothing, None).error_ns == 0


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1))
def test_a_spread_is_what_a_person_would_count(errors: list[int]) -> None:
    found = spread(errors)
    assert found is not None
    assert found.median == np.median(errors)
    assert (found.low, found.high, found.count) == (min(errors), max(errors), len(errors))
    assert found.largest == max(-found.low, found.high)
    assert found.above == sum(one > 0 for one in errors)
    sizes = np.abs(errors)
    assert found.p95 in sizes
    assert np.mean(sizes <= found.p95) >= 0.95
    assert spread([]) is None
