"""Echo: what comes goes back, byte for byte (RFC 862, on port 7000)."""

from __future__ import annotations

from testbed.guest.connections import Connection
from testbed.guest.program import Program


class Echo(Program):
    port = 7000

    def received(self, connection: Connection) -> None:
        inbox = connection.inbox
        connection.send(inbox)
        connection.consume(len(inbox))
