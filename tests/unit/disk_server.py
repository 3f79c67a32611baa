"""A disk for tests: a medium that can lose what was not flushed, and a server of NBD's transmission phase.

The server is bytes in, bytes out (:class:`Session`); a rehearsal talks to it in the same process
(:class:`DiskOfTests`), a guest's process over a socket (:func:`serving`). What can go wrong goes wrong on
request: answers that are late, a connection that is lost, EPERM and other errors, a flush that does nothing,
a crash of the machine that serves.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from select import EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Any

READ, WRITE, DISC, FLUSH = range(4)
EPERM, EIO = 1, 5
SECTOR_BYTES = 512
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")


class Medium:
    """`size_bytes` that are lasting once flushed. Shared by all connections."""

    def __init__(self, size_bytes: int) -> None:
        self.seen = bytearray(size_bytes)
        self.lasting = bytearray(size_bytes)
        self.flush_works = True
        self.fenced = False
        self.errors: dict[int, int] = {}
        """What an operation is answered with, in place of being carried out."""
        self.log: list[tuple[int, int, int]] = []
        """Every request: operation, offset, length."""
        self._unflushed: set[int] = set()

    def carry_out(self, operation: int, offset: int, length: int, data: bytes) -> tuple[int, bytes]:
        """(error, what was read)."""
        self.log.append((operation, offset, length))
        if self.fenced:
            return EPERM, b""
        if operation in self.errors:
            return self.errors[operation], b""
        if operation == READ:
            return 0, bytes(self.seen[offset : offset + length])
        if operation == WRITE:
            self.seen[offset : offset + length] = data
            self._unflushed |= set(range(offset // SECTOR_BYTES, -(-(offset + length) // SECTOR_BYTES)))
        elif operation == FLUSH and self.flush_works:
            for sector in self._unflushed:
                self._settle(sector, self.lasting, self.seen)
            self._unflushed.clear()
        return 0, b""

    def crash(self, chance: random.Random | None = None) -> None:
        """The machine that serves has lost power: of what was not flushed each sector is there or not."""
        for sector in sorted(self._unflushed):
            if chance is not None and chance.random() < 0.5:
                self._settle(sector, self.lasting, self.seen)
        self.seen[:] = self.lasting
        self._unflushed.clear()

    @staticmethod
    def _settle(sector: int, into: bytearray, source: bytearray) -> None:
        where = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
        into[where] = source[where]


class Session:
    """One connection's end at the server: requests are carried out as they come, and answered in turn."""

    def __init__(self, medium: Medium) -> None:
        self.medium = medium
        self.replies: list[bytes] = []
        self._data = b""

    def feed(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= _REQUEST.size:
            magic, _, operation, cookie, offset, length = _REQUEST.unpack_from(self._data)
            assert magic == 0x25609513, "this is no NBD request"
            end = _REQUEST.size + (length if operation == WRITE else 0)
            if len(self._data) < end:
                return
            payload, self._data = self._data[_REQUEST.size : end], self._data[end:]
            error, read = self.medium.carry_out(operation, offset, length, payload)
            self.replies.append(_REPLY.pack(0x67446698, error, cookie) + read)


class Loopback:
    """A connection in the same process. `window_bytes` is what it takes and gives at a time."""

    def __init__(self, disk: DiskOfTests, fd: int) -> None:
        self._disk = disk
        self._fd = fd
        self._session = Session(disk.medium)
        self._answered = b""
        self.lost = False
        self.closed = False

    def fileno(self) -> int:
        return self._fd

    def sendmsg(self, buffers: Any, _ancillary: Any, _flags: int, /) -> int:
        if self.lost:
            raise BrokenPipeError(32, "Broken pipe")
        part = b"".join(bytes(buffer) for buffer in buffers)[: self._disk.window_bytes]
        self._session.feed(part)
        return len(part)

    def recv_into(self, buffer: Any, _nbytes: int, _flags: int, /) -> int:
        self._collect()
        part = self._answered[: min(len(buffer), self._disk.window_bytes)]
        if not part and not self.lost:
            raise BlockingIOError
        buffer[: len(part)] = part
        self._answered = self._answered[len(part) :]
        return len(part)

    def close(self) -> None:
        self.closed = True

    def events(self) -> int:
        self._collect()
        if self.lost:
            return EPOLLIN | EPOLLOUT | EPOLLHUP
        return EPOLLOUT | (EPOLLIN if self._answered else 0)

    def _collect(self) -> None:
        replies = self._session.replies
        while replies and self._disk.answers > 0 and not self.lost:
            self._disk.answers -= 1
            self._answered += replies.pop(self._disk.chance.randrange(len(replies)))


class DiskOfTests:
    """The disk of a rehearsal. `answers` is how many it gives before it falls silent; they come in any order
    that `chance` likes.
    """

    def __init__(self, size_bytes: int, *, window_bytes: int = 1 << 20, seed: int = 0) -> None:
        self.medium = Medium(size_bytes)
        self.size_bytes = size_bytes
        self.window_bytes = window_bytes
        self.answers: float = float("inf")
        self.chance = random.Random(seed)
        self.connections: list[Loopback] = []

    def connect(self) -> Loopback:
        self.connections.append(Loopback(self, 9000 + len(self.connections)))
        return self.connections[-1]

    def lose(self) -> None:
        """The connection of now ends, whatever was on its way."""
        self.connections[-1].lost = True


class SocketServer:
    """Serves `medium` on one end of a socket pair, in a thread; `theirs` is the guest's end."""

    def __init__(self, medium: Medium) -> None:
        self.medium = medium
        self.answering = threading.Event()
        self.answering.set()
        self._ours, self.theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        session = Session(self.medium)
        with suppress(OSError):
            while data := self._ours.recv(1 << 20):
                session.feed(data)
                self.answering.wait()
                while session.replies:
                    self._ours.sendall(session.replies.pop(0))

    def lose(self) -> None:
        """End the connection, answers that are due or not."""
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self.answering.set()
        self._thread.join()

    def close(self) -> None:
        self.lose()
        self._ours.close()
        self.theirs.close()


@contextmanager
def serving(medium: Medium) -> Iterator[SocketServer]:
    server = SocketServer(medium)
    try:
        yield server
    finally:
        server.close()
