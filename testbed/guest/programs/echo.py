"""Echo: what comes goes back, byte for byte (RFC 862, on port 7000), over TCP and over UDP.

A numbered datagram (:mod:`testbed.measure.datagram`) comes back with the time at which this program had it.
"""

from __future__ import annotations

from time import monotonic_ns

from testbed.guest.connections import Connection
from testbed.guest.program import Program, Sender
from testbed.measure.datagram import handled


class Echo(Program):
    port = 7000
    udp_port = 7000

    def received(self, connection: Connection) -> None:
        inbox = connection.inbox
        connection.send(inbox)
        connection.consume(len(inbox))

    def datagram(self, data: bytes, sender: Sender) -> None:
        self.send_datagram(handled(data, monotonic_ns()), sender)
