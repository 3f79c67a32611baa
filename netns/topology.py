"""A network as data: what it shall be (Spec), and the steps that make it (plan). Pure: nothing here touches a
system.

    spec = Spec(
        nodes=(Node("switch", bridges=(Bridge("br0"),)), Node("a"), Node("b")),
        links=(
            Link(End("a", "eth0", addresses=("10.0.0.1/24",)), End("switch", "to-a", bridge="br0")),
            Link(
                End("b", "eth0", addresses=("10.0.0.2/24", "fd00::2/64")),
                End("switch", "to-b", bridge="br0"),
                rate_mbit=1000,
            ),
        ),
    )
    for step in plan(spec):
        print(step.describe())

`netns.apply.apply(plan(spec))` makes it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

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

CONGESTION_CONTROL = "cubic"
"""Kernels differ in their default; results shall not. Where it may not be set, `Topology.congestion_control`
tells.
"""

LOWEST_RATE_MBIT = 0.01
HIGHEST_RATE_MBIT = 34_000.0
"""A token bucket's rate is 32 bits of bytes a second."""

_FIRST_INDEX = 1000
"""Above every number that the kernel chooses in a new namespace: see `links.Links.add_veth`."""

_SHORTEST_AGEING_NS = 10_000_000
_MTU = range(68, 65536)  # RFC 791; ETH_MAX_MTU
_MTU_IPV6 = 1280  # RFC 8200
_LONGEST_IFNAME = 15  # IFNAMSIZ less its NUL

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)bit", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class SpecError(ValueError):
    """A spec that cannot be built. The message is one line and names the part at fault."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge in a node. `mac` None: one made from the names, the same in every run."""

    ifname: str
    mac: str | None = None
    addresses: tuple[str, ...] = ()
    mtu: int = 1500
    ageing_ns: int | None = None
    """How long it knows an address that it does not hear any more; None: the kernel's five minutes."""


