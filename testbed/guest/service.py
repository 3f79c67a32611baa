"""The service: one program, its connections, and the rules by which each is called.

No clock and no loop of its own: the machine tells it what is ready, a poller is told what to watch, and a
rehearsal does both without a kernel. After every call each connection stands in one of four ways, all of
them told by its record alone (:func:`interest`):

    open       reads, unless replies are piling up; writes while something waits or the program streams
    half-open  the peer has ended and the program has not closed: writes only
    closing    the program has closed: what waits is sent, then our FIN; what still comes is dropped
    last-ack   both have ended: kept until the peer has acknowledged our FIN

Besides, any of them may be *held*: neither read nor written until its program has reached a barrier, such as
that what the replies tell of is on the disk.

A descriptor is kept to the very end of its TCP connection, because only what has a descriptor can be moved
to another host: close() would leave the last acknowledgement to a kernel that the guest may be about to
leave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT
from socket import MSG_DONTWAIT, SHUT_WR
from typing import Any, Protocol

from testbed.guest.connections import (
    AGAIN,
    BARRIER,
    BROKEN,
    BULK_BYTES,
    CLOSING,
    FIN_SENT,
    FLAGS,
    HELD,
    IN_CAPACITY,
    IN_END,
    IN_START,
    NEW,
    OPEN,
    OUT_END,
    OUT_START,
    OUTBOX_HIGH_BYTES,
    PEER_ENDED,
    RECORD_WORDS,
    RELEASED,
    STREAM,
    Connection,
    ConnectionTable,
    Transport,
)
from testbed.guest.datagrams import Sender
from testbed.guest.heap import OutOfMemory
from testbed.guest.memory import Memory
from testbed.guest.program import GuestFault, Program

SOL_TCP, TCP_INFO, TCP_CLOSE = 6, 11, 7  # <linux/tcp.h>, <net/tcp_states.h>

COUNTERS = ("accepted", "refused", "resets", "faults", "closed", "lingered")
ACCEPTED, REFUSED, RESETS, FAULTS, CLOSED, LINGERED = range(len(COUNTERS))
FAULTS_KEPT = 16
LINGER_NS = 60_000_000_000
"""How long a peer may take to end after the program has closed: as long as Linux keeps an orphan
(tcp_fin_timeout).
"""


class Poller(Protocol):
    """The part of select.epoll that the service uses."""

    def register(self, fd: int, events: int) -> None: ...
    def modify(self, fd: int, events: int) -> None: ...
    def unregister(self, fd: int) -> None: ...


class Lost:
    """The socket of a connection that did not come along: it is told to the program as a reset."""

    def fileno(self) -> int:
        return -1

    def send(self, _data: Any, _flags: int, /) -> int:
        raise ConnectionResetError("the connection was lost in the move")

    def recv_into(self, _buffer: Any, _nbytes: int, _flags: int, /) -> int:
        raise ConnectionResetError("the connection was lost in the move")

    def shutdown(self, _how: int, /) -> None:
        raise ConnectionResetError("the connection was lost in the move")

    def getsockopt(self, _level: int, _option: int, _size: int, /) -> bytes:
        return bytes([TCP_CLOSE])

    def close(self) -> None:
        return


def interest(flags: int, unsent: int) -> int:
    """The events to watch for a connection with these flags and so many bytes in its outbox. Pure."""
    if flags & HELD:
        return 0
    if flags & CLOSING:
        if not flags & FIN_SENT:
            return EPOLLOUT
        # A socket that has ended both ways is always "hung up": only a change of it is news.
        return EPOLLIN | EPOLLET if flags & PEER_ENDED else EPOLLIN
    events = 0 if flags & PEER_ENDED or unsent >= OUTBOX_HIGH_BYTES else EPOLLIN
    return events | EPOLLOUT if unsent or flags & STREAM else events


class Service:
    """Serves `program` on connections in `memory`. `transport` makes the socket of a descriptor; `clock`
    gives nanoseconds, for the linger limit alone.
    """

    def __init__(
        self,
        program: Program,
        memory: Memory,
        poller: Poller,
        transport: Callable[[int], Transport],
        clock: Callable[[], int],
        *,
        max_connections: int = 4096,
        linger_ns: int = LINGER_NS,
    ) -> None:
        self.program = program
        self.ends_turns = type(program).turn_ended is not Program.turn_ended
        """Whether the program wants to hear of the end of a turn."""
        self.table = ConnectionTable(memory, max_connections, program.connection_state_bytes)
        self.counters = memory.words("machine.counters", len(COUNTERS))
        self.connections: dict[int, Connection] = {}
        """By descriptor."""
        self.dormant: dict[int, int] = {}
        """Slots by descriptor: adopted, and nothing has happened on them since."""
        self.held: list[Connection] = []
        self.faults: list[str] = []
        """The first faults, one line each; the counter counts them all."""
        self.queue: deque[Connection] = deque()
        """Those that are to be called although nothing has come."""
        self._words = self.table.words
        self._poller = poller
        self._transport = transport
        self._clock = clock
        self._linger_ns = linger_ns
        self._lingering: dict[Connection, int] = {}
        self._bulk = min(BULK_BYTES, program.inbox_limit_bytes)
        self._scratch = memoryview(bytearray(BULK_BYTES))

    # -- connections come and go -------------------------------------------------------------------------

    def accept(self, fd: int) -> None:
        """A new connection on `fd`. Its connected() is called by :meth:`run_queued`, so that it may come
        after a migration.

        With no slot or no memory left it is closed again and counted as refused.
        """
        try:
            slot = self.table.take()
        except OutOfMemory:
            slot = None
        if slot is None:
            self.counters[REFUSED] += 1
            self._transport(fd).close()
            return
        self.counters[ACCEPTED] += 1
        self.adopt(slot, fd)

    def adopt(self, slot: int, fd: int) -> None:
        """Bind `fd` to the connection that RAM holds in `slot`. ValueError when it holds none there.

        This happens in the blackout, for every connection: what can wait until its first event is left to
        :meth:`wake`.
        """
        words, base = self._words, slot * RECORD_WORDS
        flags = words[base + FLAGS] if 0 <= slot < self.table.count else 0
        if not flags:
            raise ValueError(f"RAM has no connection in slot {slot}")
        self._poller.register(fd, interest(flags, words[base + OUT_END] - words[base + OUT_START]))
        self.dormant[fd] = slot
        if flags & (NEW | AGAIN | CLOSING | HELD | RELEASED):
            connection = self.wake(fd)
            if flags & CLOSING:
                self._lingering[connection] = self._clock() + self._linger_ns
            if flags & HELD:
                self._keep(connection)
            elif flags & RELEASED or not flags & CLOSING:
                self._enqueue(connection)

    def wake(self, fd: int) -> Connection:
        """The connection that sleeps on `fd`."""
        connection = Connection(self.table, self.dormant.pop(fd), self._transport(fd))
        unsent = connection.unsent_bytes
        connection.armed = interest(self._words[connection.base], unsent)
        self.connections[fd] = connection
        return connection

    def bound(self) -> list[tuple[int, int]]:
        """(slot, descriptor) of every connection."""
        awake = [(connection.slot, fd) for fd, connection in self.connections.items()]
        return awake + [(slot, fd) for fd, slot in self.dormant.items()]

    def lose(self, slot: int) -> None:
        """The connection in `slot` did not come along: tell the program that it was reset."""
        if not 0 <= slot < self.table.count or not self.table.flags(slot):
            raise ValueError(f"RAM has no connection in slot {slot}")
        self.counters[RESETS] += 1
        connection = Connection(self.table, slot, Lost())
        self._words[connection.base] |= BROKEN
        self._drop(connection)

    def sweep(self) -> None:
        """Give up connections whose peer has not ended within the linger limit."""
        now = self._clock()
        for connection in [item for item, deadline in self._lingering.items() if deadline <= now]:
            self.counters[LINGERED] += 1
            self._drop(connection)

    @property
    def lingering(self) -> int:
        """How many connections wait for their end."""
        return len(self._lingering)

    # -- what the machine calls --------------------------------------------------------------------------

    def ready(self, connection: Connection, events: int) -> None:
        """The poller says `events` of this connection. At most one handler of the program runs."""
        if events == EPOLLIN:
            self._readable(connection)
            return
        flags = self._words[connection.base]
        if flags & FIN_SENT and flags & PEER_ENDED:
            self._settle(connection)
        elif events & EPOLLERR:
            self._reset(connection)
        elif events & EPOLLOUT and self._writable(connection):
            return
        elif events & (EPOLLIN | EPOLLHUP):
            self._readable(connection)

    def run_queued(self) -> None:
        """Call the connection that has waited longest in :attr:`queue`."""
        connection = self.queue.popleft()
        connection.queued = False
        if not connection.alive:
            return
        words, base = self._words, connection.base
        flags = words[base]
        if flags & HELD:
            return  # it is queued again when it is released
        if flags & NEW:
            words[base] = flags & ~NEW
            self._call(self.program.connected, connection)
        elif flags & RELEASED:
            words[base] = flags & ~RELEASED
            self._go_on(connection)
        elif flags & AGAIN:
            words[base] = flags & ~AGAIN
            self._call(self.program.received, connection)

    def disk_done(self, tag: int, error: str | None, data: memoryview) -> None:
        """A request of the program's to its disk is done: tell it, and release who has waited for that."""
        try:
            self.program.disk_done(tag, error, data)
        except Exception as problem:
            self._note_fault("disk_done", problem)
        if self.held:
            self._release()

    def datagram(self, data: bytes, sender: Sender) -> None:
        """A datagram has come to the program's UDP port."""
        try:
            self.program.datagram(data, sender)
        except Exception as problem:
            self._note_fault("datagram", problem)

    def end_turn(self) -> None:
        """Whoever was ready has been served."""
        try:
            self.program.turn_ended()
        except Exception as problem:
            self._note_fault("turn_ended", problem)

    # -- events ------------------------------------------------------------------------------------------

    def _readable(self, connection: Connection) -> None:
        words, base = self._words, connection.base
        flags = words[base]
        if flags != OPEN:
            if flags & CLOSING:
                self._discard(connection)
                return
            if flags & (NEW | AGAIN | HELD | RELEASED):
                return  # the queue comes first: the peer's end must not overtake what it has sent
        room = connection.room()
        if not room:
            if not self._make_room(connection):
                return
            room = connection.room()
        try:
            count = connection.receive_into(room, 0, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._reset(connection)
            return
        if not count:
            words[base] |= PEER_ENDED
            self._call(self.program.ended, connection)
            return
        words[base + IN_END] += count
        try:
            self.program.received(connection)
        except Exception as error:
            self._fault("received", error, connection)
        if count == len(room) and words[base + IN_CAPACITY] < self._bulk:  # larger reads will cost less
            self._resize(connection, min(self._bulk, words[base + IN_CAPACITY] * 2 + 16))
        # The common case: nothing waits, nothing was asked for.
        if words[base] != OPEN or words[base + OUT_END] or connection.armed != EPOLLIN:
            self._settle(connection)
        if words[base + IN_CAPACITY] > BULK_BYTES and connection.alive and not words[base + IN_END]:
            self._resize(connection, BULK_BYTES)

    def _writable(self, connection: Connection) -> bool:
        """Send what waits. True when that called a handler."""
        words, base = self._words, connection.base
        was_congested = connection.congested
        if words[base + OUT_END]:
            connection.flush()
        flags = words[base]
        if not flags & (CLOSING | BROKEN):
            if flags & STREAM and not words[base + OUT_END]:
                self._call(self.program.writable, connection)
                return True
            if was_congested and not connection.congested and words[base + IN_END]:
                self._call(self.program.received, connection)
                return True
        self._settle(connection)
        return not connection.alive

    def _discard(self, connection: Connection) -> None:
        try:
            count = connection.receive_into(self._scratch, 0, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._words[connection.base] |= BROKEN
        else:
            if count:
                return
            self._words[connection.base] |= PEER_ENDED
        self._settle(connection)

    def _reset(self, connection: Connection) -> None:
        if not self._words[connection.base] & CLOSING:
            self.counters[RESETS] += 1
        self._words[connection.base] |= BROKEN
        self._settle(connection)

    def _make_room(self, connection: Connection) -> bool:
        limit = self.program.inbox_limit_bytes
        try:
            if connection.make_room(limit):
                return True
            problem: Exception = ValueError(f"{limit} bytes of input left unconsumed: its inbox_limit_bytes")
        except OutOfMemory as error:
            problem = error
        self._fault("received", problem, connection)
        self._settle(connection)
        return False

    # -- held connections --------------------------------------------------------------------------------

    def _keep(self, connection: Connection) -> None:
        connection.kept = True
        self.held.append(connection)

    def _release(self) -> None:
        """Those whose barrier the program has reached are queued: each goes on in a step of its own."""
        words, reached = self._words, self.program.reached()
        held, self.held = self.held, []
        for connection in held:
            base = connection.base
            if not connection.alive:
                continue
            if reached is None:
                words[base] |= BROKEN
                self._settle(connection)
            elif words[base + BARRIER] > reached:
                self.held.append(connection)
            else:
                connection.kept = False
                words[base] = words[base] & ~HELD | RELEASED
                self._enqueue(connection)

    def _go_on(self, connection: Connection) -> None:
        """Send what a released connection has waiting, and carry out what has come before it was held."""
        words, base = self._words, connection.base
        if words[base + OUT_END]:
            connection.flush()
        asked = words[base] & AGAIN or words[base + IN_END]
        if words[base] & (CLOSING | BROKEN) or not asked:
            self._settle(connection)
            return
        words[base] &= ~AGAIN
        self._call(self.program.received, connection)

    def _resize(self, connection: Connection, capacity: int) -> None:
        """Give the inbox a better size, if there is memory: what it has will do otherwise."""
        words, base = self._words, connection.base
        if words[base + IN_END] - words[base + IN_START] <= capacity:
            try:
                connection.resize(capacity)
            except OutOfMemory:
                return

    # -- the program, and what follows from what it did --------------------------------------------------

    def _call(self, handler: Callable[[Connection], None], connection: Connection) -> None:
        try:
            handler(connection)
        except Exception as error:
            self._fault(handler.__name__, error, connection)
        self._settle(connection)

    def _fault(self, handler: str, error: Exception, connection: Connection) -> None:
        """Count and keep what the program did, and close the connection that it did it on."""
        self._note_fault(handler, error)
        self._words[connection.base] |= CLOSING

    def _note_fault(self, handler: str, error: Exception) -> None:
        self.counters[FAULTS] += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(str(GuestFault(type(self.program).__name__, handler, error)))

    def _settle(self, connection: Connection) -> None:
        """Bring the socket and the poller in line with the record."""
        words, base = self._words, connection.base
        flags = words[base]
        if not connection.alive:
            return
        if flags & HELD and not connection.kept:
            self._keep(connection)
        if flags & CLOSING and not flags & (FIN_SENT | BROKEN):
            self._lingering.setdefault(connection, self._clock() + self._linger_ns)
            if not words[base + OUT_END] and not flags & HELD:
                try:
                    connection.socket.shutdown(SHUT_WR)
                except OSError:  # reset meanwhile
                    flags |= BROKEN
                flags |= FIN_SENT
                words[base] = flags
        if flags & BROKEN:
            self._drop(connection)
            return
        if flags & FIN_SENT and flags & PEER_ENDED:
            if connection.socket.getsockopt(SOL_TCP, TCP_INFO, 1)[0] == TCP_CLOSE:
                self._drop(connection)
                return
        elif flags & (NEW | AGAIN | RELEASED) and not flags & (CLOSING | HELD):
            self._enqueue(connection)
        wanted = interest(flags, words[base + OUT_END] - words[base + OUT_START])
        if wanted != connection.armed:
            connection.armed = wanted
            self._poller.modify(connection.socket.fileno(), wanted)

    def _enqueue(self, connection: Connection) -> None:
        if not connection.queued:
            connection.queued = True
            self.queue.append(connection)

    def _drop(self, connection: Connection) -> None:
        """The end of a connection: the program is told, its slot and descriptor are given back."""
        connection.alive = False
        words, base = self._words, connection.base
        was_announced = not words[base] & NEW
        words[base] |= BROKEN | CLOSING  # nothing can be sent from closed()
        if was_announced:
            try:
                self.program.closed(connection)
            except Exception as error:
                self._fault("closed", error, connection)
        self._lingering.pop(connection, None)
        fd = connection.socket.fileno()
        if self.connections.pop(fd, None) is not None:
            self._poller.unregister(fd)  # close() alone does not, where an agent holds a duplicate
        connection.socket.close()
        self.table.give_back(connection.slot)
        self.counters[CLOSED] += 1
