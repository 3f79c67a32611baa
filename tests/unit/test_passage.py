"""Frames in with times, frames out with times: what one direction of a link does under its conditions."""

from __future__ import annotations

import statistics
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns import passage as passages
from netns.conditions import Conditions, Distribution
from netns.packet import VNET_HEADER, VNET_HEADER_BYTES
from netns.passage import Passage, Times, announces, on_wire

MS = 1_000_000
FOREVER = 1 << 62


def frame(number: int, size: int = 100) -> bytes:
    """A frame of `size` bytes that bears a number."""
    return bytes(VNET_HEADER_BYTES) + bytes(12) + b"\x88\xb5" + struct.pack(">I", number) + bytes(size - 18)


def number_of(data: bytes) -> int:
    return int(struct.unpack_from(">I", data, VNET_HEADER_BYTES + 14)[0])


def passed(passage: Passage, arrivals: list[int], size: int = 100) -> list[tuple[int, int]]:
    """(number, time out) of frames that arrive at these times, numbered from 0."""
    for number, t_ns in enumerate(arrivals):
        passage.offer(t_ns, frame(number, size))
    return [(number_of(one.data), one.due_ns) for one in passage.due(FOREVER)]


def every_ms(count: int) -> list[int]:
    return [number * MS for number in range(count)]


times = st.lists(st.integers(0, 50 * MS), max_size=60).map(sorted)
conditions = st.builds(
    lambda rate, delay, jitter, distribution, reorders, duplication, reordering, seed: Conditions(
        rate_bits_per_s=rate,
        delay_ns=delay,
        jitter_ns=min(jitter, delay),
        distribution=distribution,
        jitter_reorders=reorders,
        duplication=duplication,
        reordering=reordering if delay else 0.0,
        seed=seed,
    ),
    st.none() | st.floats(1e6, 1e10),
    st.integers(0, 40 * MS),
    st.integers(0, 10 * MS),
    st.sampled_from(["uniform", "normal", "pareto"]),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 5),
)


@given(conditions, times)
def test_nothing_is_lost_that_is_not_to_be(asked: Conditions, arrivals: list[int]) -> None:
    passage = Passage(asked)
    out = [number for number, _ in passed(passage, arrivals)]
    dropped = passage.tally.queue_dropped
    assert len(out) + dropped == len(arrivals) + passage.tally.duplicated
    if not dropped:
        assert set(out) == set(range(len(arrivals)))


@given(conditions, times)
def test_no_frame_is_early(asked: Conditions, arrivals: list[int]) -> None:
    passage = Passage(asked)
    assert all(due_ns >= arrivals[number] for number, due_ns in passed(passage, arrivals))


@given(conditions, times)
def test_frames_keep_their_order_unless_something_else_is_asked(
    asked: Conditions, arrivals: list[int]
) -> None:
    passage = Passage(asked)
    out = [number for number, _ in passed(passage, arrivals)]
    if not asked.reordering and not (asked.jitter_ns and asked.jitter_reorders):
        assert out == sorted(out)
        assert passage.tally.reordered == 0


@given(conditions, times, conditions, st.integers(0, 60 * MS))
def test_a_change_loses_nothing_and_keeps_the_order(
    before: Conditions, arrivals: list[int], after: Conditions, change_ns: int
) -> None:
    passage = Passage(before)
    for number, t_ns in enumerate(arrivals):
        passage.offer(t_ns, frame(number))
    last = max(arrivals, default=0)
    passage.change(max(last, change_ns), after)
    passage.offer(max(last, change_ns), frame(len(arrivals)))
    out = [number_of(one.data) for one in passage.due(FOREVER)]
    inside = len(arrivals) + 1 + passage.tally.duplicated - passage.tally.queue_dropped
    assert len(out) == inside
    orderly = not any(one.reordering or one.jitter_reorders for one in (before, after))
    if orderly:
        assert out == sorted(out)


@given(st.floats(1e5, 1e9), st.integers(64, 1500), st.integers(1, 60))
def test_a_rate_is_never_exceeded(rate: float, size: int, count: int) -> None:
    """Frames that all come at once leave one after another, each taking its time on the wire."""
    passage = Passage(Conditions(rate_bits_per_s=rate, queue_bytes=1 << 20))
    out = passed(passage, [0] * count, size)
    for place, (_, due_ns) in enumerate(out, 1):
        assert due_ns == pytest.approx(place * size * 8e9 / rate, abs=place)


def test_an_idle_wire_gathers_no_credit() -> None:
    passage = Passage(Conditions(rate_bits_per_s=8e6))  # a byte a microsecond
    out = passed(passage, [0, 10 * MS, 10 * MS], 1000)
    assert [due_ns for _, due_ns in out] == [MS, 11 * MS, 12 * MS]


def test_a_delay_is_that_of_each_frame() -> None:
    passage = Passage(Conditions(delay_ns=10 * MS))
    assert passed(passage, every_ms(5)) == [(number, (number + 10) * MS) for number in range(5)]


