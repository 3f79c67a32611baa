"""The stage of the handover tests: a client, a switch, and two hosts that each have a place for the guest.

    client --- [switch] --- host-a [br0] --- guest-a (plugged in or not)
                     \\          \\-- local
                      \\-- host-b [br0] --- guest-b

Nothing is here but wires: a guest is a namespace with an address, and a `Ledger` writes down what reaches it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from netns import packet
from netns.namespace import Namespace, names
from netns.packet import Jump, Label, accept, assemble, load, reject
from testbed.handover.delivery import Delivery
from testbed.handover.filters import Identity
from testbed.handover.hold import FrameHold, FrameRelease
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
from testbed.kernel import netlink

CARRIER_DEADLINE_S = 10.0
MAC = bytes.fromhex("020000000042")
OTHER_MAC = bytes.fromhex("020000000043")
GUEST_4, GUEST_6 = IPv4Interface("10.7.0.10/24"), IPv6Interface("fd07::10/64")
CLIENT_4, CLIENT_6 = "10.7.0.1", "fd07::1"
LOCAL_4, LOCAL_6 = "10.7.0.2", "fd07::2"
PORT = 9
A_BACKLOG = 500  # of net.core.netdev_max_backlog, 1000
UPLINK = "up0"
IPV6_DEFAULTS = Path("/proc/sys/net/ipv6/conf/default")
IDENTITY = Identity((MAC,), (GUEST_4.ip,), (GUEST_6.ip,))
EITHER_MAC = Identity((MAC, OTHER_MAC), (GUEST_4.ip,), (GUEST_6.ip,))
_SEQUENCE = struct.Struct("!I")
_PAYLOAD = 14 + 20 + 8


@dataclass
class Host:
    """A host's place for the guest, with all that a handover needs opened."""

    namespace: Namespace
    guest: Namespace
    port: GuestPort
    hold: FrameHold
    release: FrameRelease

    def delivery(self, rewrite: tuple[bytes, bytes] | None = None) -> Delivery:
        return Delivery(self.port, self.hold, self.release, rewrite=rewrite)

    def cut(self) -> None:
        self.hold.start()
        self.port.cut()


def make_network() -> None:
    """The switch, the client, both hosts with bridge and uplink, and a local client on host-a."""
    for name in ("switch", "client", "local", "host-a", "host-b"):
        namespace = Namespace.create(name)
        with namespace.entered():
            for setting, value in (("disable_ipv6", 0), ("addr_gen_mode", 1), ("accept_dad", 0)):
                (IPV6_DEFAULTS / setting).write_text(str(value))
    for name in ("switch", "host-a", "host-b"):
        with Namespace.open(name).entered(), IPRoute() as route:
            route.link("add", ifname="br0", kind="bridge", br_mcast_snooping=0)
            route.link("set", index=index(route, "br0"), state="up")
    join("switch", "to-a", "host-a", UPLINK)
    join("switch", "to-b", "host-b", UPLINK)
    attach("switch", "to-client", "client", "02:00:00:00:00:01", CLIENT_4, CLIENT_6)
    attach("host-a", "to-local", "local", "02:00:00:00:00:02", LOCAL_4, LOCAL_6)
    for node, port in (
        *(("switch", name) for name in ("to-a", "to-b", "to-client")),
        *((host, UPLINK) for host in ("host-a", "host-b")),
        ("host-a", "to-local"),
    ):
        await_forwarding(Namespace.open(node), port)


def await_forwarding(node: Namespace, port: str) -> None:
    """Until the kernel has noticed the carrier, up to a second after it came: the bridge forwards then."""
    sockets = [node.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) for _ in range(2)]
    with netlink.RouteSocket(sockets[0]) as ask, sockets[1] as watch:
        netlink.wait_operational(watch, ask, port, CARRIER_DEADLINE_S)