@dataclass(frozen=True, slots=True)
class Node:
    """A network namespace. `sysctls` by dotted name, set before any interface is made."""

    name: str
    bridges: tuple[Bridge, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """One end of a link: an interface `ifname` in `node`. Addresses like "10.0.0.1/24", or a bridge, not
    both.
    """

    node: str
    ifname: str
    mac: str | None = None
    addresses: tuple[str, ...] = ()
    bridge: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A wire. `rate_mbit` (10^6 bit/s of whole frames) holds in each direction by itself; None: as fast as it
    goes.
    """

    a: End
    b: End
    mtu: int = 1500
    rate_mbit: float | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    nodes: tuple[Node, ...]
    links: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """What a tbf queue is set to: bytes a second, the longest burst, and how much may wait (the rest is
    dropped).
    """

    rate_bytes_per_s: int
    burst_bytes: int
    limit_bytes: int


def token_bucket(rate_mbit: float) -> TokenBucket:
    """The measures for a rate.

    The burst holds at least two frames of 64 KiB, so that offloaded ones need not be cut up, and 2 ms of
    traffic, which is how late a timer may be on a busy machine. What waits is at most 50 ms of traffic, and
    four such frames at least. SpecError for a rate that is no rate.
    """
    if not (math.isfinite(rate_mbit) and LOWEST_RATE_MBIT <= rate_mbit <= HIGHEST_RATE_MBIT):
        raise SpecError(f"rate {rate_mbit} Mbit/s: must be {LOWEST_RATE_MBIT:g} to {HIGHEST_RATE_MBIT:g}")
    rate = round(rate_mbit * 1e6 / 8)
    burst = max(2 * 65536, rate // 500)
    return TokenBucket(rate, burst, burst + max(2 * 65536, rate // 20))


def parse_rate_mbit(text: str) -> float:
    """The Mbit/s of "1gbit", "300mbit", "2.5Gbit", "64kbit", "9600bit". SpecError for anything else."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise SpecError(f"rate {text!r}: must be like 1gbit, 300mbit or 64kbit")
    rate_mbit = float(match[1]) * {"": 1e-6, "k": 1e-3, "m": 1.0, "g": 1e3}[match[2].lower()]
    token_bucket(rate_mbit)
    return rate_mbit


def plan(spec: Spec) -> tuple[Step, ...]:
    """The steps that make the network, in an order in which they can be done. SpecError if it cannot be
    built.
    """
    check(spec)
    return tuple(_steps(spec))


def _steps(spec: Spec) -> Iterator[Step]:
    for node in spec.nodes:
        yield MakeNode(node.name, CONGESTION_CONTROL)
        for name, value in node.sysctls:
            yield SetSysctl(node.name, name, value)
        for bridge in node.bridges:
            mac = bridge.mac or mac_for(node.name, bridge.ifname)
            yield MakeBridge(node.name, bridge.ifname, mac, bridge.mtu, bridge.ageing_ns)
            for address in bridge.addresses:
                yield AddAddress(node.name, bridge.ifname, address)
            yield BringUp(node.name, bridge.ifname)
    for number, link in enumerate(spec.links):
        a, b = link.a, link.b
        yield MakeVeth(_FIRST_INDEX + number, a.node, a.ifname, _mac(a), b.node, b.ifname, _mac(b), link.mtu)
        for end in (a, b):
            yield from _end_steps(end, link.rate_mbit)


def _end_steps(end: End, rate_mbit: float | None) -> Iterator[Step]:
    if end.bridge is not None:
        yield Enslave(end.node, end.ifname, end.bridge)
    for address in end.addresses:
        yield AddAddress(end.node, end.ifname, address)
    if rate_mbit is not None:
        yield LimitRate(end.node, end.ifname, rate_mbit)
    yield BringUp(end.node, end.ifname)


def mac_for(node: str, ifname: str) -> str:
    """A locally administered unicast MAC made from the names: 02:… and five bytes of their hash."""
    digest = hashlib.blake2b(f"{node}\0{ifname}".encode(), digest_size=5).digest()
    return "02:" + digest.hex(":")


def _mac(end: End) -> str:
    return end.mac or mac_for(end.node, end.ifname)


# ---- what is wrong with a spec


def check(spec: Spec) -> None:
    """SpecError for the first thing in the spec that cannot be built."""
    nodes: dict[str, Node] = {}
    interfaces: set[tuple[str, str]] = set()
    addresses: dict[str, str] = {}

    def interface(node: str, ifname: str, mac: str | None, mtu: int, given: tuple[str, ...]) -> None:
        place = f"{node}/{ifname}"
        _check_ifname(place, ifname)
        if (node, ifname) in interfaces or ifname == "lo":
            raise SpecError(f"{place}: there are two interfaces of this name")
        interfaces.add((node, ifname))
        _check_mac(place, mac)
        _check_mtu(place, mtu, given)
        for address in given:
            host = _host(place, address)
            if host in addresses:
                raise SpecError(f"{place}: address {host} is on {addresses[host]} already")
            addresses[host] = place

    for node in spec.nodes:
        if not _NAME.fullmatch(node.name) or len(node.name) > 64:
            raise SpecError(f"node {node.name!r}: a name is letters, digits, dots and dashes, at most 64")
        if node.name in nodes:
            raise SpecError(f"node {node.name}: there are two of this name")
        nodes[node.name] = node
        for bridge in node.bridges:
            interface(node.name, bridge.ifname, bridge.mac, bridge.mtu, bridge.addresses)
            if bridge.ageing_ns is not None and bridge.ageing_ns < _SHORTEST_AGEING_NS:
                raise SpecError(f"{node.name}/{bridge.ifname}: ageing {bridge.ageing_ns} ns: at least 10 ms")
        for name, _ in node.sysctls:
            if not name.startswith("net.") or "/" in name or ".." in name:
                raise SpecError(f"node {node.name}: sysctl {name!r} is not a namespace's (net.…)")
    for link in spec.links:
        for end in (link.a, link.b):
            _check_end(end, nodes)
            interface(end.node, end.ifname, end.mac, link.mtu, end.addresses)
        _check_rate(link)


def _check_end(end: End, nodes: dict[str, Node]) -> None:
    place = f"{end.node}/{end.ifname}"
    if end.node not in nodes:
        raise SpecError(f"{place}: there is no node {end.node!r}; there are: {', '.join(nodes) or 'none'}")
    if end.bridge is None:
        return
    bridges = [bridge.ifname for bridge in nodes[end.node].bridges]
    if end.bridge not in bridges:
        there = ", ".join(bridges) or "none"
        raise SpecError(f"{place}: there is no bridge {end.bridge!r} in it; there are: {there}")
    if end.addresses:
        raise SpecError(f"{place}: a bridge's port has no address of its own; give it to {end.bridge}")


def _check_rate(link: Link) -> None:
    if link.rate_mbit is not None:
        try:
            token_bucket(link.rate_mbit)
        except SpecError as error:
            raise SpecError(f"link {link.a.node}/{link.a.ifname}: {error}") from None


def _check_ifname(place: str, ifname: str) -> None:
    if not _NAME.fullmatch(ifname) or len(ifname) > _LONGEST_IFNAME:
        raise SpecError(f"{place}: a name is 1 to {_LONGEST_IFNAME} letters, digits, dots and dashes")


def _check_mac(place: str, mac: str | None) -> None:
    if mac is None:
        return
    if not _MAC.fullmatch(mac.lower()):
        raise SpecError(f"{place}: MAC {mac!r} is not like 02:00:00:00:00:42")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise SpecError(f"{place}: MAC {mac} cannot be an interface's: it is a group's, or zero")


def _check_mtu(place: str, mtu: int, addresses: tuple[str, ...]) -> None:
    lowest = _MTU_IPV6 if any(":" in address for address in addresses) else _MTU.start
    if mtu not in _MTU or mtu < lowest:
        raise SpecError(f"{place}: MTU {mtu} must be {lowest} to {_MTU.stop - 1}")


def _host(place: str, address: str) -> str:
    host, slash, _ = address.partition("/")
    try:
        parsed = ipaddress.ip_interface(address)
    except ValueError as error:
        raise SpecError(f"{place}: address {address!r}: {error}") from None
    if not slash:
        like = f"{host}/{24 if parsed.version == 4 else 64}"
        raise SpecError(f"{place}: address {host} lacks its prefix length, like {like}")
    return str(parsed.ip)
