"""What a guest program is, and how one is found by name.

A whole program, to be run with ``--program mymodule:Shout``::

    from testbed.guest.program import Connection, Program

    class Shout(Program):
        port = 7100

        def attach(self) -> None:
            self.lines = self.memory.counter("lines")

        def received(self, connection: Connection) -> None:
            inbox = bytes(connection.inbox)
            end = inbox.rfind(b"\\n") + 1
            self.lines.add(inbox.count(b"\\n"))
            connection.send(inbox[:end].upper())
            connection.consume(end)

The rules: everything that is to outlive a migration is in RAM (``self.memory``, ``connection.state``, what is
left in ``connection.inbox``); what a program keeps in Python it sets in :meth:`Program.attach`, from RAM. A
handler is short (well under a millisecond): the machine pauses between handlers. One that has more to do says
``connection.again()`` and is called again.
"""

from __future__ import annotations

import importlib
from typing import Any

from testbed.guest.connections import Connection
from testbed.guest.datagrams import Datagrams, Sender
from testbed.guest.disk import Disk
from testbed.guest.memory import Memory

__all__ = [
    "SHIPPED",
    "Connection",
    "GuestFault",
    "Memory",
    "Program",
    "ProgramError",
    "Sender",
    "load_program",
]

Buffer = bytes | bytearray | memoryview

SHIPPED = {
    "bulk": "testbed.guest.programs.bulk:Bulk",
    "echo": "testbed.guest.programs.echo:Echo",
    "http": "testbed.guest.programs.http:Http",
    "kv": "testbed.guest.programs.kv:KeyValue",
    "kv-durable": "testbed.guest.programs.kv_durable:DurableKeyValue",
    "ramp": "testbed.guest.programs.ramp:Ramp",
}


class ProgramError(Exception):
    """The program cannot be used: there is none of that name, or it is not a Program."""


class GuestFault(Exception):
    """A handler of the program raised."""

    def __init__(self, program: str, handler: str, error: BaseException) -> None:
        super().__init__(f"program {program} raised in {handler}(): {type(error).__name__}: {error}")


class Program:
    """A server that lives in guest RAM. Subclass, set :attr:`port`, override what is needed."""

    port: int = 0
    """The TCP port it listens on, on every address of the guest."""
    connection_state_bytes: int = 0
    """How many bytes of RAM each connection has for the program (:attr:`Connection.state`), zero when it
    connects."""
    inbox_limit_bytes: int = 1 << 20
    """How much unconsumed input a connection may have: the longest request there can be."""
    send_buffer_bytes: int = 0
    """The kernel's send buffer for each connection (SO_SNDBUF, which doubles it); 0 lets the kernel
    choose."""

    udp_port: int = 0
    """The UDP port at which :meth:`datagram` hears, on every address of the guest; 0: none."""

    datagrams: Datagrams | None = None
    """The program's UDP sockets. Set by the machine before :meth:`boot` where there is a `udp_port`."""

    host: str = ""
    """The host which the guest runs on just now. Set by the machine before :meth:`attach`: not guest
    state."""

    disk: Disk | None = None
    """The guest's disk, where it has one. Set by the machine before :meth:`boot`."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def boot(self) -> None:
        """RAM is new: lay out state. Called once in the life of a guest, before the first :meth:`attach`."""

    def attach(self) -> None:
        """A machine runs this RAM: find state. Called at every start, first or after a migration."""

    def connected(self, connection: Connection) -> None:
        """A peer has connected."""

    def received(self, connection: Connection) -> None:
        """`connection.inbox` has grown, or again() was called, or replies have drained and there is input
        left."""

    def writable(self, connection: Connection) -> None:
        """All that was sent is with the kernel, and it takes more. Called while `connection.stream(True)`
        holds."""

    def ended(self, connection: Connection) -> None:
        """The peer will send no more (it may still read). Closes, unless overridden."""
        connection.close()

    def closed(self, connection: Connection) -> None:
        """The connection is over in both directions, or was reset. Its state can still be read; nothing can
        be sent."""

    def datagram(self, data: bytes, sender: Sender) -> None:
        """A datagram has come. What is to be answered goes by :meth:`send_datagram`."""

    def send_datagram(self, data: Buffer, to: Sender) -> None:
        """Send one, or lose it, as UDP may. RuntimeError without a `udp_port`."""
        if self.datagrams is None:
            raise RuntimeError(f"{type(self).__name__} has no udp_port to send datagrams from")
        self.datagrams.send(data, to)

    def disk_done(self, tag: int, error: str | None, data: memoryview) -> None:
        """The request of :attr:`disk` with `tag` is done, or failed with `error` (the protocol's name of it,
        such as EIO). `data` is what was read: a view of RAM, good until the handler returns."""

    def turn_ended(self) -> None:
        """Every connection that was ready has been served: what they asked may go to the disk together.
        Called before each wait of the machine, also the first after a migration."""

    def reached(self) -> int | None:
        """Which barriers are passed: those up to this number (:meth:`Connection.hold`). None: none will ever
        be again, and the connections that are held are closed as they are, without what waits."""
        return 0

    def stats(self) -> dict[str, Any]:
        """What the result should say of this program (JSON-able)."""
        return {}


def load_program(name: str) -> type[Program]:
    """The class of a shipped program (:data:`SHIPPED`) or of ``package.module:Class``.

    Raises ProgramError with one line when it cannot be imported or is not a Program with a port.
    """
    path = SHIPPED.get(name, name)
    module_name, colon, class_name = path.partition(":")
    if not (module_name and colon and class_name):
        known = ", ".join(sorted(SHIPPED))
        raise ProgramError(f"no program {name!r}: give one of {known}, or package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does on import
        raise ProgramError(f"program {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Program)):
        raise ProgramError(f"program {name!r}: {module_name} has no Program called {class_name}")
    if not 0 < found.port < 65536:
        raise ProgramError(f"program {name!r}: port {found.port} is not a TCP port")
    if not 0 <= found.udp_port < 65536:
        raise ProgramError(f"program {name!r}: udp_port {found.udp_port} is not a UDP port")
    return found