def make_host(name: str, mac: bytes = MAC, identity: Identity = IDENTITY) -> Host:
    """The guest's place on host `name`, unplugged."""
    host = Namespace.open(name)
    wire_hold(host, "br0")
    nic = GuestNic(mac, GUEST_4, GUEST_6)
    guest = GuestWiring.make(host, "br0", name.replace("host", "guest"), nic).namespace
    with guest.entered(), IPRoute() as route:
        for address, neighbour in ((CLIENT_4, "02:00:00:00:00:01"), (LOCAL_4, "02:00:00:00:00:02")):
            know(route, GUEST_INTERFACE, address, neighbour)
    port = GuestPort(host, bridge="br0", port=GUEST_PORT, hold=HOLD_PORT, uplink=UPLINK, mac=mac)
    return Host(host, guest, port, FrameHold(host, HOLD_END, identity), FrameRelease(host, GUEST_PORT))


def join(one: str, port: str, other: str, other_port: str) -> None:
    """A wire between the bridges of two nodes."""
    with Namespace.open(one).entered(), IPRoute() as route, Namespace.open(other) as peer:
        route.link("add", ifname=port, kind="veth", peer={"ifname": other_port, "net_ns_fd": peer.fd})
        route.link("set", index=index(route, port), master=index(route, "br0"), state="up")
    with Namespace.open(other).entered(), IPRoute() as route:
        route.link("set", index=index(route, other_port), master=index(route, "br0"), state="up")


def attach(node: str, port: str, client: str, mac: str, four: str, six: str) -> None:
    """A client on a port of the bridge of `node`, which knows the guest's MAC address already."""
    with Namespace.open(node).entered(), IPRoute() as route, Namespace.open(client) as peer:
        end = {"ifname": "eth0", "net_ns_fd": peer.fd, "address": mac}
        route.link("add", ifname=port, kind="veth", peer=end)
        route.link("set", index=index(route, port), master=index(route, "br0"), state="up")
    with Namespace.open(client).entered(), IPRoute() as route:
        eth0 = index(route, "eth0")
        route.addr("add", index=eth0, address=four, prefixlen=24)
        route.addr("add", index=eth0, address=six, prefixlen=64, flags=0x02)
        route.link("set", index=eth0, state="up")
        know(route, "eth0", str(GUEST_4.ip), MAC.hex(":"))
        know(route, "eth0", str(GUEST_6.ip), MAC.hex(":"))


def know(route: Any, interface: str, address: str, mac: str, *, state: str = "permanent") -> None:
    route.neigh("replace", dst=address, lladdr=mac, ifindex=index(route, interface), state=state)


def forget_guest(client: str) -> None:
    """`client` does not know the guest's MAC address any more."""
    with Namespace.open(client).entered(), IPRoute() as route:
        for address in (str(GUEST_4.ip), str(GUEST_6.ip)):
            route.neigh("del", dst=address, ifindex=index(route, "eth0"))


def index(route: Any, name: str) -> int:
    (found,) = route.link_lookup(ifname=name)
    return int(found)


