"""Networks that stand: traffic passes, limits hold, and what one can see in them is so."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netns import namespace as namespaces
from netns import syscalls
from netns.apply import Topology, TopologyError, apply, extend, read_sysctl, write_sysctl
from netns.links import LinkError, Links
from netns.namespace import Namespace
from netns.observe import (
    ForwardingChange,
    ForwardingEntry,
    ForwardingWatch,
    Neighbour,
    ObserveError,
    carries,
    counters,
    forwarding,
    neighbours,
)
from netns.steps import BringUp, MakeNode
from netns.topology import Bridge, End, Link, Node, Spec, plan
from tests.conftest import require

pytestmark = pytest.mark.universe

DEADLINE_S = 20.0
ETH_P_ALL = 3
MAC_A = "02:00:00:00:00:0a"
SPEC = Spec(
    nodes=(
        Node("switch", bridges=(Bridge("br0", mac="02:00:00:00:00:01"),)),
        Node("a", sysctls=(("net.ipv4.tcp_sack", "0"),)),
        Node("b"),
    ),
    links=(
        Link(
            End("a", "eth0", mac=MAC_A, addresses=("10.0.0.1/24", "fd00::1/64")),
            End("switch", "to-a", bridge="br0"),
        ),
        Link(
            End("b", "eth0", addresses=("10.0.0.2/24", "fd00::2/64")),
            End("switch", "to-b", bridge="br0"),
        ),
        Link(
            End("a", "wire", addresses=("10.1.0.1/30",)),
            End("b", "wire", addresses=("10.1.0.2/30",)),
            mtu=9000,
        ),
    ),
)


@pytest.fixture
def topology() -> Iterator[Topology]:
    with apply(plan(SPEC)) as made:
        yield made


def _connected(source: Namespace, target: Namespace, address: str) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection from one namespace to an address in another."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with target.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen()
        client = source.socket(family, socket.SOCK_STREAM)
        client.settimeout(DEADLINE_S)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        server.settimeout(DEADLINE_S)
        return client, server


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2", "10.1.0.2"])
def test_tcp_passes_over_bridge_and_wire(topology: Topology, address: str) -> None:
    client, server = _connected(topology.namespace("a"), topology.namespace("b"), address)
    with client, server:
        client.sendall(b"x" * 100_000)
        client.shutdown(socket.SHUT_WR)
        received = 0
        while data := server.recv(65536):
            received += len(data)
        assert received == 100_000


def test_interfaces_are_as_the_spec_says(topology: Topology) -> None:
    said = subprocess.run(
        ["ip", "netns", "exec", "a", "ip", "addr"], capture_output=True, text=True, check=True
    ).stdout
    assert MAC_A in said
    assert "inet 10.0.0.1/24" in said
    assert "inet6 fd00::1/64 scope global nodad" in said
    assert "mtu 9000" in said
    assert "fe80:" not in said
    assert read_sysctl(topology.namespace("a"), "net.ipv4.tcp_sack") == "0"
    assert read_sysctl(topology.namespace("b"), "net.ipv4.tcp_sack") == "1"
    assert topology.nodes == ("switch", "a", "b")


def test_a_network_is_ready_when_apply_returns(topology: Topology) -> None:
    """Without a number of its own for each end of a veth, a bridge hears of the first carrier up to 1 s
    later.
    """
    for node, ifname in (("switch", "to-a"), ("switch", "to-b"), ("a", "eth0"), ("b", "wire")):
        assert carries(topology.namespace(node), ifname)
    with topology.namespace("a").socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        with topology.namespace("b").socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("10.0.0.2", 9))
            receiver.settimeout(DEADLINE_S)
            began_s = time.monotonic()
            sender.sendto(b"first", ("10.0.0.2", 9))
            assert receiver.recv(10) == b"first"
            assert time.monotonic() - began_s < 1.0  # an ARP request that is lost is repeated after 1 s


def test_equal_numbers_at_both_ends_are_what_is_avoided() -> None:
    with apply((MakeNode("a", "cubic"), MakeNode("b", "cubic"))) as topology:
        a, b = topology.namespace("a"), topology.namespace("b")
        with Links(a) as links_a, Links(b) as links_b:
            links_a.add_veth("eth0", MAC_A, b, "eth0", "02:00:00:00:00:0b", 1500)
            assert links_a.index("eth0") != links_b.index("eth0")


def test_nothing_speaks_unasked_but_group_membership() -> None:
    """Every frame of a network from its making on, for as long as router solicitations and DAD would take."""
    heard: list[bytes] = []
    steps = plan(SPEC)
    switch_stands = steps.index(BringUp("switch", "br0")) + 1
    with apply(steps[:switch_stands]) as topology:
        ear = topology.namespace("switch").socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        extend(topology, steps[switch_stands:])
        end_s = time.monotonic() + 2.0
        while (left_s := end_s - time.monotonic()) > 0:
            if select.select([ear], [], [], left_s)[0]:
                heard.append(ear.recv(2048))
        ear.close()
    assert [frame.hex() for frame in heard if not _is_group_membership(frame)] == []


def _is_group_membership(frame: bytes) -> bool:
    """An MLDv2 report: IPv6, hop-by-hop options, ICMPv6 type 143."""
    return frame[12:14] == b"\x86\xdd" and frame[20] == 0 and frame[62] == 143


def _wire(a: str, b: str, rate_mbit: float) -> Link:
    return Link(End("a", "x", addresses=(a,)), End("b", "x", addresses=(b,)), rate_mbit=rate_mbit)


def test_a_rate_is_a_rate() -> None:
    limited = Spec(
        (Node("a"), Node("b")),
        (_wire("10.0.0.1/24", "10.0.0.2/24", 80),),
    )
    size = 3_000_000
    with apply(plan(limited)) as topology:
        for source, target, address in (("a", "b", "10.0.0.2"), ("b", "a", "10.0.0.1")):
            # 80 Mbit/s are 10 MB/s; the first bucket passes at once.
            assert _seconds_for(topology, source, target, address, size) > (size - 131072) / 10e6
        topology.set_rate("a", "x", 800)
        fast_s = _seconds_for(topology, "a", "b", "10.0.0.2", size)
        assert fast_s > (size - 200_000) / 100e6
        topology.set_rate("a", "x", None)
        assert "tbf" not in subprocess.run(
            ["ip", "netns", "exec", "a", "tc", "qdisc"], capture_output=True, text=True, check=True
        ).stdout
        topology.set_rate("a", "x", None)  # no limit is no error


def _seconds_for(topology: Topology, source: str, target: str, address: str, size: int) -> float:
    client, server = _connected(topology.namespace(source), topology.namespace(target), address)
    with client, server:
        client.setblocking(False)
        left, received, began_s = size, 0, time.monotonic()
        while received < size:
            readable, writable, _ = select.select([server], [client] if left else [], [], DEADLINE_S)
            if writable:
                left -= client.send(b"x" * min(left, 65536))
            if readable:
                received += len(server.recv(1 << 20))
        return time.monotonic() - began_s


def test_congestion_control_is_told_as_it_is(topology: Topology) -> None:
    for node in topology.nodes:
        with topology.namespace(node).entered():
            assert topology.congestion_control[node] == _default_congestion_control()


def test_congestion_control_is_set_where_it_may_be() -> None:
    require("reno congestion control in namespaces", "reno" in _allowed_congestion_controls())
    with apply((MakeNode("a", "reno"), MakeNode("b", "no-such"))) as topology:
        assert topology.congestion_control["a"] == "reno"
        with topology.namespace("b").entered():
            assert topology.congestion_control["b"] == _default_congestion_control()


def _allowed_congestion_controls() -> list[str]:
    with Namespace.create("probe") as probe:
        allowed = read_sysctl(probe, "net.ipv4.tcp_available_congestion_control").split()
    probe.delete()
    return allowed


def _default_congestion_control() -> str:
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


# ---- what can be seen


def test_neighbours_are_seen(topology: Topology) -> None:
    client, server = _connected(topology.namespace("a"), topology.namespace("b"), "10.0.0.2")
    client6, server6 = _connected(topology.namespace("a"), topology.namespace("b"), "fd00::2")
    with client, server, client6, server6:
        seen = {entry.address: entry for entry in neighbours(topology.namespace("b"))}
    for address in ("10.0.0.1", "fd00::1"):
        assert seen[address].mac == MAC_A
        assert seen[address].ifname == "eth0"
        assert seen[address].state in ("reachable", "stale", "delay", "probe")


def test_an_unanswered_neighbour_has_no_mac(topology: Topology) -> None:
    with topology.namespace("a").socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"?", ("10.0.0.77", 9))
    assert Neighbour("10.0.0.77", None, "eth0", "incomplete") in neighbours(topology.namespace("a"))


def _say(topology: Topology, node: str, ifname: str, mac: str) -> None:
    """Send one broadcast frame from this MAC."""
    with topology.namespace(node).socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((ifname, 0))
        sender.send(b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + b"\x88\xb5" + bytes(46))


def test_the_forwarding_table_is_seen_and_its_changes_are_told(topology: Topology) -> None:
    switch, moving = topology.namespace("switch"), "02:00:00:00:00:42"
    assert ForwardingEntry("02:00:00:00:00:01", "br0", "local") in forwarding(switch, "br0")
    with ForwardingWatch(switch, "br0") as watch:
        for node, port in (("a", "to-a"), ("b", "to-b"), ("a", "to-a")):
            before_ns = time.monotonic_ns()
            _say(topology, node, "eth0", moving)
            change = _change_of(watch, moving)
            assert change.entry == ForwardingEntry(moving, port, "learned")
            assert not change.gone
            assert before_ns <= change.at_ns <= time.monotonic_ns()
            assert change.entry in forwarding(switch, "br0")
        _bridge_fdb("del", moving, "dev", "to-a", "master")
        assert _change_of(watch, moving).gone
    assert moving not in [entry.mac for entry in forwarding(switch, "br0")]


def _change_of(watch: ForwardingWatch, mac: str) -> ForwardingChange:
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        for change in watch.read(DEADLINE_S):
            if change.entry.mac == mac:
                return change
    raise AssertionError(f"nothing was told of {mac}")


def _bridge_fdb(*words: str) -> None:
    subprocess.run(["ip", "netns", "exec", "switch", "bridge", "fdb", *words], check=True)


def test_a_static_entry_is_seen_as_one_and_an_unwatched_port_by_its_name(topology: Topology) -> None:
    switch = topology.namespace("switch")
    with ForwardingWatch(switch, "br0") as watch:
        with Links(switch) as links:  # a port that the watch has not seen when it began
            links.add_veth("late", "02:00:00:00:01:01", topology.namespace("a"), "x", MAC_A, 1500)
            links.enslave("late", "br0")
        mac = "02:00:00:00:00:43"
        _bridge_fdb("add", mac, "dev", "late", "master", "static")
        assert _change_of(watch, mac).entry == ForwardingEntry(mac, "late", "static")


def test_counters_count(topology: Topology) -> None:
    before = counters(topology.namespace("a"))["eth0"]
    for _ in range(10):
        _say(topology, "a", "eth0", MAC_A)
    after = counters(topology.namespace("a"))["eth0"]
    assert after.sent_frames - before.sent_frames >= 10
    assert after.sent_bytes - before.sent_bytes >= 600
    assert counters(topology.namespace("a")).keys() == {"lo", "eth0", "wire"}


def test_looking_where_nothing_is(topology: Topology) -> None:
    for look in (forwarding, carries, ForwardingWatch):
        with pytest.raises(ObserveError, match="a: there is no interface br7"):
            look(topology.namespace("a"), "br7")
    with pytest.raises(KeyError, match="no node 'c'; there are: switch, a, b"):
        topology.namespace("c")
    with pytest.raises(LinkError, match="a: there is no interface eth7"):
        topology.set_rate("a", "eth7", 1)


# ---- failures, and the end


def test_a_step_that_fails_is_named_and_leaves_nothing() -> None:
    steps = [*plan(SPEC), BringUp("a", "nothing")]
    with pytest.raises(TopologyError, match="a: nothing up: a: there is no interface nothing"):
        apply(steps)
    assert namespaces.names() == []


def test_a_link_without_carrier_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netns.apply._CARRIER_DEADLINE_S", 0.1)
    steps = [step for step in plan(SPEC) if step != BringUp("b", "wire")]
    with pytest.raises(TopologyError, match="b/wire has no carrier after"):
        apply(steps)
    assert namespaces.names() == []


def test_a_sysctl_that_is_none_is_named() -> None:
    with pytest.raises(TopologyError, match=r"a: sysctl net.ipv4.nonsense = 1: .*nonsense"):
        apply(plan(Spec((Node("a", sysctls=(("net.ipv4.nonsense", "1"),)),))))
    assert namespaces.names() == []


def test_a_name_that_is_taken_is_refused_and_kept() -> None:
    with Namespace.create("a"):
        with pytest.raises(TopologyError, match="node a"):
            apply(plan(SPEC))
        assert namespaces.names() == ["a"]


def test_deleting_takes_everything_away(topology: Topology) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        topology.delete()
        assert namespaces.names() == []
        topology = apply(plan(SPEC))
    topology.delete()
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def test_entering_comes_back_and_sockets_stay(topology: Topology) -> None:
    here = Path("/proc/thread-self/ns/net").stat().st_ino
    with topology.namespace("a").entered():
        assert Path("/proc/thread-self/ns/net").stat().st_ino != here
    with pytest.raises(ZeroDivisionError), topology.namespace("a").entered():
        raise ZeroDivisionError
    assert Path("/proc/thread-self/ns/net").stat().st_ino == here
    write_sysctl(topology.namespace("a"), "net.ipv4.ip_forward", "1")
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "0\n"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "x" * 256, "a\0b"])
def test_what_is_no_name_for_a_namespace(name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        Namespace.create(name)


def test_a_namespace_that_is_interrupted_when_it_has_its_name_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C between two system calls: the name is mounted then, and a mounted file cannot be removed."""
    mount = syscalls.mount

    def interrupted(*arguments: Any) -> None:
        mount(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(syscalls, "mount", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Namespace.create("halfway")
    assert "halfway" not in namespaces.names()
    monkeypatch.undo()
    with Namespace.create("halfway"):
        assert "halfway" in namespaces.names()
