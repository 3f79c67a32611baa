"""Connections whose every fact is in guest RAM.

A connection has a *slot*: a record of sixteen words in a table, with its flags and the places of its inbox
and outbox in the heap, and beside it the bytes that the program asked for. The descriptor is not in the
record: it is bound to the slot anew wherever the guest is attached. A :class:`Connection` is a handle on a
slot and holds nothing that could not be made again from RAM and the descriptor.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import MSG_DONTWAIT, MSG_NOSIGNAL
from typing import Any, Protocol

import numpy as np

from testbed.guest.memory import Memory

RECORD_WORDS = 16
FLAGS, IN_OFFSET, IN_CAPACITY, IN_START, IN_END, OUT_OFFSET, OUT_CAPACITY, OUT_START, OUT_END = range(9)
BARRIER = 9

OPEN = 1
NEW = 2  # connected() has not been called yet
AGAIN = 4  # the program wants to be called again
STREAM = 8  # the program wants to hear when more can be sent
CLOSING = 16  # the program has closed
FIN_SENT = 32  # ... and everything is with the kernel, our FIN too
PEER_ENDED = 64  # the peer's FIN has been read
BROKEN = 128  # reset, or given up
HELD = 256  # nothing is sent and no input taken until the program has reached the barrier
RELEASED = 512  # ... and it has: what waits is to be sent, what has come to be carried out

INBOX_BYTES = 1024 - 16
"""First size of an inbox. Small: an idle connection's pages are copied too."""
BULK_BYTES = (64 << 10) - 16
"""An inbox whose reads fill it doubles up to this size (less the header of its block); it is also what one
read takes at most."""
OUTBOX_BYTES = (16 << 10) - 16
OUTBOX_HIGH_BYTES = 64 << 10
"""With so much unsent, a connection is congested: the machine reads no more of its input."""

_SEND_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL


class Transport(Protocol):
    """The part of a socket that a connection uses."""

    def fileno(self) -> int: ...
    def send(self, data: Any, flags: int, /) -> int: ...
    def recv_into(self, buffer: Any, nbytes: int, flags: int, /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class ConnectionTable:
    """The slots in RAM: `count` records, a stack of free slots, and `state_bytes` for the program in each.

    RAM that has a table already keeps its count. Slots are given out lowest first after boot, so that few
    connections touch few pages.
    """

    def __init__(self, memory: Memory, count: int, state_bytes: int) -> None:
        self.memory = memory
        found = memory.heap.find("machine.slots")
        fresh = found is None
        if found is not None:
            count = found[1] // 8 - 1
        self.count = count
        self.words = memory.words("machine.connections", count * RECORD_WORDS)
        self._free = memory.words("machine.slots", count + 1)  # word 0: how many are free; then the stack
        self._state_bytes = -(-state_bytes // 8) * 8
        self._states = memory.bytes("machine.states", max(16, count * self._state_bytes))
        self.state_bytes = state_bytes
        if fresh:
            for index in range(count):
                self._free[1 + index] = count - 1 - index
            self._free[0] = count

    @property
    def in_use(self) -> int:
        return self.count - int(self._free[0])

    def slots(self) -> list[int]:
        """The slots in use, lowest first."""
        records = np.frombuffer(self.words, np.uint64).reshape(self.count, RECORD_WORDS)
        in_use: list[int] = np.flatnonzero(records[:, FLAGS]).tolist()
        return in_use

    def flags(self, slot: int) -> int:
        return int(self.words[slot * RECORD_WORDS + FLAGS])

    def state(self, slot: int) -> memoryview:
        start = slot * self._state_bytes
        return self._states[start : start + self.state_bytes]

    def take(self) -> int | None:
        """A new slot, open, with an inbox, its state zero; None when all are in use. OutOfMemory changes
        nothing."""
        left = self._free[0]
        if not left:
            return None
        inbox = self.memory.heap.alloc(INBOX_BYTES)
        slot = int(self._free[left])
        self._free[0] = left - 1
        base = slot * RECORD_WORDS
        for word in range(RECORD_WORDS):
            self.words[base + word] = 0
        self.words[base + IN_OFFSET], self.words[base + IN_CAPACITY] = inbox, INBOX_BYTES
        self.words[base + FLAGS] = OPEN | NEW
        if self.state_bytes:
            self.state(slot)[:] = bytes(self.state_bytes)
        return slot

    def give_back(self, slot: int) -> None:
        """End of a connection: its boxes are freed and its slot is the next to be used."""
        base = slot * RECORD_WORDS
        self.memory.heap.free(self.words[base + IN_OFFSET])
        if self.words[base + OUT_OFFSET]:
            self.memory.heap.free(self.words[base + OUT_OFFSET])
        self.words[base + FLAGS] = 0
        left = self._free[0] + 1
        self._free[left] = slot
        self._free[0] = left


class Connection:
    """One TCP peer, as the program sees it. `inbox`, `consume`, `send`, `close` and `state` are most of
    it."""

    __slots__ = (
        "_inbox", "_ram", "_table", "_words", "alive", "armed", "base", "kept", "queued", "receive_into",
        "slot", "socket", "state", "transmit",
    )  # fmt: skip

    def __init__(self, table: ConnectionTable, slot: int, socket: Transport) -> None:
        self.slot = slot
        """Its number: the same for as long as it lives, on whatever host; used again after it has closed."""
        self.state = table.state(slot)
        """`connection_state_bytes` bytes of RAM for the program."""
        self.socket = socket
        self.transmit: Callable[[Any, int], int] = socket.send
        self.receive_into: Callable[[Any, int, int], int] = socket.recv_into
        self.armed = -1  # the events that the poller was told to watch for
        self.queued = False  # in the service's queue of those to be called again
        self.kept = False  # in the service's list of those that are held
        self.alive = True
        self._table = table
        self._words = table.words
        self.base = slot * RECORD_WORDS
        self._ram = table.memory.view
        self._map_inbox()

    # -- for programs ------------------------------------------------------------------------------------
    # ------------------------------------------------------------------------------------------------

    @property
    def inbox(self) -> memoryview:
        """What has come and is not consumed, in RAM. A view: good until the handler returns or consumes."""
        words, base = self._words, self.base
        return self._inbox[words[base + IN_START] : words[base + IN_END]]

    def consume(self, count: int) -> None:
        """Forget the first `count` bytes of the inbox. ValueError when there are fewer."""
        words, base = self._words, self.base
        start = words[base + IN_START] + count
        end = words[base + IN_END]
        if start == end:
            words[base + IN_START] = words[base + IN_END] = 0
        elif count < 0 or start > end:
            raise ValueError(f"consume({count}): the inbox holds {end - start + count} bytes")
        else:
            words[base + IN_START] = start

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`: what the kernel does not take now waits in the outbox, in RAM.

        To a peer that has gone the bytes are dropped, and closed() follows. Raises OutOfMemory when the
        outbox cannot grow (none of the rest is queued then), ValueError after close().
        """
        words, base = self._words, self.base
        if words[base] & (CLOSING | BROKEN):
            if words[base] & BROKEN:
                return
            raise ValueError("send() after close()")
        if not words[base + OUT_END] and not words[base] & HELD:
            try:
                sent = self.transmit(data, _SEND_FLAGS)
            except BlockingIOError:
                sent = 0
            except OSError:  # reset by the peer: what remains of the connection is told by closed()
                words[base] |= BROKEN
                return
            if sent == len(data):
                return
            data = memoryview(data).cast("B")[sent:]
        self._queue(memoryview(data).cast("B"))

    def close(self) -> None:
        """Close when all that was sent is on its way; what the peer still sends is dropped. May be called
        again."""
        self._words[self.base] |= CLOSING

    def again(self) -> None:
        """Ask for received() to be called once more although nothing new has come: the handler has more to
        do."""
        self._words[self.base] |= AGAIN

    def stream(self, wanted: bool) -> None:
        """Ask for writable() to be called whenever nothing waits and the kernel takes more."""
        if wanted:
            self._words[self.base] |= STREAM
        else:
            self._words[self.base] &= ~STREAM

    def hold(self, barrier: int) -> None:
        """Keep back all that is sent from here on, and take no more input, until the program has reached
        `barrier`: until :meth:`~testbed.guest.program.Program.reached`, asked after a disk_done(), says as
        much or more. Both are in RAM, so it holds on whatever host.
        """
        self._words[self.base + BARRIER] = barrier
        self._words[self.base] |= HELD

    @property
    def unsent_bytes(self) -> int:
        """How much waits in the outbox."""
        return int(self._words[self.base + OUT_END] - self._words[self.base + OUT_START])

    @property
    def congested(self) -> bool:
        """The peer is slow to read: a program that makes replies out of little input should return, and will
        be called again when there is room.
        """
        return self.unsent_bytes >= OUTBOX_HIGH_BYTES

    @property
    def closing(self) -> bool:
        """The program has closed, or the peer is gone: nothing more can be sent."""
        return bool(self._words[self.base] & (CLOSING | BROKEN))

    def __repr__(self) -> str:
        return f"<Connection {self.slot} flags={self._words[self.base]:#x} unsent={self.unsent_bytes}>"

    # -- for the service ---------------------------------------------------------------------------------
    # ---------------------------------------------------------------------------------------------

    def room(self) -> memoryview:
        """Where the next bytes of the peer go: empty when the inbox is full."""
        end = self._words[self.base + IN_END]
        return self._inbox[end : end + BULK_BYTES]

    def make_room(self, limit: int) -> bool:
        """Move what is unconsumed to the front; if that gives nothing, double the inbox up to `limit` bytes.

        False when the inbox is full and at its limit. Raises OutOfMemory; the inbox is as it was then.
        """
        words, base = self._words, self.base
        start, end, capacity = words[base + IN_START], words[base + IN_END], words[base + IN_CAPACITY]
        if start:
            self._inbox[: end - start] = bytes(self._inbox[start:end])
            words[base + IN_START], words[base + IN_END] = 0, end - start
            return True
        if end < capacity:
            return True
        if capacity >= limit:
            return False
        self.resize(min(limit, capacity * 2 + 16))
        return True

    def resize(self, capacity: int) -> None:
        """Give the inbox another size; what is in it must fit. Raises OutOfMemory, and nothing has changed
        then."""
        words, base = self._words, self.base
        heap = self._table.memory.heap
        offset = heap.alloc(capacity)
        start, end = words[base + IN_START], words[base + IN_END]
        self._ram[offset : offset + end - start] = self._inbox[start:end]
        heap.free(words[base + IN_OFFSET])
        words[base + IN_OFFSET], words[base + IN_CAPACITY] = offset, capacity
        words[base + IN_START], words[base + IN_END] = 0, end - start
        self._map_inbox()

    def flush(self) -> None:
        """Give the outbox to the kernel, as far as it takes it. A reset marks the connection broken."""
        words, base = self._words, self.base
        offset, start, end = words[base + OUT_OFFSET], words[base + OUT_START], words[base + OUT_END]
        try:
            start += self.transmit(self._ram[offset + start : offset + end], _SEND_FLAGS)
        except BlockingIOError:
            return
        except OSError:
            words[base] |= BROKEN
            return
        if start < end:
            words[base + OUT_START] = start
            return
        words[base + OUT_START] = words[base + OUT_END] = 0
        if words[base + OUT_CAPACITY] > OUTBOX_BYTES:
            self._table.memory.heap.free(offset)
            words[base + OUT_OFFSET] = words[base + OUT_CAPACITY] = 0

    def _map_inbox(self) -> None:
        offset, capacity = self._words[self.base + IN_OFFSET], self._words[self.base + IN_CAPACITY]
        self._inbox = self._ram[offset : offset + capacity]

    def _queue(self, data: memoryview) -> None:
        words, base, ram = self._words, self.base, self._ram
        offset, capacity = words[base + OUT_OFFSET], words[base + OUT_CAPACITY]
        start, end = words[base + OUT_START], words[base + OUT_END]
        if end + len(data) > capacity:
            waiting = bytes(ram[offset + start : offset + end])
            if len(waiting) + len(data) > capacity:
                heap = self._table.memory.heap
                wider = max(OUTBOX_BYTES, (len(waiting) + len(data)) * 5 // 4)
                moved = heap.alloc(wider)
                if offset:
                    heap.free(offset)
                offset = moved
                words[base + OUT_OFFSET], words[base + OUT_CAPACITY] = offset, wider
            ram[offset : offset + len(waiting)] = waiting
            start, end = 0, len(waiting)
        ram[offset + end : offset + end + len(data)] = data
        words[base + OUT_START], words[base + OUT_END] = start, end + len(data)