def port_state(node: str, port: str) -> int:
    """What the bridge of `node` lets pass its port (BR_STATE_*)."""
    with Namespace.open(node).entered(), IPRoute() as route:
        (link,) = route.get_links(index(route, port))
        return int(link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_STATE"))


class Ledger:
    """The numbers of the datagrams that reached a guest's interface, in the order of their arrival."""

    SLOT_BYTES = 256
    SLOTS = 1 << 16

    def __init__(self, guest: Namespace) -> None:
        # Somebody must listen, or the guest answers each datagram with an error.
        self._listener = guest.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._listener.bind(("", PORT))
        self._packet = guest.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._packet.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
        packet.attach_filter(self._packet, _datagrams_to(PORT))
        self._ring = packet.ReceiveRing(self._packet, self.SLOT_BYTES, self.SLOTS)
        packet.bind(self._packet, GUEST_INTERFACE)

    def read(self) -> list[tuple[int, int]]:
        """Time (ns) and number of each datagram since the last call."""
        assert packet.drops(self._packet) == 0
        start = packet.VNET_HEADER_BYTES + _PAYLOAD
        return [(one.t_ns, _SEQUENCE.unpack_from(one.data, start)[0]) for one in self._ring.take()]


def number_of(frame: bytes) -> int:
    """The number in a held datagram."""
    return int(_SEQUENCE.unpack_from(frame, packet.VNET_HEADER_BYTES + _PAYLOAD)[0])


def _datagrams_to(port: int) -> packet.Program:
    return assemble(
        [
            load(packet.BPF_LD_H_ABS, 12),
            Jump(packet.BPF_JEQ_K, packet.ETH_P_IP, false="reject"),
            load(packet.BPF_LD_B_ABS, 14 + 9),
            Jump(packet.BPF_JEQ_K, socket.IPPROTO_UDP, false="reject"),
            load(packet.BPF_LD_H_ABS, 14 + 20 + 2),
            Jump(packet.BPF_JEQ_K, port, false="reject"),
            accept(),
            Label("reject"),
            reject(),
        ]
    )


def dropped_by_wires() -> int:
    """Frames that a veth could not hand to its peer: on a loaded machine a processor's backlog (1000 frames)
    may be full. That happens without any migration too, so it is told apart from what a test is about."""
    return sum(_transmit_drops(name) for name in names())


def _transmit_drops(name: str) -> int:
    with Namespace.open(name) as namespace, namespace.entered():
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return sum(int(line.partition(":")[2].split()[11]) for line in lines)


@contextmanager
def sender(client: str) -> Iterator[socket.socket]:
    """A socket for datagrams from `client`. When the block is left, all that was sent has passed the bridges.

    Frames of one processor stay in line: one more goes to the other client, and there it comes after them.
    """
    other, address = ("local", LOCAL_4) if client == "client" else ("client", CLIENT_4)
    processors = os.sched_getaffinity(0)
    with ExitStack() as stack:
        sending, last = (
            stack.enter_context(
                stack.enter_context(Namespace.open(name)).socket(socket.AF_INET, socket.SOCK_DGRAM)
            )
            for name in (client, other)
        )
        last.bind((address, 0))
        stack.callback(os.sched_setaffinity, 0, processors)
        os.sched_setaffinity(0, {min(processors)})
        yield sending
        sending.sendto(b"", last.getsockname())
        assert select.select([last], [], [], CARRIER_DEADLINE_S)[0], "the bridges do not forward"


def send(client: str, numbers: range) -> None:
    """Datagrams with these numbers from `client` to the guest, which they have reached, or the hold; no more
    at once than a processor's backlog takes."""
    for first in range(0, len(numbers), A_BACKLOG):
        with sender(client) as sending:
            for number in numbers[first : first + A_BACKLOG]:
                sending.sendto(_SEQUENCE.pack(number), (str(GUEST_4.ip), PORT))


@contextmanager
def stream(client: str, rate_per_s: int, count: int) -> Iterator[int]:
    """`count` datagrams, numbered from 0, from a process in `client`; yields its pidfd.

    The process is waited for at the end, and killed if the block is left by an exception.
    """
    pid = os.fork()
    if pid == 0:
        try:
            with Namespace.open(client) as namespace:
                _send_at_rate(namespace.socket(socket.AF_INET, socket.SOCK_DGRAM), rate_per_s, count)
            os._exit(0)
        finally:
            os._exit(1)
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    except BaseException:
        os.kill(pid, 9)
        raise
    finally:
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
    assert status == 0


def _send_at_rate(sender: socket.socket, rate_per_s: int, count: int) -> None:
    sender.connect((str(GUEST_4.ip), PORT))
    began_s, sent = time.monotonic(), 0
    while sent < count:
        due = min(count, int((time.monotonic() - began_s) * rate_per_s))
        while sent < due:
            sender.send(_SEQUENCE.pack(sent))
            sent += 1


def ended(pidfd: int, within_s: float = 0.0) -> bool:
    """Whether the process of a stream has ended, or does within that time."""
    return bool(select.select([pidfd], [], [], within_s)[0])


def spin_us(microseconds: int) -> None:
    """A pause whose length is part of what is tested: the blackout."""
    until_ns = time.monotonic_ns() + microseconds * 1000
    while time.monotonic_ns() < until_ns:
        pass
