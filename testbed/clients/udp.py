"""The UDP stream: numbered datagrams to the guest's echo, each with its way there and its way back.

Host and client share CLOCK_MONOTONIC, so the echo's word of when it had a datagram parts the round trip in
two one-way delays without any clock to be set. The way there ends in the guest's program: what waits for a
paused guest waits on the way there.
"""

from __future__ import annotations

import socket

from testbed.clients.loop import Loop
from testbed.clients.packet_probe import Flow, PacketProbe
from testbed.clients.spec import UdpSpec
from testbed.measure.datagram import Numbered, build, parse
from testbed.measure.trace import Trace


class UdpProbe(PacketProbe):
    kind = "udp"

    def __init__(self, spec: UdpSpec, loop: Loop, trace: Trace, first_connection: int) -> None:
        numbers = range(first_connection, first_connection + spec.connections)
        super().__init__(loop, trace, spec.target, spec.rate_per_s, spec.size, numbers)

    def flow(self, number: int) -> Flow:
        return _UdpFlow(self, number)


class _UdpFlow(Flow):
    def make_socket(self) -> socket.socket:
        target = self._probe.target
        family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.connect((target.address, target.port))
        return made

    def encode(self, number: int, sent_ns: int) -> bytes:
        return build(self.number, number, sent_ns, self._probe.size)

    def decode(self, data: bytes) -> Numbered | None:
        seen = parse(data)
        return seen if seen is not None and seen.flow == self.number else None