def test_frames_come_out_when_they_are_due_and_not_before() -> None:
    passage = Passage(Conditions(delay_ns=10 * MS))
    passage.offer(0, frame(0))
    assert passage.next_due_ns == 10 * MS
    assert passage.due(10 * MS - 1) == []
    assert len(passage.due(10 * MS)) == 1
    assert passage.is_empty
    assert passage.next_due_ns is None


@pytest.mark.parametrize("share", [0.001, 0.1, 0.9])
def test_the_loss_is_what_was_asked(share: float) -> None:
    passage = Passage(Conditions(loss=share, seed=11))
    count = 40_000
    out = passed(passage, [0] * count)
    expected, deviation = count * share, (count * share * (1 - share)) ** 0.5
    assert abs(passage.tally.lost - expected) < 4 * deviation
    assert len(out) == count - passage.tally.lost


def test_all_or_nothing() -> None:
    assert passed(Passage(Conditions(loss=1.0)), every_ms(100)) == []
    assert len(passed(Passage(Conditions(duplication=1.0)), every_ms(100))) == 200


def test_a_seed_repeats_a_run_and_another_does_not() -> None:
    def lost(seed: int, name: str = "forward") -> set[int]:
        passage = Passage(Conditions(loss=0.2, seed=seed), name)
        return set(range(200)) - {number for number, _ in passed(passage, every_ms(200))}

    assert lost(1) == lost(1)
    assert lost(1) != lost(2)
    assert lost(1) != lost(1, "backward")


@pytest.mark.parametrize("distribution", ["uniform", "normal", "pareto"])
def test_jitter_has_the_mean_and_the_spread_that_it_says(distribution: Distribution) -> None:
    asked = Conditions(
        delay_ns=100 * MS, jitter_ns=10 * MS, distribution=distribution, jitter_reorders=True, seed=5
    )
    apart = 200 * MS
    out = passed(Passage(asked), [number * apart for number in range(20_000)])
    delays_ms = [(due_ns - number * apart) / MS for number, due_ns in out]
    assert statistics.mean(delays_ms) == pytest.approx(100, abs=1)
    spread = 10 / 3**0.5 if distribution == "uniform" else 10
    assert statistics.pstdev(delays_ms) == pytest.approx(spread, rel=0.25)
    if distribution == "uniform":
        assert min(delays_ms) >= 90
        assert max(delays_ms) <= 110
    if distribution == "pareto":
        assert max(delays_ms) - 100 > 5 * (100 - min(delays_ms))  # the tail is of late ones


def test_jitter_overtakes_only_where_it_may() -> None:
    asked = {"delay_ns": 20 * MS, "jitter_ns": 10 * MS, "seed": 2}
    kept, let = Passage(Conditions(**asked)), Passage(Conditions(**asked, jitter_reorders=True))
    in_order, out_of_order = passed(kept, every_ms(300)), passed(let, every_ms(300))
    assert [number for number, _ in in_order] == list(range(300))
    assert [number for number, _ in out_of_order] != list(range(300))
    assert let.tally.reordered > 0


def test_reordered_frames_do_not_wait_for_their_delay() -> None:
    passage = Passage(Conditions(delay_ns=10 * MS, reordering=0.25, seed=1))
    out = passed(passage, every_ms(400))
    at_once = [number for number, due_ns in out if due_ns == number * MS]
    assert len(at_once) == pytest.approx(100, abs=40)
    assert passage.tally.reordered == len(set(at_once) - {0})  # the first has nobody to overtake
    delayed = [number for number, due_ns in out if due_ns != number * MS]
    assert delayed == sorted(delayed)


def test_a_full_queue_drops_what_comes_and_counts_it() -> None:
    passage = Passage(Conditions(rate_bits_per_s=8e6, queue_frames=10))
    out = passed(passage, [0] * 50, 1000)
    assert [number for number, _ in out] == list(range(10))
    assert passage.tally.queue_dropped == 40
    passage.offer(5 * MS + 1, frame(77))  # five have left for the wire since
    assert [number_of(one.data) for one in passage.due(FOREVER)] == [77]


def test_a_queue_in_bytes_takes_any_frame_when_it_is_empty() -> None:
    passage = Passage(Conditions(rate_bits_per_s=8e6, queue_bytes=2000))
    assert len(passed(passage, [0, 0, 0, 0], 1000)) == 2
    passage = Passage(Conditions(rate_bits_per_s=8e6, queue_bytes=1514))
    assert len(passed(passage, [0, 0], 60_000)) == 1


def test_frames_under_way_are_not_in_the_queue() -> None:
    """The trap of netem's limit: a long delay at a high rate does not fill the queue."""
    passage = Passage(Conditions(rate_bits_per_s=8e9, delay_ns=1000 * MS, queue_frames=2))
    out = passed(passage, [number * 1000 for number in range(500)], 1000)
    assert len(out) == 500


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "MOST_BYTES", 1000)
    passage = Passage(Conditions(delay_ns=MS))
    assert len(passed(passage, [0] * 25, 100)) == 10
    assert passage.tally.overrun == 15
    assert passage.tally.lost == 0
    assert len(passed(passage, [MS] * 5, 100)) == 5


