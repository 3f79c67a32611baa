"""From ring blocks to a file: order, checksums, marks, and clocks that run apart. No socket is opened."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns import pcapng
from netns.block_ring import Frame, frames_in, packets_in, with_checksum
from netns.capture_file import RECORD, Capture, Clocks, Mark, Reading, commented, in_order, packets, write
from netns.packet import TP_STATUS_USER, TP_STATUS_VLAN_TPID_VALID, TP_STATUS_VLAN_VALID, VNET_HEADER

SECOND = 1_000_000_000
STILL = Clocks(Reading(0, 100 * SECOND, 30), Reading(10 * SECOND, 110 * SECOND, 40))


def block(
    frames: Sequence[tuple[int, bytes]],
    *,
    vnet: bytes = bytes(10),
    status: int = 0,
    tci: int = 0,
    tpid: int = 0,
    length: int | None = None,
) -> bytes:
    """A block of frames (t_ns, data) as the kernel lays it out: tpacket_block_desc and tpacket3_hdr."""
    body = b""
    for t_ns, data in frames:
        mac = 48 + 16 + len(vnet)
        used = mac + len(data)
        following = used + -used % 16
        on_wire = len(data) if length is None else length
        header = struct.pack(
            "=IIIIIIHHIIHH8x", following, *divmod(t_ns, SECOND), len(data), on_wire, TP_STATUS_USER | status,
            mac, mac + 14, 0, tci, tpid, 0,
        )  # fmt: skip
        body += (header + bytes(16) + vnet + data).ljust(following, b"\0")
    head = struct.pack("=IIIIIIQ16x", 3, 0, TP_STATUS_USER, len(frames), 48, 48 + len(body), 1)
    return head + body


def spool(*blocks: tuple[int, bytes]) -> memoryview:
    return memoryview(b"".join(RECORD.pack(end, len(data)) + data for end, data in blocks))


# ---- blocks


def test_a_block_is_read_as_it_was_laid_out() -> None:
    laid = memoryview(block([(5 * SECOND + 7, b"first"), (6 * SECOND, b"second, and longer")]))
    assert packets_in(laid) == 2
    assert list(frames_in(laid)) == [
        Frame(5 * SECOND + 7, 5, b"first", None), Frame(6 * SECOND, 18, b"second, and longer", None)
    ]  # fmt: skip


def test_a_tag_that_the_kernel_keeps_aside_is_put_back() -> None:
    vnet = VNET_HEADER.pack(1, 0, 0, 0, 34, 16)
    status = TP_STATUS_VLAN_VALID | TP_STATUS_VLAN_TPID_VALID
    laid = block([(1, bytes(range(60)))], vnet=vnet, status=status, tci=42, tpid=0x88A8)
    (frame,) = frames_in(memoryview(laid))
    assert frame.data == bytes(range(12)) + b"\x88\xa8\x00\x2a" + bytes(range(12, 60))
    assert (frame.length, frame.needs_checksum) == (64, (38, 54))


# ---- checksums


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@settings(max_examples=15)
@given(payload=st.binary(max_size=200))
def test_a_checksum_is_completed_as_scapy_computes_it(family: int, transport: str, payload: bytes) -> None:
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    network = IP(src="10.0.0.1", dst="10.0.0.2") if family == 4 else IPv6(src="fd00::1", dst="fd00::2")
    layer, number, offset = (TCP(dport=7), 6, 16) if transport == "tcp" else (UDP(dport=7), 17, 6)
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    right = bytes(link / network / layer / payload)
    start = 34 if family == 4 else 54
    # What the kernel leaves in the field: the pseudo header's sum, not inverted.
    addresses = right[26:34] if family == 4 else right[22:54]
    partial = (int.from_bytes(addresses, "big") + number + len(right) - start) % 0xFFFF
    at = start + offset
    left = right[:at] + partial.to_bytes(2, "big") + right[at + 2 :]
    assert with_checksum(Frame(0, len(left), left, (start, at))) == right


def test_a_sum_of_nothing_is_told_as_ones() -> None:
    """As the kernel does (CSUM_MANGLED_0): zero means, for UDP, that there is none."""
    assert with_checksum(Frame(0, 4, b"\xff\xff\x00\x00", (0, 2))) == b"\xff\xff\xff\xff"


def test_what_was_cut_short_is_left_as_it_is() -> None:
    frame = Frame(0, 9000, bytes(range(100)), (34, 50))
    assert with_checksum(frame) == frame.data


# ---- order


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 9_000_000), max_size=6)), max_size=6))
def test_both_ends_are_laid_in_the_order_of_their_times(blocks: list[tuple[int, list[int]]]) -> None:
    laid = [(end, block([(t_ns, b"%d" % t_ns) for t_ns in times])) for end, times in blocks if times]
    found = list(packets(spool(*laid)))
    assert [one.t_ns for one in found] == sorted(t_ns for _, times in blocks for t_ns in times)
    for end, direction in enumerate((pcapng.INBOUND, pcapng.OUTBOUND)):
        times = sorted(t_ns for one, times in blocks for t_ns in times if one == end)
        assert [one.t_ns for one in found if one.direction == direction] == times
    assert all(one.data == b"%d" % one.t_ns for one in found)


def test_a_frame_that_is_late_by_a_block_is_put_where_it_belongs() -> None:
    early, late = [Frame(t, 1, b"x", None) for t in (1_000, 3_000)], [Frame(2_000, 1, b"x", None)]
    assert [one.t_ns for one in in_order([early, late])] == [1_000, 2_000, 3_000]


def test_no_more_is_kept_waiting_than_can_come_late() -> None:
    """A long capture is not gathered in memory: what is settled is given on before the next block is read."""
    read = 0

    def blocks() -> object:
        nonlocal read
        for number in range(100):
            read = number
            yield [Frame(number * SECOND, 1, b"x", None)]

    stream = in_order(blocks())  # type: ignore[arg-type]
    assert next(stream).t_ns == 0
    assert read == 1


# ---- marks


def frames(*seconds: float) -> list[pcapng.Packet]:
    return [pcapng.Packet(round(s * SECOND), pcapng.INBOUND, 1, b"x") for s in seconds]


def test_a_mark_stands_on_the_first_frame_that_is_not_earlier() -> None:
    marks = [Mark(2 * SECOND, "pause"), Mark(2 * SECOND + 500_000_000, "commit"), Mark(4 * SECOND, "resume")]
    found = list(commented(frames(101, 102, 103, 104, 105), marks, STILL))
    assert [[comment.split(" [")[0] for comment in one.comments] for one in found] == [
        [], ["pause"], ["commit"], ["resume"], []
    ]  # fmt: skip
    assert found[2].comments == (
        "commit [2500000000 ns CLOCK_MONOTONIC, 500.000000 ms before this frame]",
    )


def test_marks_after_the_last_frame_stand_on_it_and_say_so() -> None:
    marks = [Mark(0, "pause"), Mark(9 * SECOND, "resume")]
    (found,) = commented(frames(101), marks, STILL)
    assert [comment.split(", ")[1] for comment in found.comments] == [
        "1000.000000 ms before this frame]", "8000.000000 ms after this frame]"
    ]  # fmt: skip


def test_every_mark_stands_on_one_frame_alone() -> None:
    marks = [Mark(number * 100_000_000, f"m{number}") for number in range(40)]
    found = list(commented(frames(100.5, 100.55, 101, 103.99, 104), marks, STILL))
    names = [comment.split(" [")[0] for one in found for comment in one.comments]
    assert names == [f"m{number}" for number in range(40)]


# ---- clocks and the whole


def test_a_clock_that_is_slewed_is_followed_evenly() -> None:
    slewed = Clocks(Reading(0, 100, 1), Reading(1_000_000, 1_000_300, 1))
    assert [slewed.realtime_ns(t) for t in (0, 500_000, 1_000_000)] == [100, 500_200, 1_000_300]
    assert "CHANGED" not in slewed.told()


def test_a_clock_that_was_set_is_told() -> None:
    assert "CHANGED by 2000.000 ms" in Clocks(Reading(0, 0, 1), Reading(SECOND, 3 * SECOND, 1)).told()


def test_a_whole_file() -> None:
    ends = ("client1/eth0", "switch/client1")
    capture = Capture("client1", ends, STILL, 5, 2, 96, "stopped: full", "a test")
    taken = spool((0, block([(102 * SECOND, b"in")], length=200)), (1, block([(101 * SECOND, b"out")])))
    out = io.BytesIO()
    written = write(capture, taken, [Mark(2 * SECOND, "resume"), Mark(1 * SECOND, "pause")], out)
    found = pcapng.read(out.getvalue())
    assert (written.frames, written.bytes) == (2, 5)
    assert [(one.data, one.direction, one.length) for one in found.packets] == [
        (b"out", pcapng.OUTBOUND, 3), (b"in", pcapng.INBOUND, 200)
    ]  # fmt: skip
    assert found.statistics == pcapng.Statistics(100 * SECOND, 110 * SECOND, 5, 2)
    assert (found.interface, found.snap_length) == ("client1/eth0", 96)
    lines = found.comment.splitlines()
    assert "2 of 5 frames found no room and are missing; stopped: full" in lines[0]
    assert [line.split("  ")[1].split(" [")[0] for line in lines[2:]] == ["pause", "resume"]
    assert lines[2].startswith("00:01:41.000000000 UTC")


def test_nothing_taken_is_a_file_too() -> None:
    out = io.BytesIO()
    write(Capture("a", ("a/x", "b/y"), STILL, 0, 0), memoryview(b""), [Mark(1, "pause")], out)
    found = pcapng.read(out.getvalue())
    assert found.packets == []
    assert "pause" in found.comment
