"""At the other end: who heard the announcement, and when a bridge learned where the VM is."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from netns.namespace import Namespace
from testbed.handover.announcement import Kind
from testbed.handover.filters import Identity, claims
from testbed.kernel import netlink, packet
from testbed.kernel.netlink import RouteSocket

NEIGHBOUR_ADVERTISEMENT = "neighbour-advertisement"
_SLOT_BYTES = 256
_SLOTS = packet.ReceiveRing.BLOCK_BYTES // _SLOT_BYTES
_SOURCE = slice(6, 12)
_ETHER_TYPE = slice(12, 14)
_ARP_OPERATION = slice(20, 22)
_REQUEST = 1


@dataclass(frozen=True)
class Sighting:
    """An announcement heard at `t_ns` (CLOCK_MONOTONIC): what it was, and the MAC address that sent it."""

    t_ns: int
    kind: str
    mac: bytes


class AnnouncementObserver:
    """Counts the announcements that reach one interface: a client's, or a port of the switch.

    `kind` of a sighting is one of `announcement.Kind`, or `neighbour-advertisement`. What the interface
    itself transmits is not counted.
    """

    def __init__(self, namespace: Namespace, interface: str, identity: Identity) -> None:
        """Listen from now on. 25 ms: RCU. OSError when there is no such interface."""
        self._packet = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._packet.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
            self._packet.setsockopt(packet.SOL_PACKET, packet.PACKET_IGNORE_OUTGOING, 1)
            packet.attach_filter(self._packet, claims(identity))
            self._ring = packet.ReceiveRing(self._packet, _SLOT_BYTES, _SLOTS)
            packet.bind(self._packet, interface)
        except BaseException:
            self._packet.close()
            raise

    def take(self) -> list[Sighting]:
        """The announcements heard since the last call, in order. Never waits."""
        clocks_apart_ns = time.monotonic_ns() - time.time_ns()
        return [_sighting(one, clocks_apart_ns) for one in self._ring.take()]

    def fileno(self) -> int:
        """A descriptor that polls as readable when something was heard."""
        return self._packet.fileno()

    def close(self) -> None:
        self._ring.close()
        self._packet.close()


@dataclass(frozen=True)
class Relearned:
    """At `t_ns` (CLOCK_MONOTONIC, when it was read) the forwarding entry came to point at the interface
    `port`.
    """

    t_ns: int
    port: str


class RelearnObserver:
    """Hears of every change of one MAC address's forwarding entry on the bridges of a namespace (the switch).

    The kernel tells when an entry is made, moved or deleted, not when it is only confirmed.
    """

    def __init__(self, namespace: Namespace, mac: bytes) -> None:
        self._mac = mac
        self._namespace = namespace
        self._names: dict[int, str] = {}
        self._watch = netlink.watch(
            namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETLINK_ROUTE),
            netlink.RTMGRP_NEIGH,
        )
        with RouteSocket(
            namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETLINK_ROUTE)
        ) as ask:
            self._names = {link.index: link.name for link in ask.links()}

    def take(self) -> list[Relearned]:
        """The changes since the last call. Never waits. OSError (ENOBUFS) when too many came between two
        calls.
        """
        t_ns = time.monotonic_ns()
        return [
            Relearned(t_ns, self._names.get(entry.index, str(entry.index)))
            for entry in netlink.heard_neighbours(self._watch)
            if entry.family == netlink.AF_BRIDGE and entry.mac == self._mac
        ]

    def fileno(self) -> int:
        """A descriptor that polls as readable when something changed: read at once, for an exact time."""
        return self._watch.fileno()

    def close(self) -> None:
        self._watch.close()


def _sighting(captured: packet.Captured, clocks_apart_ns: int) -> Sighting:
    frame = captured.data[packet.VNET_HEADER_BYTES :]
    ether_type = int.from_bytes(frame[_ETHER_TYPE], "big")
    if ether_type == packet.ETH_P_RARP:
        kind: str = Kind.RARP
    elif ether_type == packet.ETH_P_IPV6:
        kind = NEIGHBOUR_ADVERTISEMENT
    else:
        request = int.from_bytes(frame[_ARP_OPERATION], "big") == _REQUEST
        kind = Kind.GARP_REQUEST if request else Kind.GARP_REPLY
    return Sighting(captured.t_ns + clocks_apart_ns, str(kind), frame[_SOURCE])
