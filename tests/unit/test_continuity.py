"""Continuity: each figure on cases small enough to see, and its laws on generated ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.measure.continuity import (
    Figures,
    Waits,
    Window,
    closed_loop,
    distribution,
    figures,
    open_loop,
    split,
)

TIME = st.integers(0, 10_000)


@st.composite
def some_waits(draw: st.DrawFn) -> Waits:
    pieces = draw(st.lists(st.tuples(TIME, st.integers(0, 3000), st.integers(0, 4)), max_size=40))
    begin = np.array([piece[0] for piece in pieces], dtype=np.int64)
    length = np.array([piece[1] for piece in pieces], dtype=np.int64)
    return closed_loop(begin, begin + length, [piece[2] for piece in pieces])


@st.composite
def some_windows(draw: st.DrawFn) -> list[Window]:
    edges = sorted(draw(st.sets(st.integers(0, 13_000), max_size=8)))
    return [Window(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=False)]


def test_a_closed_loop_waits_from_request_to_reply() -> None:
    waits = closed_loop([0, 100, 200], [10, 180, 205], [0, 0, 0])
    assert waits.length_ns.tolist() == [10, 80, 5]
    assert figures(waits) == Figures(count=3, longest_ns=80, longest_at_ns=100, p50_ns=10, p99_ns=80)


def test_an_open_loop_waits_between_deliveries_less_the_interval() -> None:
    # Sent each 100, delivered 7 later; the third and fourth were held up, the fifth was not.
    waits = open_loop([0, 100, 200, 300, 400], [7, 107, 350, 351, 407], [0] * 5, 100)
    assert waits.length_ns.tolist() == [0, 143, 0, 0]
    assert figures(waits).longest_at_ns == 107


def test_a_sender_that_was_late_is_not_held_against_the_service() -> None:
    assert open_loop([0, 500], [7, 507], [0, 0], 100).length_ns.tolist() == [0]
    assert open_loop([0, 500], [7, 517], [0, 0], 100).length_ns.tolist() == [10]


def test_catching_up_does_not_count_as_waiting() -> None:
    # The second message went out at once after a late first: still a whole interval is allowed.
    assert open_loop([90, 100], [97, 150], [0, 0], 100).length_ns.tolist() == [0]


def test_open_loops_of_two_connections_do_not_mix() -> None:
    waits = open_loop([0, 5, 100, 105], [1, 50, 101, 350], [3, 8, 3, 8], 100)
    assert dict(zip(waits.connection.tolist(), waits.length_ns.tolist(), strict=True)) == {3: 0, 8: 200}


def test_each_kind_of_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="before"):
        closed_loop([10], [9], [0])
    with pytest.raises(ValueError, match="one length"):
        closed_loop([10, 11], [12], [0])
    with pytest.raises(ValueError, match="interval"):
        open_loop([], [], [], 0)
    with pytest.raises(ValueError, match="order"):
        open_loop([1, 2], [9, 8], [0, 0], 1)
    with pytest.raises(ValueError, match="end"):
        Window(2, 1)
    with pytest.raises(ValueError, match="disjoint"):
        split(closed_loop([], [], []), [Window(0, 10), Window(5, 20)])


def test_of_nothing_there_are_no_figures() -> None:
    nothing = closed_loop([], [], [])
    assert figures(nothing) == Figures(0, None, None, None, None)
    assert nothing.by_connection() == {}
    assert distribution([]) == {"p50": None, "p99": None, "max": None}
    assert len(open_loop([5], [6], [0], 1)) == 0


def test_a_window_parts_before_during_and_after() -> None:
    #            ends at it  across its begin  inside  across its end  begins at its end  over all of it
    waits = closed_loop([0, 5, 12, 18, 20, 1], [10, 11, 13, 25, 30, 40], [0, 1, 2, 3, 4, 5])
    parts = split(waits, [Window(10, 20)])
    assert parts.during[0].connection.tolist() == [1, 2, 3, 5]
    assert [part.connection.tolist() for part in parts.quiet] == [[0], [4]]


def test_a_wait_over_two_windows_belongs_to_both_and_is_not_quiet() -> None:
    parts = split(closed_loop([0], [100], [0]), [Window(10, 20), Window(50, 60)])
    assert [len(part) for part in parts.during] == [1, 1]
    assert [len(part) for part in parts.quiet] == [0, 0, 0]


@given(some_waits(), some_windows())
def test_every_wait_is_quiet_once_or_overlaps_a_window(waits: Waits, windows: list[Window]) -> None:
    parts = split(waits, windows)
    assert len(parts.during) == len(windows)
    assert len(parts.quiet) == len(windows) + 1
    overlapping = 0
    for begin, end in zip(waits.begin_ns.tolist(), waits.end_ns.tolist(), strict=True):
        overlapping += any(begin < w.end_ns and end > w.begin_ns for w in windows)
    assert sum(map(len, parts.quiet)) == len(waits) - overlapping
    for number, part in enumerate(parts.quiet):
        for begin, end in zip(part.begin_ns.tolist(), part.end_ns.tolist(), strict=True):
            assert number == 0 or begin >= windows[number - 1].end_ns
            assert number == len(windows) or end <= windows[number].begin_ns
    for window, part in zip(windows, parts.during, strict=True):
        assert all(part.begin_ns < window.end_ns)
        assert all(part.end_ns > window.begin_ns)


@given(some_waits())
def test_percentiles_are_waits_that_occurred(waits: Waits) -> None:
    seen, lengths = figures(waits), sorted(waits.length_ns.tolist())
    assert seen.count == len(lengths)
    if lengths:
        assert seen.longest_ns == lengths[-1]
        assert seen.p50_ns == lengths[(len(lengths) + 1) // 2 - 1]
        assert seen.p99_ns == lengths[-(-len(lengths) * 99 // 100) - 1]
        assert seen.longest_at_ns in waits.begin_ns[waits.length_ns == lengths[-1]]


@given(some_waits())
def test_connections_part_the_waits_and_keep_their_order(waits: Waits) -> None:
    parts = waits.by_connection()
    assert list(parts) == sorted(set(waits.connection.tolist()))
    for number, part in parts.items():
        assert part.begin_ns.tolist() == waits.begin_ns[waits.connection == number].tolist()


STEPS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=30)


@given(STEPS, st.integers(1, 200))
def test_a_delay_alike_for_all_is_no_wait(steps: list[tuple[int, int]], interval: int) -> None:
    sent = np.cumsum([step[0] for step in steps])
    assert not open_loop(sent, sent + 77, np.zeros(len(sent)), interval).length_ns.any()
    received = np.cumsum([step[1] for step in steps]) + sent
    assert (open_loop(sent, received, np.zeros(len(sent)), interval).length_ns >= 0).all()
