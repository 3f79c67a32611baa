"""Guest programs for the tests of the machine: each does one thing that a machine must bear."""

from __future__ import annotations

import select
import time

from testbed.guest.program import Connection, Program, Sender
from testbed.guest.programs.echo import Echo
from testbed.measure.datagram import handled, parse

SLOW_STEP_S = 0.05


class Deaf(Echo):
    """An echo that hears no datagrams."""

    udp_port = 0


class Slow(Program):
    """Takes 50 ms a step."""

    port = 7002

    def attach(self) -> None:
        self.count = self.memory.counter("count")

    def received(self, connection: Connection) -> None:
        self.count.add()
        end_s = time.monotonic() + SLOW_STEP_S
        while time.monotonic() < end_s:
            pass
        connection.consume(len(connection.inbox))


class Faulty(Program):
    """Raises when told."""

    port = 7003

    def received(self, connection: Connection) -> None:
        data = bytes(connection.inbox)
        connection.consume(len(data))
        if data == b"raise":
            raise RuntimeError("as told")
        connection.send(data)


class NoBoot(Program):
    port = 7004

    def boot(self) -> None:
        raise RuntimeError("no boot")


class Scribe(Program):
    """Writes a sector and flushes it for each byte that comes; counts what is done."""

    port = 7005

    def attach(self) -> None:
        self.begun = self.memory.counter("begun")
        self.finished = self.memory.counter("finished")

    def received(self, connection: Connection) -> None:
        assert self.disk is not None
        for byte in bytes(connection.inbox):
            self.disk.write(self.begun.value * 512, bytes([byte]) * 512, 0)
            self.disk.flush(1)
            self.begun.add()
        connection.send(connection.inbox)
        connection.consume(len(connection.inbox))

    def disk_done(self, tag: int, error: str | None, data: memoryview) -> None:
        self.finished.add(tag)

    def stats(self) -> dict[str, int]:
        return {"begun": self.begun.value, "finished": self.finished.value}


class SlowDatagrams(Program):
    """A UDP echo that takes 10 ms for each datagram that has waited for less than half a second: with more
    than that coming, some always wait, and never more than come in that time."""

    port = 7000
    udp_port = 7000

    def datagram(self, data: bytes, sender: Sender) -> None:
        asked = parse(data)
        if asked is None or time.monotonic_ns() - asked.sent_ns < 500_000_000:
            select.select([], [], [], 0.01)
        self.send_datagram(handled(data, time.monotonic_ns()), sender)
