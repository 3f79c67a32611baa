"""Channels carry messages: over TCP here, through memory in the tests.

This is the one module of the room that does I/O. Page data goes from the source's RAM to the socket without a
copy of ours (``sendfile`` for long runs, a gathered ``sendmsg`` for scattered pages) and from the socket
straight into the target's RAM.

What limits a long round is the copy into the target's RAM, on one processor. So the data of a large Pages
message is cut in two by pages: the first half follows the message, the second travels at the same time on the
*lane*, a second connection that carries nothing else and is read by a thread of its own. Both halves are
there before the next message is read.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from testbed.memory.region import Region
from testbed.migration.errors import PeerLost, ProtocolError
from testbed.migration.wire import (
    HEADER,
    PAGE,
    PROOF,
    Message,
    Pages,
    Proof,
    Run,
    StripedPages,
    check_proof,
    encode,
    parse,
    parse_header,
    prove,
)

STRIPED_PAGES = 1024  # a message of fewer pages is not worth two threads
SENDFILE_PAGES = 16  # mean length of a run from which sendfile beats a gathered send
SO_MAX_PACING_RATE = 47  # include/uapi/asm-generic/socket.h


class Channel(Protocol):
    """Ordered, reliable, both ways. Every method raises PeerLost where the other end is gone or silent for
    too long."""

    def send(self, *messages: Message) -> int:
        """Send messages without page data; returns the bytes sent."""
        ...

    def send_pages(self, message: Pages, ram: Region) -> int:
        """Send a Pages message and its data out of `ram`; returns the bytes sent."""
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
    """A channel over a connected TCP socket. `deadline_s` bounds every wait for the peer.

    `open_lane` makes the second connection when it is needed first; it raises PeerLost or ProtocolError. A
    source without one stripes nothing, a target without one refuses what is striped.
    """

    def __init__(
        self,
        connection: socket.socket,
        deadline_s: float,
        open_lane: Callable[[], socket.socket] | None = None,
    ) -> None:
        self._socket = connection
        self._deadline_s = deadline_s
        self._open_lane = open_lane
        self._lane: _Lane | None = None
        self._header = bytearray(HEADER.size)
        _prepare(connection)
        self.set_deadline(deadline_s)

    def set_deadline(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        _set_deadline(self._socket, deadline_s)

    def send(self, *messages: Message) -> int:
        data = b"".join(map(encode, messages))
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise _lost(error) from error
        return len(data)

    def send_pages(self, message: Pages, ram: Region) -> int:
        first: Sequence[Run] = message.runs
        if self._open_lane is not None and message.pages >= STRIPED_PAGES:
            message = StripedPages(message.runs)
            first, second = halves(message.runs)
            self._the_lane().start(lambda lane: _send_runs(lane, b"", second, ram))
        head = encode(message)
        try:
            _send_runs(self._socket, head, first, ram)
        except OSError as error:
            raise _lost(error) from error
        return len(head) + message.pages * PAGE

    def _the_lane(self) -> _Lane:
        if self._lane is None:
            if self._open_lane is None:
                raise ProtocolError("striped page data on a channel without a lane")
            connection = self._open_lane()
            _prepare(connection)
            _set_deadline(connection, self._deadline_s)
            self._lane = _Lane(connection)
        return self._lane

    def receive(self) -> Message:
        self._read([memoryview(self._header)])
        header = parse_header(self._header)
        payload = bytearray(header.length)
        if header.length:
            self._read([memoryview(payload)])
        return parse(header, payload)

    def receive_pages(self, message: Pages, ram: Region) -> None:
        if not isinstance(message, StripedPages):
            self._read(_views(message.runs, ram))
            return
        first, second = halves(message.runs)
        self._the_lane().start(lambda lane: _read(lane, _views(second, ram)))
        self._read(_views(first, ram))
        self._the_lane().wait()

    def _read(self, parts: list[memoryview]) -> None:
        try:
            _read(self._socket, parts)
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
        if self._lane is not None:
            self._lane.close()


def connect_lane(address: tuple[str, int], secret: bytes, deadline_s: float) -> socket.socket:
    """The source's `open_lane`: a second connection to the target's `address`. Raises PeerLost."""
    try:
        connection = socket.create_connection(address, deadline_s)
        connection.sendall(encode(Proof(prove(secret, "lane", b"", b""))))
    except OSError as error:
        raise _lost(error) from error
    return connection


def accept_lane(listener: socket.socket, secret: bytes, deadline_s: float) -> socket.socket:
    """The target's `open_lane`: takes it from `listener`. Raises PeerLost, or ProtocolError for somebody
    else's."""
    listener.settimeout(deadline_s)
    data = bytearray(HEADER.size + PROOF)
    try:
        connection, _ = listener.accept()
        _set_deadline(connection, deadline_s)
        _read(connection, [memoryview(data)])
    except OSError as error:
        raise _lost(error) from error
    message = parse(parse_header(data[: HEADER.size]), data[HEADER.size :])
    if not isinstance(message, Proof):
        raise ProtocolError(f"{type(message).__name__} where the lane's Proof was due")
    check_proof(message, secret, "lane", b"", b"")
    return connection


