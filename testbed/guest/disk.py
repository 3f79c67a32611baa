"""The guest's virtual disk: requests that live in RAM, and a socket of whatever host serves them just now.

A program writes, reads and flushes without waiting; each request carries a *tag*, a small number of the
program's own, and :meth:`~testbed.guest.program.Program.disk_done` is called with it. No closure could be:
the request may be made on one host and answered on another.

At a pause nothing is drained. Requests under way stay in RAM (:mod:`testbed.guest.ring`); the machine that
goes on sends them again on the connection that it was given, once it runs, for only from then on is it the
disk's owner. After a rollback the old connection goes on as if nothing had been. An answer that came to the
old host is not missed: the request is made again, and answered again.

A flush covers every write given before it, and is told only when they are on the medium: also when the
connection was lost in between, for what no flush has covered is kept in RAM, and sent again.

EPERM means *fenced*: the disk belongs to another host's guest, and this one must not do anything any more.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import EPOLLIN, EPOLLOUT
from socket import MSG_DONTWAIT, MSG_NOSIGNAL
from time import monotonic
from typing import Any, Protocol

from testbed.guest.memory import Memory
from testbed.guest.ring import FLUSH, READ, WRITE, DiskBusy, Ring
from testbed.storage import nbd
from testbed.storage.nbd import NbdBroken, NbdRefused, Request

__all__ = ["Disk", "DiskBusy", "DiskError", "DiskLost", "Fenced"]

READ_NOW_DEADLINE_S = 10.0
_READ_NOW_BYTES = 1 << 20
_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL

Tell = Callable[[int, str | None, memoryview], None]
"""Told of a request that is done: its tag, the error's name or None, and what was read."""


class DiskError(Exception):
    """The disk could not do it; the text has the protocol's name of the error, such as EIO."""


class DiskLost(Exception):
    """The connection is gone or talks nonsense: the requests wait for another one."""


class Fenced(Exception):
    """The disk is another's now: nothing more may run here."""


class DiskTransport(Protocol):
    """The part of a socket that a disk uses. None of these blocks."""

    def fileno(self) -> int: ...
    def sendmsg(self, buffers: Any, ancillary: Any, flags: int, /) -> int: ...
    def recv_into(self, buffer: Any, nbytes: int, flags: int, /) -> int: ...
    def close(self) -> None: ...


class DiskPoller(Protocol):
    """The part of select.epoll that a disk uses."""

    def register(self, fd: int, events: int) -> None: ...
    def modify(self, fd: int, events: int) -> None: ...
    def unregister(self, fd: int) -> None: ...