def test_a_higher_rate_holds_for_what_waits_already() -> None:
    passage = Passage(Conditions(rate_bits_per_s=8e6))
    for number in range(20):
        passage.offer(0, frame(number, 1000))
    passage.change(5 * MS, Conditions())
    out = [(number_of(one.data), one.due_ns) for one in passage.due(FOREVER)]
    assert out == [(number, min(number + 1, 5) * MS) for number in range(20)]


def test_a_count_that_begins_anew_leaves_out_what_is_inside() -> None:
    passage = Passage(Conditions(delay_ns=10 * MS))
    passage.offer(0, frame(0))
    passage.reset(5 * MS)
    passage.offer(6 * MS, frame(1))
    for one in passage.due(FOREVER):
        passage.sent(one, one.due_ns + 1000)
    assert (passage.tally.received_frames, passage.tally.passed_frames) == (1, 1)
    assert passage.tally.late.quantile_ns(0.5) == pytest.approx(1000, rel=0.01)


# ---- announcements


def arp(operation: int, sender: str, target: str) -> bytes:
    from scapy.layers.l2 import ARP, Ether

    asked = ARP(op=operation, hwsrc="02:00:00:00:00:42", psrc=sender, pdst=target)
    return bytes(VNET_HEADER_BYTES) + bytes(Ether(src="02:00:00:00:00:42", dst="ff:ff:ff:ff:ff:ff") / asked)


def advertisement(to: str) -> bytes:
    from scapy.layers.inet6 import ICMPv6ND_NA, IPv6
    from scapy.layers.l2 import Ether

    said = IPv6(src="fd07::10", dst="ff02::1") / ICMPv6ND_NA(tgt="fd07::10")
    return bytes(VNET_HEADER_BYTES) + bytes(Ether(src="02:00:00:00:00:42", dst=to) / said)


def reverse_arp() -> bytes:
    from scapy.layers.l2 import ARP, Ether

    asked = Ether(src="02:00:00:00:00:42", dst="ff:ff:ff:ff:ff:ff", type=0x8035) / ARP(op=3)
    return bytes(VNET_HEADER_BYTES) + bytes(asked)


def test_announcements_are_told_from_other_frames() -> None:
    assert announces(arp(1, "10.7.0.10", "10.7.0.10"))
    assert announces(arp(2, "10.7.0.10", "10.7.0.10"))
    assert announces(reverse_arp())
    assert announces(advertisement("33:33:00:00:00:01"))
    assert not announces(arp(1, "10.7.0.10", "10.7.0.20"))
    assert not announces(advertisement("02:00:00:00:00:01"))
    assert not announces(frame(1))


def test_the_first_announcements_are_lost_and_nothing_else() -> None:
    passage = Passage(Conditions(lost_announcements=2))
    sent = [frame(0), *[arp(1, "10.7.0.10", "10.7.0.10")] * 4, arp(1, "10.7.0.10", "10.7.0.20"), frame(1)]
    for data in sent:
        passage.offer(0, data)
    out = [one.data for one in passage.due(FOREVER)]
    assert out == [sent[0], *sent[3:]]
    assert passage.tally.announcements_lost == 2


# ---- offloaded frames


def offloaded(payload: int, segment: int) -> bytes:
    """A TCP frame that stands for several: Ethernet 14, IPv4 20, TCP 32 bytes."""
    header = VNET_HEADER.pack(1, 1, 66, segment, 34, 16)
    return header + bytes(34) + bytes(12) + b"\x80" + bytes(19) + bytes(payload)


def test_an_offloaded_frame_counts_as_what_it_comes_to_on_a_wire() -> None:
    assert on_wire(offloaded(14_480, 1448)) == (10, 66 * 10 + 14_480)
    assert on_wire(offloaded(1449, 1448)) == (2, 66 * 2 + 1449)
    assert on_wire(offloaded(0, 1448)) == (1, 66)
    passage = Passage(Conditions(rate_bits_per_s=8e6))
    passage.offer(0, offloaded(14_480, 1448))
    assert passage.next_due_ns == (66 * 10 + 14_480) * 1000
    assert passage.tally.received_frames == 10


@settings(max_examples=200)
@given(st.binary(min_size=VNET_HEADER_BYTES + 14, max_size=200))
def test_no_frame_upsets_it(data: bytes) -> None:
    passage = Passage(Conditions(rate_bits_per_s=1e9, lost_announcements=5))
    passage.offer(0, data)
    frames, size = on_wire(data)
    assert frames >= 1
    assert size >= len(data) - VNET_HEADER_BYTES


# ---- distributions


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=200), st.sampled_from([0.5, 0.99, 1.0]))
def test_quantiles_are_true_to_a_256th(values: list[int], share: float) -> None:
    seen = Times()
    for value in values:
        seen.add(value)
    rank = max(1, -(-len(values) * int(share * 100) // 100))
    exact = sorted(values)[rank - 1]
    assert seen.quantile_ns(share) == pytest.approx(exact, rel=1 / 256, abs=1)


def test_nothing_seen_has_no_quantile() -> None:
    assert Times().quantile_ns(0.5) is None
