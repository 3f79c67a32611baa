"""Channels carry messages: over TCP here, through memory in the tests.

This is the one module of the room that does I/O. Page data goes from the source's RAM to the socket without a
copy of ours (``sendfile`` for long runs, a gathered ``sendmsg`` for scattered pages) and from the socket
straight into the target's RAM.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import Protocol

from testbed.kernel.tcp_repair import SO_MAX_PACING_RATE
from testbed.memory.region import Region
from testbed.migration.errors import PeerLost, ProtocolError
from testbed.migration.wire import HEADER, PAGE, Message, Pages, encode, parse, parse_header

SENDFILE_PAGES = 16  # mean length of a run from which sendfile beats a gathered send


class Channel(Protocol):
    """Ordered, reliable, both ways. Every method raises PeerLost where the other end is gone or silent for
    too long."""

    def send(self, *messages: Message) -> int:
        """Send messages without page data; returns the bytes sent."""
        ...

    def send_pages(self, message: Pages, ram: Region) -> int:
        """Send a Pages message and its data out of `ram`; returns the bytes sent."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Whether something of the peer's, or its end, is there within so long."""
        ...

    def receive(self) -> Message:
        """The next message. Page data must be taken with :meth:`receive_pages` before the next call."""
        ...

    def receive_pages(self, message: Pages, ram: Region) -> None:
        """Read the data of `message` into `ram`. The caller has checked that the pages exist."""
        ...

    def limit_rate(self, bytes_per_s: int | None) -> None:
        """Cap the sending rate; None takes the cap away."""
        ...

    def set_deadline(self, deadline_s: float) -> None:
        """From here on, how long the other end may be silent."""
        ...

    def drain(self) -> None:
        """Read and throw away until the peer closes, so that what was sent last is not lost to a reset."""
        ...

    def close(self) -> None: ...


class TcpChannel:
    """A channel over a connected TCP socket. `deadline_s` bounds every wait for the peer."""

    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        self._socket = connection
        self._header = bytearray(HEADER.size)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Kernel deadlines, not settimeout(): that makes the socket non-blocking and puts a poll before each
        # call.
        connection.settimeout(None)
        self.set_deadline(deadline_s)

    def set_deadline(self, deadline_s: float) -> None:
        deadline = struct.pack("ll", int(deadline_s), int(deadline_s % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, deadline)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, deadline)

    def send(self, *messages: Message) -> int:
        return self.send_bytes(b"".join(map(encode, messages)))

    def send_bytes(self, data: bytes) -> int:
        """Send bytes that are messages already; returns how many."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise _lost(error) from error
        return len(data)

    def send_pages(self, message: Pages, ram: Region) -> int:
        head = encode(message)
        size = message.pages * PAGE
        try:
            if message.pages >= SENDFILE_PAGES * len(message.runs):
                self._socket.sendall(head, socket.MSG_MORE)
                for start, count in message.runs:
                    self._sendfile(ram.fd, start * PAGE, count * PAGE)
            else:
                parts = [memoryview(head), *(ram.view[s * PAGE : (s + c) * PAGE] for s, c in message.runs)]
                _send_gathered(self._socket, parts)
        except OSError as error:
            raise _lost(error) from error
        return len(head) + size

    def _sendfile(self, fd: int, offset: int, size: int) -> None:
        while size:
            sent = os.sendfile(self._socket.fileno(), fd, offset, size)
            if not sent:
                raise PeerLost("guest RAM ended before the run of pages did")
            offset, size = offset + sent, size - sent

    def wait(self, timeout_s: float) -> bool:
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    def receive(self) -> Message:
        self._read([memoryview(self._header)])
        header = parse_header(self._header)
        payload = bytearray(header.length)
        if header.length:
            self._read([memoryview(payload)])
        return parse(header, payload)

    def receive_pages(self, message: Pages, ram: Region) -> None:
        self._read([ram.view[start * PAGE : (start + count) * PAGE] for start, count in message.runs])

    def _read(self, parts: list[memoryview]) -> None:
        try:
            while parts:
                got = self._socket.recvmsg_into(parts, 0, socket.MSG_WAITALL)[0]
                if not got:
                    raise PeerLost("the peer closed the connection")
                parts = _after(parts, got)
        except OSError as error:
            raise _lost(error) from error

    def limit_rate(self, bytes_per_s: int | None) -> None:
        # TCP paces by itself where the fq qdisc is missing (net/ipv4/tcp_timer.c, tcp_pace_kick).
        unlimited = (1 << 32) - 1
        rate = unlimited if bytes_per_s is None else min(bytes_per_s, unlimited - 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("I", rate))

    def drain(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(1 << 16):
                pass
        except OSError as error:
            raise _lost(error) from error

    def close(self) -> None:
        self._socket.close()


def _send_gathered(connection: socket.socket, parts: list[memoryview]) -> None:
    while parts:
        parts = _after(parts, connection.sendmsg(parts))


def _after(parts: list[memoryview], done: int) -> list[memoryview]:
    """What is left of `parts` when the first `done` bytes are through."""
    for index, part in enumerate(parts):
        if done < len(part):
            return [part[done:], *parts[index + 1 :]]
        done -= len(part)
    return []


def _lost(error: OSError) -> Exception:
    if isinstance(error, BlockingIOError):
        return PeerLost("the peer was silent past the deadline")
    if isinstance(error, ProtocolError | PeerLost):
        return error
    return PeerLost(f"connection to the peer: {error.strerror or error}")
