"""A switch that keeps to what it knows of an address until that has aged: a guest that has moved is cut off
until then, whatever it says.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from netns.apply import Topology, apply
from netns.namespace import Namespace
from netns.observe import ForwardingEntry, forwarding
from netns.stubborn import StubbornSwitch
from netns.topology import Bridge, End, Link, Node, Spec, plan

pytestmark = pytest.mark.universe

MAC = "02:00:00:00:00:42"
AGEING_NS = 1_500_000_000
DEADLINE_S = 20.0
SPEC = Spec(
    nodes=(Node("switch", bridges=(Bridge("br0"),)), Node("old"), Node("new"), Node("client")),
    links=(
        Link(End("old", "eth0", mac=MAC), End("switch", "to-old", bridge="br0")),
        Link(End("new", "eth0", mac=MAC), End("switch", "to-new", bridge="br0")),
        Link(End("client", "eth0"), End("switch", "to-client", bridge="br0")),
    ),
)
KIND = 0x88B5
_FRAME = bytes.fromhex(MAC.replace(":", "")) + bytes.fromhex("020000000001") + KIND.to_bytes(2, "big")


@pytest.fixture
def topology() -> Iterator[Topology]:
    with apply(plan(SPEC)) as made:
        yield made


def _listen(namespace: Namespace) -> socket.socket:
    heard = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    heard.bind(("eth0", KIND))
    return heard


def _heard(listener: socket.socket, within_s: float) -> bool:
    listener.settimeout(within_s)
    try:
        return bool(listener.recv(100))
    except TimeoutError:
        return False


def _announce(namespace: Namespace) -> None:
    with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        header = bytes.fromhex("ffffffffffff" + MAC.replace(":", "")) + b"\x80\x35"
        out.sendto(header + bytes(46), ("eth0", 0))


def _ask(topology: Topology) -> None:
    with topology.namespace("client").socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        out.sendto(_FRAME + bytes(46), ("eth0", 0))


def _entry(topology: Topology) -> ForwardingEntry | None:
    entries = forwarding(topology.namespace("switch"), "br0")
    return next((one for one in entries if one.mac == MAC), None)


def test_an_address_that_moves_is_cut_off_until_its_entry_has_aged(topology: Topology) -> None:
    old, new = (_listen(topology.namespace(node)) for node in ("old", "new"))
    with StubbornSwitch(topology.namespace("switch"), "br0", [MAC], AGEING_NS) as switch:
        _announce(topology.namespace("old"))
        (pinned,) = switch.read(DEADLINE_S)
        assert (pinned.mac, pinned.port, pinned.pinned) == (MAC, "to-old", True)
        _announce(topology.namespace("new"))  # it has moved, and says so
        _ask(topology)
        assert _heard(old, DEADLINE_S)
        assert not _heard(new, 0.05)
        (let_go,) = switch.read(DEADLINE_S)
        assert (let_go.port, let_go.pinned) == ("to-old", False)
        assert let_go.t_ns - pinned.t_ns >= AGEING_NS
        _announce(topology.namespace("new"))
        (pinned,) = switch.read(DEADLINE_S)
        assert (pinned.port, pinned.pinned) == ("to-new", True)
        _ask(topology)
        assert _heard(new, DEADLINE_S)
        assert not _heard(old, 0.05)


def test_an_ordinary_switch_follows_at_once(topology: Topology) -> None:
    """The negative control: without the mechanism the same frames go where the address is."""
    old, new = (_listen(topology.namespace(node)) for node in ("old", "new"))
    _announce(topology.namespace("old"))
    _announce(topology.namespace("new"))
    _ask(topology)
    assert _heard(new, DEADLINE_S)
    assert not _heard(old, 0.05)


def test_an_entry_does_not_age_while_its_address_is_heard_where_it_was(topology: Topology) -> None:
    with StubbornSwitch(topology.namespace("switch"), "br0", [MAC], AGEING_NS) as switch:
        _announce(topology.namespace("old"))
        (pinned,) = switch.read(DEADLINE_S)
        while time.monotonic_ns() - pinned.t_ns < 2.2 * AGEING_NS:
            _announce(topology.namespace("old"))
            assert switch.read(0.02) == []


def test_afterwards_it_is_an_ordinary_switch(topology: Topology) -> None:
    _announce(topology.namespace("old"))
    with StubbornSwitch(topology.namespace("switch"), "br0", [MAC], AGEING_NS) as switch:
        assert [one.port for one in switch.read(DEADLINE_S)] == ["to-old"]  # what it had learned before
        entry = _entry(topology)
        assert entry is not None
        assert entry.kind == "static"
    assert _entry(topology) is None
    _announce(topology.namespace("new"))
    entry = _entry(topology)
    assert entry is not None
    assert (entry.port, entry.kind) == ("to-new", "learned")


def test_an_ageing_time_of_nothing_is_refused(topology: Topology) -> None:
    with pytest.raises(ValueError, match="ageing 0 ns"):
        StubbornSwitch(topology.namespace("switch"), "br0", [MAC], 0)
