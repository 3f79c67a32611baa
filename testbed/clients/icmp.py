"""The ICMP echo: ping, in an open loop (RFC 792, RFC 4443).

The guest's kernel answers, not its program: this shows the network and the address, not the service. While
the guest is paused its kernel still answers what reaches it; what a migration makes of these packets is what
it makes of frames. Beside a probe of the service it tells how much of a gap is the network's.

The raw socket wants CAP_NET_RAW in the client's namespace, which root of a universe has.
"""

from __future__ import annotations

import os
import socket
import struct

from testbed.clients.loop import Loop
from testbed.clients.packet_probe import Flow, PacketProbe
from testbed.clients.spec import IcmpSpec
from testbed.measure.datagram import Numbered, build, parse
from testbed.measure.trace import Trace
from testbed.udp.frames import checksum

# linux/icmp.h, linux/icmpv6.h
_ICMP_ECHO, _ICMP_ECHOREPLY, _ICMP_FILTER = 8, 0, 1
_ICMPV6_ECHO, _ICMPV6_ECHO_REPLY, _ICMPV6_FILTER = 128, 129, 1
_SOL_RAW = 255
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence


class IcmpProbe(PacketProbe):
    kind = "icmp"

    def __init__(self, spec: IcmpSpec, loop: Loop, trace: Trace, first_connection: int) -> None:
        numbers = range(first_connection, first_connection + 1)
        super().__init__(loop, trace, spec.target, spec.rate_per_s, spec.size, numbers)

    def flow(self, number: int) -> Flow:
        return _IcmpFlow(self, number)


class _IcmpFlow(Flow):
    """The identifier is this process's, as ping's is; the whole number stands in the data, where nothing
    wraps."""

    def make_socket(self) -> socket.socket:
        address = self._probe.target.address
        self._is_ipv6 = ":" in address
        self._identifier = (os.getpid() + self.number) & 0xFFFF
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        if self._is_ipv6:
            made = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
            # A set bit keeps a type out.
            blocked = [0xFFFFFFFF] * 8
            blocked[_ICMPV6_ECHO_REPLY >> 5] &= ~(1 << (_ICMPV6_ECHO_REPLY & 31))
            made.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *blocked))
        else:
            made = socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP)
            blocked_types = 0xFFFFFFFF & ~(1 << _ICMP_ECHOREPLY)
            made.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", blocked_types))
        made.connect((address, 0))
        return made

    def encode(self, number: int, sent_ns: int) -> bytes:
        """The kernel fills in the checksum of ICMPv6, which covers addresses; that of ICMP is ours to make.
        """
        kind = _ICMPV6_ECHO if self._is_ipv6 else _ICMP_ECHO
        data = build(self.number, number, sent_ns, self._probe.size)
        packet = _HEADER.pack(kind, 0, 0, self._identifier, number & 0xFFFF) + data
        if self._is_ipv6:
            return packet
        return packet[:2] + checksum(packet).to_bytes(2, "big") + packet[4:]

    def decode(self, data: bytes) -> Numbered | None:
        """Raw IPv4 sockets give the IP header too."""
        start = 0 if self._is_ipv6 else (data[0] & 15) * 4
        if len(data) < start + _HEADER.size:
            return None
        kind, code, _, identifier, _ = _HEADER.unpack_from(data, start)
        wanted = _ICMPV6_ECHO_REPLY if self._is_ipv6 else _ICMP_ECHOREPLY
        if (kind, code, identifier) != (wanted, 0, self._identifier):
            return None
        seen = parse(data[start + _HEADER.size :])
        return seen if seen is not None and seen.flow == self.number else None
