"""What became of each numbered packet, and the waits that are made of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.clients.packet_log import PacketLog
from testbed.measure import datagram
from testbed.measure.continuity import figures, packets
from testbed.measure.pattern import pattern

MS = 1_000_000


def log_of(sent: int) -> PacketLog:
    log = PacketLog()
    for number in range(sent):
        log.note_sent((number + 1) * MS)
    return log


def test_each_fate_is_counted_where_it_belongs_and_nowhere_else() -> None:
    log = log_of(6)
    for number in (0, 2, 1, 2, 4):
        log.note_received(number, 10 * MS + number)
    assert (log.duplicated, log.reordered, log.late, log.foreign) == (1, 1, 0, 0)
    assert (log.due, log.lost) == (2, 0), "nothing is lost before it is given up"
    log.give_up()
    assert (log.due, log.lost) == (0, 2)
    assert log.note_received(3, 20 * MS) == 4 * MS
    assert (log.lost, log.late, log.due) == (1, 1, 0)
    assert log.note_received(6, 20 * MS) is None
    assert log.foreign == 1


def test_what_is_forgotten_is_remembered_as_a_count() -> None:
    log = log_of(4)
    log.note_received(0, 9 * MS)
    log.forget()
    assert (log.first, log.next, log.lost, len(log.sent_ns)) == (4, 4, 3, 0)
    log.note_sent(50 * MS)
    assert log.note_received(1, 60 * MS) is None
    assert log.late == 1
    assert log.note_received(4, 61 * MS) == 50 * MS
    log.give_up()
    assert (log.next, log.lost) == (5, 3)


@given(st.permutations(range(20)), st.integers(0, 20))
def test_whatever_the_order_all_that_came_are_counted_once(order: list[int], came: int) -> None:
    log = log_of(20)
    for at, number in enumerate(order[:came]):
        assert log.note_received(number, 100 * MS + at) is not None
        assert log.note_received(number, 200 * MS) is None
    log.give_up()
    assert (log.lost, log.duplicated) == (20 - came, came)
    overtaken = sum(number < max(order[:at], default=-1) for at, number in enumerate(order[:came]))
    assert log.reordered == overtaken


def waits_of(
    received_ms: list[float | None], sent_ms: list[float] | None = None
) -> list[tuple[float, float]]:
    """(begin, length) of each wait, in ms; packets are sent 1 ms apart where nothing else is said."""
    sent = np.array(sent_ms if sent_ms is not None else range(len(received_ms))) * MS
    came = [one is not None for one in received_ms]
    received = np.array([0.0 if one is None else one for one in received_ms]) * MS
    found = packets(sent.astype(int), received.astype(int), came, [0] * len(came), MS)
    order = np.argsort(found.begin_ns, kind="stable")
    return [(found.begin_ns[at] / MS, found.length_ns[at] / MS) for at in order]


def test_a_steady_flow_keeps_nobody_waiting_however_long_the_way_is() -> None:
    assert waits_of([50, 51, 52, 53]) == [(50, 0), (51, 0), (52, 0)]


def test_packets_lost_in_between_are_silence() -> None:
    assert waits_of([1, None, None, None, 5]) == [(1, 3)]


def test_packets_that_come_all_at_once_after_a_pause_show_its_length() -> None:
    assert waits_of([1, 30, 30, 30, 30]) == [(1, 28), (30, 0), (30, 0), (30, 0)]


def test_packets_that_overtake_are_counted_in_the_order_of_arrival() -> None:
    assert waits_of([10, 12, 11, 13]) == [(10, 0), (11, 0), (12, 0)]


def test_a_sender_that_was_late_is_not_counted_against_the_service() -> None:
    assert waits_of([1, 21], [0, 20]) == [(1, 0)]
    assert waits_of([1, None, 22], [0, 20, 21]) == [(1, 1)]


def test_losses_at_the_ends_are_waits_of_at_least_their_length() -> None:
    assert waits_of([None, None, 52, 53]) == [(0, 2), (52, 0)]
    assert waits_of([50, 51, None, None, None]) == [(50, 0), (51, 3)]
    assert waits_of([None, None, None]) == [(0, 2)]


def test_connections_are_kept_apart() -> None:
    found = packets([0, 0, MS, MS], [MS, MS, 9 * MS, 2 * MS], [True] * 4, [3, 7, 3, 7], MS)
    by_connection = {number: figures(own).longest_ns for number, own in found.by_connection().items()}
    assert by_connection == {3: 7 * MS, 7: 0}


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="interval"):
        packets([0], [1], [True], [0], 0)
    with pytest.raises(ValueError, match="one length"):
        packets([0, 1], [1, 2], [True], [0, 0], 1)
    with pytest.raises(ValueError, match="order of sending"):
        packets([5, 1], [6, 7], [True, True], [0, 0], 1)
    assert len(packets([], [], [], [], 1)) == 0


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**63), st.integers(0, 2**62), st.integers(32, 3000))
def test_a_datagram_tells_what_it_was_made_of(flow: int, number: int, sent_ns: int, size: int) -> None:
    made = datagram.build(flow, number, sent_ns, size)
    assert len(made) == size
    back = datagram.handled(made, 77)
    assert datagram.parse(back) == datagram.Numbered(flow, number, sent_ns, 77, True)
    if size > datagram.HEADER_BYTES:
        flipped = back[:-1] + bytes([back[-1] ^ 1])
        assert datagram.parse(flipped) == datagram.Numbered(flow, number, sent_ns, 77, False)


@pytest.mark.parametrize("odd", [b"", b"hello", b"LMtb", pattern(0, 100)])
def test_what_is_no_datagram_of_ours_is_echoed_as_it_is_and_not_taken_for_one(odd: bytes) -> None:
    assert datagram.handled(odd, 5) == odd
    assert datagram.parse(odd) is None
