"""What a handover's steps cost on this machine, in us: ``python -m testbed.handover.bench``.

One number is the time of a single call; two are the median and the worst of many.
"""

from __future__ import annotations

import socket
import statistics
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Interface
from typing import TypeVar

from pyroute2 import IPRoute

from netns import universe
from netns.namespace import Namespace
from testbed.handover.announcement import Kind, build
from testbed.handover.announcer import Announcer
from testbed.handover.filters import Identity
from testbed.handover.hold import FrameHold, FrameRelease
from testbed.handover.neighbours import NeighbourTable
from testbed.handover.port import GuestPort
from testbed.handover.wiring import (
    GUEST_INTERFACE,
    GUEST_PORT,
    HOLD_END,
    HOLD_PORT,
    GuestNic,
    GuestWiring,
    wire_hold,
)

_MAC = bytes.fromhex("020000000042")
_IPV4, _IPV6 = IPv4Interface("10.7.0.10/24"), IPv6Interface("fd07::10/64")
_REPEATS = 300
_FRAMES = 500
_Made = TypeVar("_Made")


def main() -> int:
    """Run the bench in a universe and print its table; 0."""
    return universe.run(_bench)


def _bench() -> int:
    host = Namespace.create("host")
    client = Namespace.create("client")
    with host.entered(), IPRoute() as route:
        route.link("add", ifname="br0", kind="bridge")
        route.link("add", ifname="up0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": client.fd})
        for name in ("br0", "up0"):
            route.link("set", index=route.link_lookup(ifname=name)[0], state="up")
        bridge = route.link_lookup(ifname="br0")[0]
        route.link("set", index=route.link_lookup(ifname="up0")[0], master=bridge)
    with client.entered(), IPRoute() as route:
        eth0 = route.link_lookup(ifname="eth0")[0]
        route.addr("add", index=eth0, address="10.7.0.1", prefixlen=24)
        route.link("set", index=eth0, state="up")
        route.neigh("replace", dst=str(_IPV4.ip), lladdr=_MAC.hex(":"), ifindex=eth0, state="permanent")
    identity = Identity((_MAC,), (_IPV4.ip,), (_IPV6.ip,))
    _once("wire the hold pair", lambda: wire_hold(host, "br0"))
    nic = GuestNic(_MAC, _IPV4, _IPV6)
    wiring = _once("wire the guest", lambda: GuestWiring.make(host, "br0", "guest", nic))
    port = GuestPort(host, bridge="br0", port=GUEST_PORT, hold=HOLD_PORT, uplink="up0", mac=_MAC)
    hold = _once("open the hold", lambda: FrameHold(host, HOLD_END, identity))
    release = _once("open the release", lambda: FrameRelease(host, GUEST_PORT))
    frames = _once(
        "build the announcement (loads scapy)", lambda: build(Kind.GARP_REQUEST, _MAC, _IPV4.ip, _IPV6.ip)
    )
    speaker = Announcer(host, "br0", frames, silent={GUEST_PORT, HOLD_PORT})
    for name, act in (("cut", port.cut), ("open", port.open), ("plug", port.plug), ("depart", port.depart)):
        _row(name, [_timed_us(act) for _ in range(_REPEATS)])
    _row("drain, nothing held", [_timed_us(hold.drain) for _ in range(_REPEATS)])
    _row("announce", [_timed_us(speaker.announce) for _ in range(_REPEATS)])
    sender = client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    drains, releases = [], []
    for _ in range(20):
        port.cut()
        for _ in range(_FRAMES):
            sender.sendto(b"x" * 100, (str(_IPV4.ip), 9))
        began_ns = time.monotonic_ns()
        held = hold.drain()
        drains.append((time.monotonic_ns() - began_ns) / 1000 / len(held))
        port.open()
        began_ns = time.monotonic_ns()
        release.release(held)
        releases.append((time.monotonic_ns() - began_ns) / 1000 / len(held))
    _row("drain, a frame", drains)
    _row("release, a frame", releases)
    table = NeighbourTable(wiring.namespace, GUEST_INTERFACE)
    _row("read the neighbours", [_timed_us(table.read) for _ in range(_REPEATS)])
    _row("install the neighbours", [_timed_us(lambda: table.install(table.read())) for _ in range(_REPEATS)])
    return 0


def _once(name: str, act: Callable[[], _Made]) -> _Made:
    began_ns = time.monotonic_ns()
    made = act()
    print(f"{name:40} {(time.monotonic_ns() - began_ns) / 1000:10.1f}")
    return made


def _timed_us(act: Callable[[], object]) -> float:
    began_ns = time.monotonic_ns()
    act()
    return (time.monotonic_ns() - began_ns) / 1000


def _row(name: str, times_us: list[float]) -> None:
    print(f"{name:40} {statistics.median(times_us):10.1f} {max(times_us):10.1f}")


if __name__ == "__main__":
    sys.exit(main())
