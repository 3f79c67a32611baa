"""Captures of real links: every frame once, whole, in order, with the sums that Wireshark wants to see."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from netns import block_ring, pcapng
from netns.apply import Topology, apply
from netns.capture import CaptureError, CaptureFile, Captures, Tapped
from netns.capture_file import Mark
from netns.conditions import Conditions
from netns.impairment import ConditionedLink
from netns.observe import counters
from netns.topology import Bridge, End, Link, Node, Spec, plan
from tests.conftest import require

pytestmark = pytest.mark.universe(preload=("netns.capture",))

LINK = Tapped(("a", "eth0"), ("switch", "a"))
LINKS = {"a": LINK, "b": Tapped(("b", "eth0"), ("switch", "b"))}
ADDRESSES = {"a": ("10.0.0.1", "fd00::1"), "b": ("10.0.0.2", "fd00::2")}
PORT = 40_000
"""One that Wireshark takes for no protocol's."""
BULK = bytes(range(251)) * 4000
"""A megabyte, so that a veth carries it in frames of tens of kilobytes."""


@pytest.fixture
def network() -> Iterator[Topology]:
    links = tuple(
        Link(End(node, "eth0", addresses=(f"{v4}/24", f"{v6}/64")), End("switch", node, bridge="br0"))
        for node, (v4, v6) in ADDRESSES.items()
    )
    nodes = (Node("switch", bridges=(Bridge("br0"),)), Node("a"), Node("b"))
    with apply(plan(Spec(nodes, links))) as topology:
        yield topology


