"""A rehearsal: a program on a machine without kernel, network or agent, for its author's tests.

    stage = Rehearsal(Shout)
    peer = stage.connect()
    peer.send(b"hello\\n")
    stage.migrate()                      # the bytes of RAM, and nothing else, go to a new machine
    assert peer.received() == b"HELLO\\n"

`migrate` copies RAM byte for byte, makes a new program object on the copy and wipes the old RAM: what the
program kept anywhere else is gone, just as it would be on another host. The sockets' queues go along, as
they do. A program with a disk is given one that answers at once or when the test wants it (`disk`).
"""

from __future__ import annotations

from contextlib import nullcontext
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Any, Protocol

from testbed.guest.disk import Disk, DiskLost, DiskTransport, Fenced
from testbed.guest.memory import Memory
from testbed.guest.program import Program
from testbed.guest.service import LINGER_NS, TCP_CLOSE, Service

_ESTABLISHED, _CLOSING = 1, 11
_STEPS = 100_000


class Peer:
    """The other end of one connection, and the socket that the guest has of it."""

    def __init__(self, stage: Rehearsal, fd: int, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        """How much the guest's kernel takes before the peer has read it."""
        self.last_ack_held = False
        """While true, the guest's FIN stays without an acknowledgement."""
        self._stage = stage
        self._fd = fd
        self._to_guest = bytearray()
        self._to_peer = bytearray()
        self._ended = self._was_reset = self.guest_ended = self.guest_closed = False

    # -- the peer's side ---------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send `data` and let the guest work until it has nothing left to do."""
        self._to_guest += data
        self._stage.run()

    def received(self, limit: int | None = None) -> bytes:
        """Read what the guest has sent, at most `limit` bytes, and let it go on."""
        taken = bytes(self._to_peer[:limit])
        del self._to_peer[:limit]
        self._stage.run()
        return taken

    def end(self) -> None:
        """Send a FIN: the peer will send no more."""
        self._ended = True
        self._stage.run()

    def reset(self) -> None:
        """Send a RST."""
        self._was_reset = True
        self._stage.run()

    # -- the guest's socket (testbed.guest.connections.Transport) ------------------------------------------

    def fileno(self) -> int:
        return self._fd

    def send_from_guest(self, data: Any, _flags: int, /) -> int:
        if self._was_reset:
            raise ConnectionResetError("reset by peer")
        room = self.window_bytes - len(self._to_peer)
        if room <= 0:
            raise BlockingIOError
        part = bytes(data)[:room]
        self._to_peer += part
        return len(part)

    def recv_into(self, buffer: Any, _nbytes: int, _flags: int, /) -> int:
        if self._was_reset:
            raise ConnectionResetError("reset by peer")
        part = self._to_guest[: len(buffer)]
        if not part and not self._ended:
            raise BlockingIOError
        buffer[: len(part)] = part
        del self._to_guest[: len(part)]
        return len(part)

    def shutdown(self, _how: int, /) -> None:
        self.guest_ended = True

    def getsockopt(self, _level: int, _option: int, _size: int, /) -> bytes:
        if self.guest_ended and self._ended and not self._to_guest:
            return bytes([_CLOSING if self.last_ack_held else TCP_CLOSE])
        return bytes([_ESTABLISHED])

    def close(self) -> None:
        self.guest_closed = True

    def events(self) -> int:
        """What epoll would say of the guest's socket."""
        if self._was_reset:
            return EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP
        events = EPOLLIN if self._to_guest or self._ended else 0
        if len(self._to_peer) < self.window_bytes:
            events |= EPOLLOUT
        return events | EPOLLHUP if self._ended and self.guest_ended else events


class RehearsedTransport(DiskTransport, Protocol):
    """A connection to a disk, and what epoll would say of it."""

    def events(self) -> int: ...


class RehearsedDisk(Protocol):
    """A disk for a rehearsal: how large it is, and a new connection of it for each start and each move."""

    @property
    def size_bytes(self) -> int: ...
    def connect(self) -> RehearsedTransport: ...


class _Socket:
    """The guest's descriptor of a peer: `send` means the other direction there."""

    def __init__(self, peer: Peer) -> None:
        self.send = peer.send_from_guest
        self.fileno, self.recv_into, self.shutdown = peer.fileno, peer.recv_into, peer.shutdown
        self.getsockopt, self.close = peer.getsockopt, peer.close


class _Poller:
    """select.epoll for peers."""

    def __init__(self) -> None:
        self.wanted: dict[int, int] = {}
        self.told: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        if fd in self.wanted:
            raise FileExistsError(fd)
        self.wanted[fd] = events

    def modify(self, fd: int, events: int) -> None:
        if fd not in self.wanted:
            raise FileNotFoundError(fd)
        self.wanted[fd] = events
        self.told.pop(fd, None)

    def unregister(self, fd: int) -> None:
        del self.wanted[fd]
        self.told.pop(fd, None)

    def ready(self, fd: int, events: int) -> int:
        """Those of `events` that are to be reported now."""
        wanted = self.wanted[fd]
        events &= (wanted & ~EPOLLET) | EPOLLERR | EPOLLHUP
        if wanted & EPOLLET and self.told.get(fd) == events:
            return 0
        self.told[fd] = events
        return events


class Rehearsal:
    """Runs `program_class` in `ram_bytes` of ordinary memory, on a host called `host`.

    `fenced` has the disk's last word once it belongs to another; nothing runs then.
    """

    def __init__(
        self,
        program_class: type[Program],
        *,
        ram_bytes: int = 4 << 20,
        host: str = "host-a",
        max_connections: int = 64,
        disk: RehearsedDisk | None = None,
    ) -> None:
        self.host = host
        self.now_ns = 0
        self.peers: dict[int, Peer] = {}
        self._class = program_class
        self._next_fd = 100
        self._max_connections = max_connections
        self._disk_source = disk
        self._transport: RehearsedTransport | None = None
        self.disk: Disk | None = None
        self.fenced: str | None = None
        self._assemble(bytearray(ram_bytes), fresh=True)

    def connect(self, window_bytes: int = 1 << 20) -> Peer:
        """A new peer, of whose input the guest's kernel takes `window_bytes` ahead."""
        peer = Peer(self, self._next_fd, window_bytes)
        self._next_fd += 1
        self.peers[peer.fileno()] = peer
        self.service.accept(peer.fileno())
        self.run()
        return peer

    def run(self) -> None:
        """Let the guest work until nothing is left to do. RuntimeError when it never ends."""
        for _ in range(_STEPS):
            if not self.step():
                return
        raise RuntimeError(f"{self._class.__name__} is still busy after {_STEPS} steps")

    def step(self) -> bool:
        """One handler at most for each connection, as the machine does; False when there was nothing to do.
        """
        if self.fenced is not None:
            return False
        if self.disk is not None:
            self.disk.resume()
        self.service.end_turn()
        busy = self._step_disk()
        for _, fd in self.service.bound():
            events = self._poller.ready(fd, self.peers[fd].events()) if fd in self._poller.wanted else 0
            if events:
                connection = self.service.connections.get(fd) or self.service.wake(fd)
                self.service.ready(connection, events)
                busy = True
        if self.service.queue:
            self.service.run_queued()
            busy = True
        return busy

    def _step_disk(self) -> bool:
        if self.disk is None or self._transport is None or self.disk.fd < 0:
            return False
        events = self._poller.ready(self.disk.fd, self._transport.events())
        try:
            if events:
                self.disk.ready(events, self.service.disk_done)
        except Fenced as error:
            self.fenced = str(error)
        except DiskLost:
            self._transport = None
        return bool(events)

    def reconnect_disk(self) -> None:
        """Give the guest another connection of its disk, in place of what it has."""
        if self.disk is not None and self._disk_source is not None:
            self._transport = self._disk_source.connect()
            self.disk.connect(self._transport)

    def migrate(self, host: str = "host-b") -> None:
        """Go on elsewhere, with the bytes of RAM and the sockets; the old RAM is wiped. Nothing is run yet.
        """
        self.host = host
        bound = dict(self.service.bound())
        faults, old = self.service.faults, self._ram
        new = bytearray(old)
        # Every view of the old RAM would still work: what is read through one must not look like state.
        old[:] = b"\xa5" * len(old)
        self._assemble(new, fresh=False)
        self.service.faults.extend(faults)
        for slot in self.service.table.slots():
            self.service.adopt(slot, bound[slot])

    def elapse(self, nanoseconds: int = LINGER_NS) -> None:
        """Let time pass for the linger limit."""
        self.now_ns += nanoseconds
        self.service.sweep()

    def _assemble(self, ram: bytearray, *, fresh: bool) -> None:
        self._ram = ram
        self._poller = _Poller()
        memory = Memory(memoryview(ram))
        self.program = self._class(memory)
        self.program.host = self.host
        if self._disk_source is not None:
            self.disk = Disk(memory, self._poller, self._disk_source.size_bytes if fresh else None)
            self.reconnect_disk()
            self.program.disk = self.disk
        self.service = Service(
            self.program,
            memory,
            self._poller,
            lambda fd: _Socket(self.peers[fd]),
            lambda: self.now_ns,
            max_connections=self._max_connections,
        )
        if fresh:
            with self.disk.booting() if self.disk is not None else nullcontext():
                self.program.boot()
        self.program.attach()
