"""At the other end: who heard the announcement."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from netns import packet
from netns.namespace import Namespace
from testbed.handover.announcement import Kind
from testbed.handover.filters import Identity, claims

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
