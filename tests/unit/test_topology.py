"""Specs that can be built, specs that cannot, and the order of what a plan does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns.steps import (
    AddAddress,
    BringUp,
    Enslave,
    LimitRate,
    MakeBridge,
    MakeNode,
    MakeVeth,
    SetSysctl,
    Step,
)
from netns.topology import (
    HIGHEST_RATE_MBIT,
    LOWEST_RATE_MBIT,
    Bridge,
    End,
    Link,
    Node,
    Spec,
    SpecError,
    mac_for,
    parse_rate_mbit,
    plan,
    token_bucket,
)

SWITCH = Node("switch", bridges=(Bridge("br0"),))
A = Node("a", sysctls=(("net.ipv4.tcp_sack", "0"),))
B = Node("b")
A_TO_SWITCH = Link(
    End("a", "eth0", addresses=("10.0.0.1/24",)), End("switch", "to-a", bridge="br0"), rate_mbit=100
)
A_TO_B = Link(End("a", "eth1", addresses=("fd00::1/64",)), End("b", "eth0", addresses=("fd00::2/64",)))
GOOD = Spec((SWITCH, A, B), (A_TO_SWITCH, A_TO_B))


def test_a_plan_makes_each_thing_before_it_is_used() -> None:
    done: set[tuple[str, ...]] = set()
    for step in plan(GOOD):
        assert _needs(step) <= done, step.describe()
        done |= _makes(step)
    assert ("switch", "to-a", "in br0") in done


def _needs(step: Step) -> set[tuple[str, ...]]:
    match step:
        case MakeNode():
            return set()
        case Enslave(node, ifname, bridge):
            return {(node, ifname), (node, bridge)}
        case MakeVeth():
            return {(step.node,), (step.peer_node,)}
        case AddAddress() | LimitRate() | BringUp():
            return {(step.node, step.ifname)}
        case SetSysctl() | MakeBridge():
            return {(step.node,)}


def _makes(step: Step) -> set[tuple[str, ...]]:
    match step:
        case MakeNode(node):
            return {(node,)}
        case MakeBridge(node, ifname):
            return {(node, ifname)}
        case MakeVeth():
            return {(step.node, step.ifname), (step.peer_node, step.peer_ifname)}
        case Enslave(node, ifname, bridge):
            return {(node, ifname, f"in {bridge}")}
        case _:
            return set()


def test_an_interface_comes_up_last_of_all_that_is_done_to_it() -> None:
    up: set[tuple[str, str]] = set()
    for step in plan(GOOD):
        if isinstance(step, (Enslave, AddAddress, LimitRate)):
            assert (step.node, step.ifname) not in up, step.describe()
        if isinstance(step, BringUp):
            up.add((step.node, step.ifname))
    assert len(up) == 5


def test_sysctls_are_set_before_any_interface_is_made() -> None:
    steps = plan(GOOD)
    sysctl = next(number for number, step in enumerate(steps) if isinstance(step, SetSysctl))
    assert sysctl < min(number for number, step in enumerate(steps) if isinstance(step, MakeVeth))


def test_every_step_says_what_it_does() -> None:
    lines = [step.describe() for step in plan(GOOD)]
    assert len(set(lines)) == len(lines)
    assert all("\n" not in line and "object at" not in line for line in lines)
    assert "a: eth0 sends at most 100 Mbit/s" in lines


def test_both_directions_of_a_link_are_limited() -> None:
    assert [step.ifname for step in plan(GOOD) if isinstance(step, LimitRate)] == ["eth0", "to-a"]


def test_no_two_links_have_the_same_number() -> None:
    indexes = [step.index for step in plan(GOOD) if isinstance(step, MakeVeth)]
    assert len(set(indexes)) == len(indexes)
    assert min(indexes) >= 1000  # the kernel, which numbers the other ends, counts from 2 in a new namespace


def test_macs_are_the_same_in_every_run_and_differ_in_every_place() -> None:
    assert plan(GOOD) == plan(GOOD)
    macs = {mac_for(node, ifname) for node in ("a", "b") for ifname in ("eth0", "eth1")}
    assert len(macs) == 4
    assert all(int(mac[:2], 16) & 0b11 == 0b10 for mac in macs)  # local, and nobody's group


def _with_links(*links: Link) -> Spec:
    return replace(GOOD, links=links)


def _end(**changes: object) -> Link:
    return replace(A_TO_SWITCH, a=replace(A_TO_SWITCH.a, **changes))  # type: ignore[arg-type]


BAD = {
    "two nodes of a name": (Spec((A, A)), "node a: there are two"),
    "a node's name is a path": (Spec((Node("../etc"),)), "node '../etc'"),
    "a node without name": (Spec((Node(""),)), "node ''"),
    "a machine's sysctl": (Spec((Node("a", sysctls=(("kernel.panic", "1"),)),)), "kernel.panic"),
    "a sysctl's name is a path": (Spec((Node("a", sysctls=(("net.../x", "1"),)),)), "net.../x"),
    "two interfaces of a name": (_with_links(A_TO_SWITCH, A_TO_SWITCH), "a/eth0: there are two"),
    "an interface named as the bridge": (
        _with_links(Link(End("switch", "br0"), End("a", "eth0"))), "switch/br0: there are two",
    ),
    "an interface named lo": (_with_links(_end(ifname="lo")), "a/lo"),
    "an interface's name too long": (_with_links(_end(ifname="x" * 16)), "1 to 15"),
    "an interface's name with a blank": (_with_links(_end(ifname="eth 0")), "eth 0"),
    "a link to nowhere": (_with_links(_end(node="c")), "there is no node 'c'; there are: switch, a, b"),
    "no such bridge": (_with_links(_end(bridge="br1", addresses=())), "no bridge 'br1'"),
    "an address on a port": (
        _with_links(Link(End("switch", "x", bridge="br0", addresses=("10.0.0.9/24",)), End("a", "eth0"))),
        "switch/x: a bridge's port has no address",
    ),
    "an address twice": (
        _with_links(A_TO_SWITCH, Link(End("b", "eth9", addresses=("10.0.0.1/16",)), End("a", "eth9"))),
        "b/eth9: address 10.0.0.1 is on a/eth0 already",
    ),
    "one IPv6 address in two spellings": (
        _with_links(A_TO_B, Link(End("b", "eth9", addresses=("fd00:0::0:1/64",)), End("a", "eth9"))),
        "address fd00::1 is on a/eth1 already",
    ),
    "an address that is none": (_with_links(_end(addresses=("10.0.0.256/24",))), "10.0.0.256"),
    "a prefix that is none": (_with_links(_end(addresses=("10.0.0.1/33",))), "10.0.0.1/33"),
    "an address without prefix": (_with_links(_end(addresses=("fd00::7",))), "like fd00::7/64"),
    "a MAC that is none": (_with_links(_end(mac="02:00:00:00:00")), "MAC '02:00:00:00:00'"),
    "a group's MAC": (_with_links(_end(mac="01:00:5e:00:00:01")), "group"),
    "a MAC of zeros": (_with_links(_end(mac="00:00:00:00:00:00")), "zero"),
    "a rate of nothing": (_with_links(replace(A_TO_SWITCH, rate_mbit=0.0)), "link a/eth0: rate 0.0"),
    "a negative rate": (_with_links(replace(A_TO_SWITCH, rate_mbit=-5.0)), "rate -5.0"),
    "a rate beyond the field": (_with_links(replace(A_TO_SWITCH, rate_mbit=1e6)), "rate 1000000.0"),
    "a rate that is no number": (_with_links(replace(A_TO_SWITCH, rate_mbit=math.nan)), "rate nan"),
    "an MTU too small": (_with_links(replace(A_TO_SWITCH, mtu=67)), "MTU 67 must be 68"),
    "an MTU too small for IPv6": (_with_links(replace(A_TO_B, mtu=1279)), "MTU 1279 must be 1280"),
    "an MTU too large": (_with_links(replace(A_TO_SWITCH, mtu=65536)), "MTU 65536"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_built_is_refused_in_one_line(name: str) -> None:
    spec, words = BAD[name]
    with pytest.raises(SpecError) as refused:
        plan(spec)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "rate_mbit"),
    [("1gbit", 1000.0), ("2.5Gbit", 2500.0), ("300mbit", 300.0), ("64kbit", 0.064), ("20000bit", 0.02)],
)
def test_rates_as_people_write_them(text: str, rate_mbit: float) -> None:
    assert parse_rate_mbit(text) == pytest.approx(rate_mbit)


@pytest.mark.parametrize("text", ["", "1", "fast", "-1gbit", "0mbit", "1 Gbyte", "1e3mbit", "nan", "90gbit"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(SpecError):
        parse_rate_mbit(text)


@given(st.floats(min_value=LOWEST_RATE_MBIT, max_value=HIGHEST_RATE_MBIT))
def test_a_token_bucket_fits_its_fields_and_passes_the_largest_frame(rate_mbit: float) -> None:
    bucket = token_bucket(rate_mbit)
    assert 0 < bucket.rate_bytes_per_s < 1 << 32
    assert 65535 + 14 <= bucket.burst_bytes < bucket.limit_bytes < 1 << 32
