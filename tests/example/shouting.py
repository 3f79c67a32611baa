"""A guest program of somebody's own, and its client library: neither knows of migration, or of tests."""

from __future__ import annotations

import socket

from testbed.guest.program import Connection, Program

PORT = 7777


class Server(Program):
    """Sends each line back in capitals, with its number; the count of lines is in the guest's RAM."""

    port = PORT

    def attach(self) -> None:
        self.lines = self.memory.counter("lines")

    def received(self, connection: Connection) -> None:
        while b"\n" in (asked := bytes(connection.inbox)):
            line = asked.partition(b"\n")[0]
            self.lines.add(1)
            connection.send(b"%d %s\n" % (self.lines.value, line.upper()))
            connection.consume(len(line) + 1)


class Client:
    """An ordinary client: a connection, and a method that asks and checks the answer."""

    def __init__(self, address: str) -> None:
        self._file = socket.create_connection((address, PORT), timeout=10).makefile("rwb")
        self.last = 0

    def shout(self, text: str) -> None:
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        number, _, answer = self._file.readline().decode().strip().partition(" ")
        assert answer == text.upper()
        assert int(number) == self.last + 1, f"answer {number} after {self.last}"
        self.last = int(number)
