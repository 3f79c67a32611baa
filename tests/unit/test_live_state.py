"""The live picture's facts, from events: of one guest, of several, of clients, in any order of hosts."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from testbed.report.live_state import CELL_NS, HOLD_NS, Cast, LiveState, Strip

MS = 1_000_000
CAST = Cast("demo", ("host-a", "host-b"), {"vm1": ("host-a", 64 << 20)}, ("client1", "client2"))
SEVERAL = Cast(
    "drain", ("host-a", "host-b", "host-c"), {"vm1": ("host-a", 1 << 20), "vm2": ("host-b", 1 << 20)}, ("c1",)
)


def event(source: str, kind: str, t_ms: float = 0, **fields: Any) -> dict[str, Any]:
    return {"t_ns": round(t_ms * MS), "source": source, "event": kind, **fields}


def mark(source: str, name: str, t_ms: float, **fields: Any) -> dict[str, Any]:
    return event(source, "mark", t_ms, name=name, **fields)


def moving(cast: Cast = CAST, vm: str | None = None) -> LiveState:
    state = LiveState(cast, 0)
    state.migration("host-a", "host-b", 1, 1, vm)
    return state


def round_of(number: int, pages: int, dirty: int, **fields: Any) -> dict[str, Any]:
    return event(
        "host-a", "round", number=number, pages=pages, zero_pages=0, bytes=pages * 4096, duration_ns=MS,
        dirty_pages=dirty, **fields,
    )  # fmt: skip


# ---- a guest on its way


def test_a_phase_is_where_the_source_is() -> None:
    state = moving()
    for kind in (
        event("host-b", "begin", phase="setup"),
        event("host-a", "begin", phase="setup"),
        event("host-b", "begin", phase="provision"),
    ):
        state.event(kind, 0)
    assert state.guests["vm1"].phase == "setup"
    state.event(event("host-a", "begin", phase="provision"), 0)
    assert state.guests["vm1"].phase == "provision"


def test_rounds_say_how_much_has_crossed() -> None:
    state = moving()
    guest = state.guests["vm1"]
    state.event(event("host-a", "sending", number=1, bytes=1000, of_bytes=4000), 0)
    assert (guest.under_way, guest.copied) == ((1, 1000, 4000), 0.25)
    state.event(round_of(1, 1000, 100), 0)
    assert (guest.under_way, guest.copied) == (None, 0.9)
    state.event(round_of(2, 100, 10), 0)
    assert guest.copied == pytest.approx(0.99)
    assert [one.number for one in guest.rounds] == [1, 2]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_blackout_is_known_whoever_is_heard_first(order: tuple[int, ...]) -> None:
    """Each host sends its own events when it comes to that."""
    told = [
        [mark("host-a", "paused", 100), mark("host-a", "cut", 101), mark("host-a", "committed", 104)],
        [mark("host-b", "resumed", 105.5)],
        [event("host-a", "begin", 99, phase="pause")],
    ]
    state = moving()
    guest = state.guests["vm1"]
    for number in order:
        assert guest.blackout_ns is None
        for one in told[number]:
            state.event(one, 0)
        if {0, 1} <= set(order[: order.index(number) + 1]):
            break
    assert guest.blackout_ns == 5.5 * MS
    assert sum(guest.parts_ms.values()) == pytest.approx(5.5)
    assert state.pauses == [(100 * MS, round(105.5 * MS))]


def test_a_guest_is_at_its_target_once_it_runs_there() -> None:
    state = moving()
    guest = state.guests["vm1"]
    state.event(mark("host-a", "paused", 1), 7)
    assert (guest.host, guest.moving) == ("host-a", True)
    state.event(mark("host-b", "resumed", 2), 8)
    assert (guest.host, guest.moving, guest.moved_at_ns) == ("host-b", True, 8)
    state.event(event("host-b", "end", phase="delete"), 9)
    assert guest.moving, "the source's copy is still there"
    state.event(event("host-a", "end", phase="delete"), 9)
    assert not guest.moving
    assert state.focus is guest


def test_a_guest_that_is_rolled_back_stays() -> None:
    state = moving()
    state.event(event("host-a", "switching-over"), 0)
    state.event(event("host-a", "rolled-back", reason="the wire is cut"), 1)
    guest = state.guests["vm1"]
    assert (guest.host, guest.moving, guest.rolled_back) == ("host-a", False, "the wire is cut")
    assert not state.holding(1)
    state.migration("host-a", "host-b", 2, 2, None)
    assert state.guests["vm1"].rolled_back is None


# ---- when to keep still


def test_from_the_announcement_of_a_switchover_to_its_end_one_keeps_still() -> None:
    state = moving()
    assert not state.holding(10)
    state.event(event("host-a", "switching-over"), 10)
    assert state.holding(11)
    state.event(mark("host-a", "paused", 3), 12)
    assert state.holding(13)
    state.event(mark("host-b", "resumed", 4), 14)
    assert not state.holding(14)


def test_a_blackout_that_lasts_is_not_hidden() -> None:
    state = moving()
    state.event(event("host-a", "switching-over"), 10)
    assert state.holding(10 + HOLD_NS - 1)
    assert not state.holding(10 + HOLD_NS)


def test_of_several_guests_one_that_switches_over_is_enough() -> None:
    state = LiveState(SEVERAL, 0)
    state.migration("host-a", "host-c", 1, 1, "vm1")
    state.migration("host-b", "host-c", 1, 1, "vm2")
    state.event(event("host-a", "switching-over", vm="vm1"), 0)
    state.event(event("host-b:vm2", "switching-over", vm="vm2"), 0)
    state.event(mark("host-c", "resumed", 4, vm="vm1"), 1)
    assert state.holding(2)
    state.event(mark("host-c:vm2", "resumed", 4, vm="vm2"), 2)
    assert not state.holding(2)


# ---- several guests


def test_each_guest_has_its_own_news() -> None:
    state = LiveState(SEVERAL, 0)
    state.migration("host-a", "host-c", 1, 2, "vm1")
    state.migration("host-b", "host-c", 1, 2, "vm2")
    state.event(event("host-b:vm2", "begin", phase="precopy", vm="vm2"), 0)
    state.event(event("host-a", "begin", phase="setup", vm="vm1"), 0)
    state.event(round_of(1, 10, 1, vm="vm2"), 0)
    state.event(mark("host-c:vm2", "resumed", 4, vm="vm2"), 1)
    one, two = state.guests["vm1"], state.guests["vm2"]
    assert (one.phase, one.host, len(one.rounds)) == ("setup", "host-a", 0)
    assert (two.phase, two.host, len(two.rounds)) == ("precopy", "host-c", 1)
    assert state.moving == [one, two]


# ---- strips


def test_a_strip_has_the_longest_wait_of_each_cell() -> None:
    strip = Strip()
    for t_ms, wait in ((10, 1), (40, 5), (60, 2), (110, 3)):
        strip.beat(t_ms * MS, wait * MS)
    assert strip.cells(3, strip.end) == [5 * MS, 2 * MS, 3 * MS]
    assert strip.cells(5, strip.end) == [None, None, 5 * MS, 2 * MS, 3 * MS]
    assert (strip.longest_ns, strip.now_ns) == (5 * MS, 3 * MS)


def test_a_beat_that_comes_late_stands_for_all_cells_since_the_last() -> None:
    strip = Strip()
    strip.beat(0, 1)
    strip.beat(4 * CELL_NS, 200)
    assert strip.cells(5, strip.end) == [1, 200, 200, 200, 200]


def test_strips_end_together() -> None:
    """A client that is behind shows it: its last cells are empty."""
    state = LiveState(CAST, 0)
    state.event(event("client1", "beat", 0, longest_wait_ns=7), 0)
    state.event(event("client2", "beat", 200, longest_wait_ns=9), 0)
    assert state.strips["client1"].cells(5, state.end) == [7, None, None, None, None]
    assert state.strips["client2"].cells(5, state.end) == [None, None, None, None, 9]


def test_what_breaks_is_counted_and_kinds_are_kept_apart() -> None:
    state = LiveState(CAST, 0)
    assert not state.serving
    state.event(event("client1", "beat", 0, longest_wait_ns=7, each={"churn": 7, "closed-loop": 3}), 0)
    state.event(event("client1", "broken", reason="reset"), 0)
    strip = state.strips["client1"]
    assert (strip.broke, state.strips["client2"].broke) == (1, 0)
    assert {name: one.now_ns for name, one in strip.kinds.items()} == {"churn": 7, "closed-loop": 3}
    assert state.serving


def test_news_of_others_change_nothing() -> None:
    state = moving()
    for kind in ("announced", "announcement-seen", "link-conditions", "pages", "handshakes-held"):
        state.event(event("switch", kind, 1, number=1), 0)
    assert state.guests["vm1"].phase is None
