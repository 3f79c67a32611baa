"""A link measured from its own two ends, against what it was told to do. Bounds are wide: the machine may be
busy; a delay is never too short.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from netns.apply import Topology, apply
from netns.conditions import Conditions
from netns.detour import Place
from netns.impairment import ConditionedLink
from netns.sounding import sound
from netns.topology import Bridge, End, Link, Node, Spec, plan

pytestmark = pytest.mark.universe

MS = 1_000_000
NONE = Conditions.none()
A, SWITCH_PORT = ("a", "eth0"), ("switch", "to-a")
SPEC = Spec(
    nodes=(Node("switch", bridges=(Bridge("br0"),)), Node("a"), Node("b")),
    links=(
        Link(End("a", "eth0"), End("switch", "to-a", bridge="br0")),
        Link(End("b", "eth0"), End("switch", "to-b", bridge="br0")),
    ),
)


@pytest.fixture
def topology() -> Iterator[Topology]:
    with apply(plan(SPEC)) as made:
        yield made


@pytest.fixture
def link(topology: Topology) -> Iterator[ConditionedLink]:
    with ConditionedLink(topology, A, SWITCH_PORT, backend="relay") as made:
        yield made


def test_each_direction_has_its_own_delay(link: ConditionedLink) -> None:
    link.set(Conditions(delay_ns=20 * MS), Conditions(delay_ns=60 * MS))
    sounding = link.sound(400)
    forward, backward = sounding.forward, sounding.backward
    assert (forward.sent, forward.arrived, backward.arrived) == (400, 400, 400)
    assert forward.delay_p50_ns is not None
    assert backward.delay_p50_ns is not None
    assert sounding.round_trip_p50_ns is not None
    assert 20 * MS <= forward.delay_p50_ns < 60 * MS <= backward.delay_p50_ns
    assert sounding.round_trip_p50_ns >= 80 * MS


def test_loss_is_told_of_the_direction_that_loses(link: ConditionedLink) -> None:
    link.set(NONE, Conditions(loss=0.5, seed=3))
    sounding = link.sound(200)
    assert sounding.forward.loss == 0
    assert sounding.backward.loss is not None
    assert 0.3 < sounding.backward.loss < 0.7
    link.set(Conditions(loss=1.0), NONE)
    sounding = link.sound(20)
    assert (sounding.forward.arrived, sounding.backward.sent, sounding.backward.loss) == (0, 0, None)
    assert sounding.round_trip_p50_ns is None


def test_duplicates_are_counted_once(link: ConditionedLink) -> None:
    link.set(Conditions(duplication=1.0), Conditions(duplication=1.0))
    sounding = link.sound(20)
    assert (sounding.forward.arrived, sounding.backward.sent, sounding.backward.arrived) == (20, 20, 20)


def test_a_rate_is_measured_where_one_is_asked(link: ConditionedLink) -> None:
    link.set(Conditions(rate_bits_per_s=2e6), NONE)
    sounding = link.sound(10, rate_probe_s=1.0)
    assert sounding.forward.throughput_bits_per_s is not None
    assert 1e6 < sounding.forward.throughput_bits_per_s < 2.4e6
    assert sounding.backward.throughput_bits_per_s is None


def test_nobody_but_the_two_ends_hears_it(topology: Topology) -> None:
    with topology.namespace("b").socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as listener:
        listener.bind(("eth0", 0x88B5))
        places = [Place(topology.namespace(node), ifname) for node, ifname in (A, SWITCH_PORT)]
        assert sound(*places, count=20).backward.arrived == 20
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.recv(100)
