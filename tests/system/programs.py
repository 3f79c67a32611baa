"""Guest programs that do what a guest must not, each to show that it is noticed."""

from __future__ import annotations

import mmap
import os
import re
import struct
from pathlib import Path

from testbed.guest.program import Connection, Program
from testbed.guest.programs.kv import KeyValue, Then
from testbed.guest.programs.kv_durable import DurableKeyValue

COUNT = struct.Struct("<Q")  # wide, so that no two looks at the page see the same


class Forgetful(Program):
    """Counts requests twice: in RAM, and in a Python attribute, which is no part of the machine."""

    port = 7000

    def attach(self) -> None:
        self.in_ram = self.memory.counter("requests")
        self.outside_ram = 0

    def received(self, connection: Connection) -> None:
        self.in_ram.add(1)
        self.outside_ram += 1
        connection.send(connection.inbox)
        connection.consume(len(connection.inbox))

    def stats(self) -> dict[str, int]:
        return {"in_ram": self.in_ram.value, "outside_ram": self.outside_ram}


class Sneaky(Program):
    """Echoes, and with each request writes to its last page of RAM through a second mapping.

    A tracker that looks at page tables is blind to that: it is what a broken tracker looks like from outside.
    """

    port = 7000

    def attach(self) -> None:
        ram = next(link for link in Path("/proc/self/fd").iterdir() if _is_ram(link))
        descriptor = os.open(ram, os.O_RDWR)
        size = os.fstat(descriptor).st_size
        self.window = mmap.mmap(descriptor, mmap.PAGESIZE, offset=size - mmap.PAGESIZE)
        os.close(descriptor)

    def received(self, connection: Connection) -> None:
        (count,) = COUNT.unpack_from(self.window)
        COUNT.pack_into(self.window, 0, count + 1)
        connection.send(connection.inbox)
        connection.consume(len(connection.inbox))


class Faulty(Program):
    """Raises at the hundredth request."""

    port = 7000

    def attach(self) -> None:
        self.requests = self.memory.counter("requests")

    def received(self, connection: Connection) -> None:
        self.requests.add(1)
        if self.requests.value == 100:
            raise ZeroDivisionError("the hundredth request")
        connection.send(connection.inbox)
        connection.consume(len(connection.inbox))


class Hasty(DurableKeyValue):
    """A durable store that tells of a write before it is on the disk: it holds no connection.

    The changes of its first ten turns go to the log as always, later ones stay in RAM, so that whenever
    it is killed some were told that no disk has.
    """

    def attach(self) -> None:
        super().attach()
        self.turns = self.memory.counter("turns")

    def turn_ended(self) -> None:
        self.turns.add()
        if self.turns.value <= 10:
            super().turn_ended()

    def _carry_out(self, connection: Connection, replies: list[bytes]) -> tuple[int, Then]:
        return KeyValue._carry_out(self, connection, replies)


def _is_ram(link: Path) -> bool:
    try:
        return re.search(r"memfd:.*ram", str(link.readlink()), re.IGNORECASE) is not None
    except OSError:
        return False  # the descriptor that listed the folder is closed by now