class Disk:
    """The disk of the guest in `memory`: a new one of `size_bytes`, or (None) the one that its RAM has."""

    def __init__(self, memory: Memory, poller: DiskPoller, size_bytes: int | None = None) -> None:
        self._memory = memory
        self._ring = Ring(memory, size_bytes)
        self._poller = poller
        self._transport: DiskTransport | None = None
        self._running = self._booting = False
        self._armed = 0
        self._outgoing: list[bytes | memoryview] = []  # what is left of the request that is being sent
        self._head = bytearray(nbd.SIMPLE_REPLY.size)
        self._body: memoryview | None = None  # where a read's data goes, while it comes
        self._received = 0  # bytes of the head, or of the body
        self._answered = 0  # the slot whose body comes

    # -- for programs ------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        return self._ring.size_bytes

    @property
    def free_slots(self) -> int:
        """How many requests can be given now."""
        return self._ring.free_slots

    def write(self, offset: int, data: bytes | bytearray | memoryview, tag: int) -> None:
        """Write a copy of `data` at `offset`. Done means that it is with the disk; a flush makes it lasting.

        ValueError when it does not lie on the disk, OutOfMemory, DiskBusy: nothing was queued then.
        """
        length = len(data)
        self._check(offset, length)
        block = self._memory.heap.alloc(length)
        self._memory.view[block : block + length] = data
        try:
            self.write_block(offset, block, length, tag)
        except DiskBusy:
            self._memory.heap.free(block)
            raise

    def write_block(self, offset: int, block: int, length: int, tag: int) -> None:
        """Write the first `length` bytes of a block of the heap, which is the disk's from here on: it frees
        it. ValueError and DiskBusy as above; the block is still the caller's then.
        """
        self._check(offset, length)
        self._ring.add(WRITE, offset, length, tag, block)
        self._send()

    def flush(self, tag: int) -> None:
        """Make every write given so far lasting. Raises DiskBusy."""
        self._ring.add(FLUSH, 0, 0, tag, 0)
        self._send()

    def read(self, offset: int, length: int, tag: int) -> None:
        """Read; the data is told with the tag. Errors as of :meth:`write`."""
        self._check(offset, length)
        block = self._memory.heap.alloc(length)
        try:
            self._ring.add(READ, offset, length, tag, block)
        except DiskBusy:
            self._memory.heap.free(block)
            raise
        self._send()

    def read_now(self, offset: int, length: int, deadline_s: float = READ_NOW_DEADLINE_S) -> bytes:
        """Read and wait for it: in Program.boot() alone, before anyone is served.

        Raises RuntimeError elsewhere, ValueError, DiskError; DiskLost past the deadline, too.
        """
        if not self._booting:
            raise RuntimeError("read_now() is for boot() alone: elsewhere it would stop the guest")
        self._check(offset, length)
        end_s = monotonic() + deadline_s
        pieces = []
        for start in range(offset, offset + length, _READ_NOW_BYTES):
            pieces.append(self._read_piece(start, min(_READ_NOW_BYTES, offset + length - start), end_s))
        return b"".join(pieces)

    def _check(self, offset: int, length: int) -> None:
        if length < 1 or offset < 0 or offset + length > self.size_bytes:
            raise ValueError(f"{length} bytes at {offset} do not lie on a disk of {self.size_bytes} bytes")

    # -- for the machine ---------------------------------------------------------------------------------

    @property
    def fd(self) -> int:
        """The descriptor of its connection, -1 while there is none."""
        return -1 if self._transport is None else self._transport.fileno()

    def connect(self, transport: DiskTransport) -> None:
        """Use `transport`, in place of what there was. All that is not known to be on the medium will be sent
        on it, at once when the machine runs."""
        self.disconnect()
        self._poller.register(transport.fileno(), EPOLLIN)
        self._transport, self._armed = transport, EPOLLIN
        self._ring.start_again()
        self._send()

    def grow(self, size_bytes: int) -> None:
        """The disk has `size_bytes` now. ValueError when it had more: what lies there would be lost."""
        self._ring.grow(size_bytes)

    def disconnect(self) -> None:
        """Close the connection, if there is one; the requests wait for another."""
        if self._transport is not None:
            self._poller.unregister(self._transport.fileno())
            self._transport.close()
            self._transport = None
        self._outgoing, self._body, self._received = [], None, 0

    @contextmanager
    def booting(self) -> Iterator[None]:
        """The program boots: it may read and wait."""
        self._booting = True
        try:
            yield
        finally:
            self._booting = False

    def resume(self) -> None:
        """The machine runs: send what waits."""
        self._running = True
        self._send()

    def pause(self) -> None:
        """The machine does not run: nothing is sent."""
        self._running = False

    def ready(self, events: int, tell: Tell) -> None:
        """The poller says `events` of :attr:`fd`: send on, take at most one answer and tell it.

        Raises Fenced, and DiskLost: the connection is closed then.
        """
        if events & EPOLLOUT:
            self._send()
        if events & ~EPOLLOUT:
            try:
                self._receive(tell)
            except Fenced:
                self.disconnect()
                raise
            except NbdBroken as error:
                self.disconnect()
                raise DiskLost(f"disk: {error}") from error
            except OSError as error:
                self.disconnect()
                raise DiskLost(f"disk: {error.strerror}") from error

    def stats(self) -> dict[str, Any]:
        """As of :meth:`testbed.guest.ring.Ring.stats`, and whether there is a connection."""
        return {**self._ring.stats(), "connected": self._transport is not None}

    # -- sending -----------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Send what may be sent, as far as the socket takes it. That it is broken is told by the poller."""
        if not self._running or self._transport is None:
            return
        while self._outgoing or self._begin_next():
            try:
                count = self._transport.sendmsg(self._outgoing, (), _FLAGS)
            except BlockingIOError:
                break
            except OSError:
                return
            self._outgoing = _rest(self._outgoing, count)
        wanted = EPOLLIN | EPOLLOUT if self._outgoing else EPOLLIN
        if wanted != self._armed:
            self._armed = wanted
            self._poller.modify(self._transport.fileno(), wanted)

    def _begin_next(self) -> bool:
        ring = self._ring
        slot = ring.to_send()
        if slot is None:
            return False
        operation, length = ring.operation(slot), ring.length(slot)
        request = Request(operation, ring.offset(slot), length, cookie=ring.cookie(slot))
        self._outgoing = [nbd.encode_request(request)]
        if operation == WRITE:
            self._outgoing.append(ring.data(slot))
        ring.sent(slot)
        return True

    # -- receiving ---------------------------------------------------------------------------------------

    def _receive(self, tell: Tell) -> None:
        if self._body is None:
            if not self._fill(memoryview(self._head)):
                return
            error, cookie = nbd.parse_reply_header(self._head)
            slot = self._ring.slot_of(cookie)
            if slot is None:
                raise NbdBroken(f"a reply to {cookie}, which was not asked")
            if error == nbd.Error.EPERM:
                raise Fenced("the disk refuses this host (EPERM): it belongs to another owner now")
            if error == nbd.Error.ESHUTDOWN:
                raise NbdBroken("the server is shutting down")
            if error or self._ring.operation(slot) != READ:
                self._done(slot, error, tell)
                return
            self._answered, self._body = slot, self._ring.data(slot)
        if self._fill(self._body):
            self._body = None
            self._done(self._answered, 0, tell)

    def _fill(self, buffer: memoryview) -> bool:
        """Receive into `buffer` from where it is filled; True when it is full."""
        assert self._transport is not None
        try:
            count = self._transport.recv_into(buffer[self._received :], 0, MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if not count:
            raise NbdBroken("the connection has ended")
        self._received += count
        if self._received < len(buffer):
            return False
        self._received = 0
        return True

    def _done(self, slot: int, error: int, tell: Tell) -> None:
        ring = self._ring
        tag, silent = ring.tag(slot), ring.silent(slot)
        is_read = ring.operation(slot) == READ
        data = ring.data(slot) if is_read and not error else memoryview(b"")
        error = ring.done(slot, error)
        try:
            if not silent:
                tell(tag, nbd.error_name(error) if error else None, data)
        finally:
            if is_read:
                ring.release(slot)
        if ring.flush_is_due():
            ring.add(FLUSH, 0, 0, 0, 0, silent=True)
        self._send()

    # -- waiting, while the program boots ----------------------------------------------------------------

    def _read_piece(self, offset: int, length: int, end_s: float) -> bytes:
        cookie = self._ring.take_number()
        request = Request(READ, offset, length, cookie=cookie)
        self._transfer([nbd.encode_request(request)], end_s)
        try:
            nbd.parse_simple_reply(self._receive_now(nbd.SIMPLE_REPLY.size, end_s), request)
        except NbdBroken as problem:
            raise DiskLost(f"disk: {problem}") from problem
        except NbdRefused as refused:
            raise DiskError(f"{length} bytes at {offset} cannot be read: {refused.name}") from refused
        return bytes(self._receive_now(length, end_s))

    def _transfer(self, buffers: list[bytes | memoryview], end_s: float) -> None:
        while buffers:
            try:
                buffers = _rest(buffers, self._connected().sendmsg(buffers, (), _FLAGS))
            except BlockingIOError:
                self._wait(False, end_s)
            except OSError as error:
                raise DiskLost(f"disk: {error.strerror}") from error

    def _receive_now(self, length: int, end_s: float) -> bytearray:
        data, filled = bytearray(length), 0
        while filled < length:
            try:
                count = self._connected().recv_into(memoryview(data)[filled:], 0, MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(True, end_s)
                continue
            except OSError as error:
                raise DiskLost(f"disk: {error.strerror}") from error
            if not count:
                raise DiskLost("disk: the connection has ended")
            filled += count
        return data

    def _connected(self) -> DiskTransport:
        if self._transport is None:
            raise DiskLost("the disk has no connection")
        return self._transport

    def _wait(self, for_input: bool, end_s: float) -> None:
        waiting = [self.fd]
        left_s = max(0.0, end_s - monotonic())
        if not any(select.select(waiting if for_input else [], [] if for_input else waiting, [], left_s)):
            raise DiskLost("disk: no answer within the deadline")


def _rest(buffers: list[bytes | memoryview], count: int) -> list[bytes | memoryview]:
    """What is left of `buffers` when `count` bytes of them are gone."""
    while buffers and count >= len(buffers[0]):
        count -= len(buffers[0])
        buffers = buffers[1:]
    return [memoryview(buffers[0])[count:], *buffers[1:]] if buffers and count else buffers
