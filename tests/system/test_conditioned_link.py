"""A link under conditions, by each backend, while traffic flows: a contract that each must keep.

Frames are numbered datagrams from `a` to `b`, which stand on either side of a switch; the link conditioned
is the one between `a` and the switch, so one end of it is a bridge's port. Nothing here measures how good the
timing is: on a loaded machine it is late. Never early.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns import namespace as namespaces
from netns.apply import Topology, apply
from netns.conditions import Conditions, ConditionsError
from netns.detour import via
from netns.impairment import ConditionedLink
from netns.kernel_queues import has
from netns.link_figures import BackendMissing, Wanted
from netns.links import LinkError, Links
from netns.observe import counters
from netns.relayed import RelayDied
from netns.topology import Bridge, End, Link, Node, Spec, plan
from tests.conftest import require
from tests.system.offloaded import segments_that_arrive

pytestmark = pytest.mark.universe

MS = 1_000_000
DEADLINE_S = 20.0
NONE = Conditions.none()
A, SWITCH_PORT = ("a", "eth0"), ("switch", "to-a")
SPEC = Spec(
    nodes=(Node("switch", bridges=(Bridge("br0"),)), Node("a"), Node("b")),
    links=(
        Link(
            End("a", "eth0", addresses=("10.0.0.1/24", "fd00::1/64")), End("switch", "to-a", bridge="br0")
        ),
        Link(
            End("b", "eth0", addresses=("10.0.0.2/24", "fd00::2/64")), End("switch", "to-b", bridge="br0")
        ),
    ),
)


@pytest.fixture
def topology() -> Iterator[Topology]:
    with apply(plan(SPEC)) as made:
        yield made


@pytest.fixture(params=["relay", "netem"])
def backend(request: pytest.FixtureRequest) -> Wanted:
    if request.param == "netem":
        require("netem", lambda: has("netem"))
        return "netem"
    return "relay"


@pytest.fixture
def link(topology: Topology, backend: Wanted) -> Iterator[ConditionedLink]:
    with ConditionedLink(topology, A, SWITCH_PORT, backend=backend) as made:
        yield made


class Datagrams:
    """Numbered datagrams from `a` to `b`, and what arrives, with the kernel's times."""

    def __init__(self, topology: Topology) -> None:
        self._in = topology.namespace("b").socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._in.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._in.bind(("10.0.0.2", 0))
        self._in.settimeout(DEADLINE_S)
        self._out = topology.namespace("a").socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._out.connect(self._in.getsockname())
        self.say("hello")  # who is where is known from here on
        assert self.hear() == "hello"

    def say(self, word: str) -> None:
        self._out.send(word.encode())

    def hear(self, within_s: float = DEADLINE_S) -> str | None:
        self._in.settimeout(within_s)
        try:
            return self._in.recv(100).decode()
        except TimeoutError:
            return None

    def send(self, count: int, pause_s: float = 0.0) -> None:
        for number in range(count):
            self.say(str(number))
            threading.Event().wait(pause_s)

    def receive(self, silence_s: float = 0.5) -> list[int]:
        """The numbers that arrive until none does for so long."""
        return [int(word) for word in iter(lambda: self.hear(silence_s), None)]


def test_a_delay_is_given_in_each_direction_and_no_frame_is_early(
    topology: Topology, link: ConditionedLink
) -> None:
    datagrams = Datagrams(topology)
    link.set(Conditions(delay_ns=30 * MS), NONE)
    began_ns = time.monotonic_ns()
    datagrams.say("late")
    assert datagrams.hear() == "late"
    assert time.monotonic_ns() - began_ns >= 30 * MS
    link.set(NONE, Conditions(delay_ns=2000 * MS))
    began_ns = time.monotonic_ns()
    datagrams.say("soon")
    assert datagrams.hear() == "soon"
    assert time.monotonic_ns() - began_ns < 2000 * MS  # it is the other direction that waits