def converse(network: Topology, family: socket.AddressFamily, data: bytes) -> None:
    """`b` asks with a byte, `a` answers with `data` and hangs up."""
    v4, v6 = ADDRESSES["a"]
    with closing(network.namespace("a").socket(family, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((v4 if family == socket.AF_INET else v6, PORT))
        listener.listen()
        with closing(network.namespace("b").socket(family, socket.SOCK_STREAM)) as asking:
            asking.settimeout(10)
            asking.connect(listener.getsockname()[:2])
            asking.send(b"?")
            answering, _ = listener.accept()
            with answering:
                answering.settimeout(10)
                assert answering.recv(1) == b"?"
                got = 0
                view = memoryview(data)
                answering.setblocking(False)
                while got < len(data):
                    with suppress(BlockingIOError):  # its queue is full: what is in it is read first
                        view = view[answering.send(view) :] if view else view
                    got += len(asking.recv(1 << 20))
            assert asking.recv(1) == b""


def read(made: CaptureFile) -> pcapng.File:
    return pcapng.read(made.file.read_bytes())


def tshark(file: Path, *words: str) -> list[str]:
    require("tshark", shutil.which("tshark") is not None)
    checks = [word for proto in ("ip", "tcp", "udp") for word in ("-o", f"{proto}.check_checksum:TRUE")]
    command = ["tshark", "-r", str(file), *checks, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def test_every_frame_is_there_once_with_its_direction(network: Topology, tmp_path: Path) -> None:
    with Captures(network, LINKS, tmp_path) as captures:
        before = counters(network.namespace("a"))["eth0"]
        converse(network, socket.AF_INET, BULK)
        after = counters(network.namespace("a"))["eth0"]
        captures.stop()
        made = {one.link: one for one in captures.write()}
    found = read(made["a"])
    assert found.statistics is not None
    assert (made["a"].dropped, made["a"].stopped, found.statistics.dropped) == (0, None, 0)
    assert found.statistics.received == made["a"].frames == len(found.packets)
    for direction, frames, size in (
        (pcapng.INBOUND, after.received_frames - before.received_frames, None),
        (pcapng.OUTBOUND, after.sent_frames - before.sent_frames, after.sent_bytes - before.sent_bytes),
    ):
        there = [one for one in found.packets if one.direction == direction]
        assert len(there) >= frames > 0  # a group's report may come before the first count or after the last
        assert size is None or sum(one.length for one in there) >= size
    assert [one.t_ns for one in found.packets] == sorted(one.t_ns for one in found.packets)
    assert max(one.length for one in found.packets) > 9000, "nothing large: no offload was exercised"
    assert all(len(one.data) == one.length for one in found.packets)
    # What a sends comes to b over both links: the same frames, at the other end of the other link.
    sent = [one.data for one in found.packets if one.direction == pcapng.OUTBOUND and len(one.data) > 1000]
    came = [one.data for one in read(made["b"]).packets if one.direction == pcapng.INBOUND]
    assert sent == [data for data in came if len(data) > 1000]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pcapng", "b.pcapng"]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_wireshark_finds_every_checksum_right(
    network: Topology, tmp_path: Path, family: socket.AddressFamily
) -> None:
    with Captures(network, {"a": LINK}, tmp_path) as captures:
        converse(network, family, BULK[:200_000])
        captures.stop()
        (made,) = captures.write()
    statuses = tshark(made.file, "-Y", "tcp", "-T", "fields", "-e", "tcp.checksum.status")
    assert len(statuses) > 6
    assert set(statuses) == {"1"}  # good; 0 would be bad, 2 not looked at
    assert tshark(made.file, "-Y", "_ws.malformed || ip.checksum.status == 0") == []


def test_the_sums_are_ours_and_not_there_before(
    network: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without our completing them, Wireshark complains of the same frames."""
    monkeypatch.setattr("netns.capture_file.with_checksum", lambda frame: frame.data)
    with Captures(network, {"a": LINK}, tmp_path) as captures:
        converse(network, socket.AF_INET, BULK[:20_000])
        captures.stop()
        (made,) = captures.write()
    assert "0" in tshark(made.file, "-Y", "tcp", "-T", "fields", "-e", "tcp.checksum.status")


def test_marks_are_comments_on_frames_that_came_after_them(network: Topology, tmp_path: Path) -> None:
    with Captures(network, {"a": LINK}, tmp_path) as captures:
        marks = [Mark(time.monotonic_ns(), "pause: before all")]
        converse(network, socket.AF_INET, b"first")
        marks.append(Mark(time.monotonic_ns(), "resume: in between"))
        converse(network, socket.AF_INET, b"second")
        marks.append(Mark(time.monotonic_ns(), "end: after all"))
        captures.stop()
        (made,) = captures.write(marks)
    found = read(made).packets
    place = {comment.split(":")[0]: n for n, one in enumerate(found) for comment in one.comments}
    text = [one.data for one in found]
    first = next(n for n, data in enumerate(text) if b"first" in data)
    second = next(n for n, data in enumerate(text) if b"second" in data)
    theirs = [n for n, data in enumerate(text) if data[12:14] == b"\x08\x00"]  # not a group's report
    assert place["pause"] <= theirs[0] < first < place["resume"] < second
    assert place["end"] >= theirs[-1]
    shown = tshark(made.file, "-Y", "frame.comment", "-T", "fields", "-e", "frame.comment")
    assert [line.split(":")[0] for line in shown] == ["pause", "resume", "end"]


def test_on_a_link_with_a_delay_a_frame_is_stamped_when_it_comes_out(
    network: Topology, tmp_path: Path
) -> None:
    """The delay is made by leading frames away where they leave: whoever taps there sees none of them."""
    delay_ns = 30_000_000
    with ConditionedLink(network, LINK.near, LINK.far) as conditions:
        conditions.set(Conditions(delay_ns=delay_ns), Conditions(delay_ns=delay_ns))
        with Captures(network, LINKS, tmp_path) as captures:
            converse(network, socket.AF_INET, BULK[:100_000])
            captures.stop()
            files = {one.link: read(one) for one in captures.write()}
    for link, direction in (("b", pcapng.OUTBOUND), ("a", pcapng.OUTBOUND)):
        other = "ab"[link == "a"]
        entered = {one.data: one.t_ns for one in files[link].packets if one.direction == direction}
        left = {one.data: one.t_ns for one in files[other].packets if one.direction != direction}
        both = [left[data] - entered[data] for data in entered if data in left and data[12:14] == b"\x08\x00"]
        assert len(both) > 3
        if link == "b":  # the other link's end is before the delay; for a's own frames it is after it
            assert min(both) >= delay_ns
        else:
            assert min(both) < delay_ns


def test_frames_are_cut_where_asked(network: Topology, tmp_path: Path) -> None:
    link = Tapped(LINK.near, LINK.far, snap_bytes=96)
    with Captures(network, {"a": link}, tmp_path) as captures:
        converse(network, socket.AF_INET, BULK[:100_000])
        captures.stop()
        (made,) = captures.write()
    found = read(made)
    assert found.snap_length == 96
    assert max(len(one.data) for one in found.packets) == 96
    assert max(one.length for one in found.packets) > 9000
    assert sum(one.length for one in found.packets) > 100_000


def test_a_capture_ends_at_its_limit_and_says_so(network: Topology, tmp_path: Path) -> None:
    with Captures(network, {"a": LINK}, tmp_path, limit_bytes=1 << 20) as captures:
        for _ in range(3):
            converse(network, socket.AF_INET, BULK)
        captures.stop()
        (made,) = captures.write()
    assert made.stopped == "stopped at the limit of 1 MiB"
    assert made.file.stat().st_size < 2 << 20
    assert "stopped at the limit" in read(made).comment


def test_what_finds_no_room_is_counted(network: Topology) -> None:
    """A ring of two blocks, read by nobody while a megabyte comes by."""
    tap = network.namespace("b").socket(socket.AF_PACKET, socket.SOCK_RAW)
    ring = block_ring.BlockRing(tap, "eth0", 2)
    with closing(ring):
        converse(network, socket.AF_INET, BULK)
        ring.unhook()
        ring.count()
        taken = 0
        while (block := ring.peek()) is not None:
            taken += block_ring.packets_in(block)
            block.release()
            ring.pop()
    assert ring.dropped > 0
    assert 0 < taken <= ring.received - ring.dropped


def test_left_by_an_error_it_still_writes(network: Topology, tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), Captures(network, {"a": LINK}, tmp_path):
        converse(network, socket.AF_INET, b"seen")
        raise ZeroDivisionError
    (file,) = tmp_path.iterdir()
    assert any(b"seen" in one.data for one in pcapng.read(file.read_bytes()).packets)


def test_left_by_ctrl_c_it_leaves_nothing(network: Topology, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Captures(network, {"a": LINK}, tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_interface_that_is_not_there_is_told(network: Topology, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="capture of x"):
        Captures(network, {"x": Tapped(("a", "eth9"), ("switch", "a"))}, tmp_path)
    assert list(tmp_path.iterdir()) == []