class _Lane:
    """The second connection and the thread that works on it, one piece of work at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._thread = ThreadPoolExecutor(1, "lane")
        self._work: Future[None] | None = None

    def start(self, work: Callable[[socket.socket], None]) -> None:
        """Begin `work`, once what was begun before it is done. Raises what that raised, as PeerLost."""
        self.wait()
        self._work = self._thread.submit(work, self._connection)

    def wait(self) -> None:
        """Return when nothing is under way any more."""
        work, self._work = self._work, None
        try:
            if work is not None:
                work.result()
        except OSError as error:
            raise _lost(error) from error

    def close(self) -> None:
        """End what is under way by ending the connection under it."""
        with suppress(OSError):  # it may have ended by itself
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.shutdown()
        self._connection.close()


def halves(runs: Sequence[Run]) -> tuple[Sequence[Run], Sequence[Run]]:
    """Cut `runs` in two, in order, the first with half the pages (rounded down)."""
    left = sum(count for _, count in runs) // 2
    first: list[Run] = []
    for index, (start, count) in enumerate(runs):
        if count > left:
            second = [(start + left, count - left), *runs[index + 1 :]]
            return (*first, (start, left)) if left else first, second
        first.append((start, count))
        left -= count
    return first, ()


def _prepare(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Kernel deadlines, not settimeout(): that makes the socket non-blocking and puts a poll before each call.
    connection.settimeout(None)


def _set_deadline(connection: socket.socket, deadline_s: float) -> None:
    deadline = struct.pack("ll", int(deadline_s), int(deadline_s % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, deadline)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, deadline)


def _views(runs: Sequence[Run], ram: Region) -> list[memoryview]:
    return [ram.view[start * PAGE : (start + count) * PAGE] for start, count in runs]


def _send_runs(connection: socket.socket, head: bytes, runs: Sequence[Run], ram: Region) -> None:
    if sum(count for _, count in runs) >= SENDFILE_PAGES * len(runs):
        if head:
            connection.sendall(head, socket.MSG_MORE)
        for start, count in runs:
            _sendfile(connection, ram.fd, start * PAGE, count * PAGE)
    else:
        _send_gathered(connection, [memoryview(head), *_views(runs, ram)])


def _sendfile(connection: socket.socket, fd: int, offset: int, size: int) -> None:
    while size:
        sent = os.sendfile(connection.fileno(), fd, offset, size)
        if not sent:
            raise OSError(errno.EIO, "guest RAM ended before the run of pages did")
        offset, size = offset + sent, size - sent


def _read(connection: socket.socket, parts: list[memoryview]) -> None:
    while parts:
        # At most IOV_MAX parts a call (include/uapi/linux/uio.h).
        got = connection.recvmsg_into(parts[:1024], 0, socket.MSG_WAITALL)[0]
        if not got:
            raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
        parts = _after(parts, got)


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
    return PeerLost(f"connection to the peer: {error.strerror or error}")