def test_loss_is_that_of_the_direction_and_is_counted(topology: Topology, link: ConditionedLink) -> None:
    datagrams = Datagrams(topology)
    link.set(Conditions(loss=0.3, seed=4), NONE)
    datagrams.send(300, 0.0002)
    arrived = datagrams.receive()
    assert 160 < len(arrived) < 260
    assert arrived == sorted(arrived)
    figures = link.figures()
    # A report by which `a` joins a group may be among them.
    assert figures.forward.lost in range(300 - len(arrived), 303 - len(arrived))
    assert figures.forward.received_frames in range(300, 303)
    assert not figures.backward.lost
    link.set(Conditions(loss=1.0), NONE)
    datagrams.send(10)
    assert datagrams.receive() == []


def test_duplicates_arrive(topology: Topology, link: ConditionedLink) -> None:
    datagrams = Datagrams(topology)
    link.set(Conditions(duplication=1.0), NONE)
    datagrams.send(50, 0.0002)
    assert sorted(datagrams.receive()) == sorted([*range(50)] * 2)


def test_reordering_lets_some_overtake(topology: Topology, link: ConditionedLink) -> None:
    datagrams = Datagrams(topology)
    link.set(Conditions(delay_ns=30 * MS, reordering=0.3, seed=1), NONE)
    datagrams.send(200, 0.001)
    arrived = datagrams.receive()
    assert sorted(arrived) == list(range(200))
    assert arrived != sorted(arrived)


def test_a_rate_is_not_exceeded(topology: Topology, link: ConditionedLink) -> None:
    """200 datagrams of 1000 bytes at 8 Mbit/s take 200 ms, however fast they are sent."""
    datagrams = Datagrams(topology)
    link.set(Conditions(rate_bits_per_s=8e6, queue_frames=1000), NONE)
    began_ns = time.monotonic_ns()
    for number in range(200):
        datagrams.say(f"{number:0958d}")  # 42 bytes of headers besides
    arrived = [datagrams.hear() for _ in range(200)]
    assert time.monotonic_ns() - began_ns >= 199 * MS
    assert None not in arrived


def test_a_full_queue_drops(topology: Topology, link: ConditionedLink) -> None:
    datagrams = Datagrams(topology)
    link.set(Conditions(rate_bits_per_s=2e4, queue_frames=20), NONE)  # so slow that no machine is slower
    datagrams.send(200)
    arrived = datagrams.receive()
    assert arrived[:10] == list(range(10))
    assert len(arrived) < 100
    assert link.figures().forward.queue_dropped == 200 - len(arrived)


def test_without_conditions_nothing_of_it_is_left(topology: Topology, link: ConditionedLink) -> None:
    before = {node: sorted(counters(topology.namespace(node))) for node in topology.nodes}
    link.set(Conditions(delay_ns=5 * MS), Conditions(delay_ns=5 * MS))
    link.reset()
    assert {node: sorted(counters(topology.namespace(node))) for node in topology.nodes} == before
    assert namespaces.names() == ["a", "b", "switch"]
    datagrams = Datagrams(topology)
    datagrams.send(10)
    assert datagrams.receive(0.2) == list(range(10))
    assert link.figures().backend == "none"


def test_conditions_that_hold_go_on_if_others_are_refused(topology: Topology, link: ConditionedLink) -> None:
    datagrams = Datagrams(topology)
    asked = Conditions(delay_ns=20 * MS)
    link.set(asked, NONE)
    if not has("netem"):
        with pytest.raises(BackendMissing, match="netem"):
            link.set(Conditions(delay_ns=5 * MS), NONE, backend="netem")
    with pytest.raises(ConditionsError, match="netem"):
        link.set(Conditions(delay_ns=5 * MS, jitter_ns=MS), NONE, backend="netem")
    assert link.asked == (asked, NONE)
    began_ns = time.monotonic_ns()
    datagrams.say("late")
    assert datagrams.hear() == "late"
    assert time.monotonic_ns() - began_ns >= 20 * MS


def test_a_link_that_is_not_there_is_named(topology: Topology, backend: Wanted) -> None:
    with ConditionedLink(topology, ("a", "eth9"), SWITCH_PORT, backend=backend) as link:
        with pytest.raises(LinkError, match="eth9"):
            link.set(Conditions(delay_ns=MS), NONE)
    assert namespaces.names() == ["a", "b", "switch"]


# ---- the relay's own


@pytest.fixture
def relayed(topology: Topology) -> Iterator[ConditionedLink]:
    with ConditionedLink(topology, A, SWITCH_PORT, backend="relay") as made:
        yield made


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_bulk_passes_whole_while_conditions_come_and_go(
    topology: Topology, relayed: ConditionedLink, family: str
) -> None:
    """Frames of 64 KiB with unfinished checksums, and a wire's, both ways, through every change."""
    size = 24 << 20
    address, kind = {
        "ipv4": ("10.0.0.2", socket.AF_INET),
        "ipv6": ("fd00::2", socket.AF_INET6),
    }[family]
    sent = hashlib.blake2b()
    received = hashlib.blake2b()

    def serve(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with accepted:
            while data := accepted.recv(1 << 18):
                received.update(data)
            accepted.sendall(received.digest())

    changes = [
        (Conditions(delay_ns=MS), NONE),
        (Conditions(delay_ns=3 * MS, loss=0.001), Conditions(delay_ns=MS)),
        (NONE, Conditions(delay_ns=2 * MS, loss=0.001)),
        (Conditions(delay_ns=MS, jitter_ns=MS, jitter_reorders=True), Conditions(delay_ns=MS)),
    ]
    with topology.namespace("b").socket(kind, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen()
        serving = threading.Thread(target=serve, args=(listener,))
        serving.start()
        with topology.namespace("a").socket(kind, socket.SOCK_STREAM) as client:
            client.settimeout(60)
            client.connect(listener.getsockname()[:2])
            step = size // 12
            for number in range(12):
                part = struct.pack(">I", number) * (step // 4)
                sent.update(part)
                client.sendall(part)
                relayed.set(*changes[number % 4]) if number % 5 else relayed.reset()
            client.shutdown(socket.SHUT_WR)
            assert client.recv(64) == sent.digest()
        serving.join(DEADLINE_S)


def test_no_frame_is_lost_or_overtaken_when_conditions_change_while_it_is_inside(
    topology: Topology, relayed: ConditionedLink
) -> None:
    datagrams = Datagrams(topology)
    relayed.set(Conditions(delay_ns=100 * MS), NONE)
    sending = threading.Thread(target=datagrams.send, args=(400, 0.001))
    sending.start()
    for delay_ms in (50, 0, 80, 20):
        relayed.set(Conditions(delay_ns=delay_ms * MS + 1000), NONE)
        threading.Event().wait(0.05)
    sending.join()
    assert datagrams.receive() == list(range(400))


def test_a_reset_lets_out_what_is_inside(topology: Topology, relayed: ConditionedLink) -> None:
    datagrams = Datagrams(topology)
    relayed.set(Conditions(delay_ns=300 * MS), NONE)
    datagrams.send(50)
    relayed.reset()
    datagrams.say("50")
    assert datagrams.receive() == list(range(51))


def test_a_direction_that_gets_rid_of_its_conditions_lets_out_what_is_inside(
    topology: Topology, relayed: ConditionedLink
) -> None:
    datagrams = Datagrams(topology)
    other = Conditions(delay_ns=MS)
    relayed.set(Conditions(delay_ns=300 * MS), other)
    datagrams.send(50)
    relayed.set(NONE, other)
    datagrams.say("50")
    assert datagrams.receive() == list(range(51))


def test_offloaded_frames_are_cut_up_where_chance_is_to_strike_a_wires_frames_or_the_kernel_would_drop_them(
    topology: Topology, relayed: ConditionedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def largest(asked: Conditions) -> float:
        relayed.set(asked, NONE)
        _bulk(topology, 4 << 20)
        figures = relayed.figures().forward
        assert figures.received_frames
        before = counters(topology.namespace("a"))[via("eth0")]
        _bulk(topology, 4 << 20)
        after = counters(topology.namespace("a"))[via("eth0")]
        return (after.sent_bytes - before.sent_bytes) / (after.sent_frames - before.sent_frames)

    monkeypatch.setattr("netns.relayed.packet_sockets_take_udp_segments", lambda: True)
    assert largest(Conditions(delay_ns=1000)) > 3000
    assert largest(Conditions(delay_ns=1000, loss=1e-9)) < 1515
    monkeypatch.setattr("netns.relayed.packet_sockets_take_udp_segments", lambda: False)
    assert largest(Conditions(delay_ns=1000)) < 1515


def test_datagrams_that_leave_as_one_frame_are_lost_one_by_one(
    topology: Topology, relayed: ConditionedLink
) -> None:
    a, b = topology.namespace("a"), topology.namespace("b")
    relayed.set(Conditions(delay_ns=1000), NONE)
    assert segments_that_arrive(a, b, "10.0.0.2", frames=5, of=20) == [20] * 5
    relayed.set(Conditions(loss=0.5, seed=9), NONE)
    arrived = segments_that_arrive(a, b, "10.0.0.2", frames=20, of=20)
    assert set(arrived) - {0, 20}
    assert 0 < sum(arrived) < 400


def _bulk(topology: Topology, size: int) -> None:
    with topology.namespace("b").socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("10.0.0.2", 0))
        listener.listen()
        with topology.namespace("a").socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect(listener.getsockname())
            accepted, _ = listener.accept()
            sending = threading.Thread(target=lambda: (client.sendall(bytes(size)), client.close()))
            sending.start()
            with accepted:
                while accepted.recv(1 << 20):
                    pass
            sending.join()


def test_a_relay_that_dies_cuts_the_link_and_is_told_and_a_reset_mends_it(
    topology: Topology, relayed: ConditionedLink
) -> None:
    datagrams = Datagrams(topology)
    relayed.set(Conditions(delay_ns=MS), NONE)
    assert relayed._relay is not None
    relayed._relay._process.kill()
    relayed._relay._process.wait(DEADLINE_S)
    datagrams.say("into the void")
    assert datagrams.hear(0.3) is None
    with pytest.raises(RelayDied, match="a/eth0 to switch/to-a"):
        relayed.figures()
    relayed.reset()
    datagrams.say("again")
    assert datagrams.hear() == "again"


def test_a_rate_alone_is_the_kernels_and_the_plans_own_comes_back(topology: Topology) -> None:
    require("tbf", lambda: has("tbf"))
    with ConditionedLink(topology, A, SWITCH_PORT, rate_mbit=100) as link:
        assert link.set(Conditions(rate_bits_per_s=5e6), NONE).backend == "tbf"
        datagrams = Datagrams(topology)
        datagrams.send(20)
        assert datagrams.receive(0.3) == list(range(20))
        assert link.figures().forward.passed_frames
        link.set(Conditions(delay_ns=MS), NONE, backend="relay")
        link.reset()
        assert _rate_bytes_per_s(topology) == 100e6 / 8


def _rate_bytes_per_s(topology: Topology) -> float:
    with Links(topology.namespace("a")) as links:
        (queue,) = links._ask("queues", "get_qdiscs", index=links.index("eth0"))
        return float(queue.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")["rate"])


def test_a_link_whose_end_is_down_passes_nothing(topology: Topology, relayed: ConditionedLink) -> None:
    """A cable that is cut stays cut: the detour is no way around it."""
    datagrams = Datagrams(topology)
    relayed.set(Conditions(delay_ns=MS), Conditions(delay_ns=MS))
    with Links(topology.namespace("switch")) as links:
        links.set_up("to-a", False)
        datagrams.say("into the void")
        assert datagrams.hear(0.3) is None
        links.set_up("to-a")
    deadline_s = time.monotonic() + DEADLINE_S
    while datagrams.hear(0.05) is None:
        datagrams.say("again")
        assert time.monotonic() < deadline_s


def test_the_relay_ends_with_who_holds_it(topology: Topology) -> None:
    link = ConditionedLink(topology, A, SWITCH_PORT, backend="relay")
    link.set(Conditions(delay_ns=MS), NONE)
    assert link._relay is not None
    pid = link._relay._process.pid
    assert Path(f"/proc/{pid}").exists()
    link.close()
    assert not Path(f"/proc/{pid}").exists()
