"""A LUN at work: its disk, its state, and the promise that what has been fenced off writes nothing any
more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from testbed.storage import nbd
from testbed.storage.lun import LunState, Nexus
from testbed.storage.nbd import NbdRefused, TransmissionFlags
from testbed.storage.turns import TurnOver, Turns

PIECE_BYTES = nbd.MOST_PAYLOAD_BYTES
"""Zeroes and trims, which carry no data, may be longer than any write. They are done in pieces, each checked
anew, so that no command keeps a claim waiting for long."""


class Store(Protocol):
    """Where the bytes are. Each method raises OSError."""

    @property
    def size_bytes(self) -> int: ...

    def read_into(self, offset: int, view: memoryview) -> None: ...

    def write(self, offset: int, view: memoryview) -> None: ...

    def trim(self, offset: int, length: int) -> None: ...

    def write_zeroes(self, offset: int, length: int, no_hole: bool) -> None: ...

    def sync(self) -> None: ...


class _UnderWay:
    """A write that has been let through and is not done yet."""

    def __init__(self, nexus: Nexus, offset: int, length: int) -> None:
        self.nexus = nexus
        self._offset = offset
        self._length = length

    def allowed_by(self, state: LunState) -> bool:
        return state.may_write(self.nexus, self._offset, self._length)


class Lun:
    """One disk and the rights to it.

    The promise: once a preempt or a claim has been answered, no write that it forbids can land. To check and
    then write is not enough for that. The check may pass, the host be fenced off and its successor write,
    and only then the old write reach the disk: it was allowed when it was asked, and destroys what is not
    its writer's any more. So the check enters the write into `under way` in one step with reading the state
    (under `_gate`), and a change first puts the new state in place, then waits until no write is under way
    that the new state forbids. Writes that it allows, those of the other disks of a busy LUN for instance,
    neither wait for the change nor keep it waiting.

    A connection of a later turn fences off those before it in the same two steps (:meth:`admit`,
    :meth:`await_earlier`): when it has been opened, no write that its client has given up can land.

    A change is on stable storage before it holds (`keep`): a target that is restarted knows what it has
    promised. A change that comes to nothing new waits all the same: the answer to the first try may have
    been lost while its writes were under way.
    """

    def __init__(self, store: Store, state: LunState, keep: Callable[[LunState], None]) -> None:
        self.store = store
        self._state = state
        self._keep = keep
        self._changing = threading.Lock()
        self._gate = threading.Condition()
        self._under_way: set[_UnderWay] = set()
        self._doors: set[Door] = set()
        self._turns = Turns()

    @property
    def state(self) -> LunState:
        """The rights as they are now."""
        return self._state

    def change(self, decide: Callable[[LunState], LunState]) -> LunState:
        """Make the state what `decide` makes of it; the new state, when it is safe to say so.

        Raises what `decide` raises, and OSError where the new state cannot be kept: nothing has changed then.
        """
        with self._changing:
            state = decide(self._state)
            if state != self._state:
                self._keep(state)
            with self._gate:
                self._state = state
                late = {write for write in self._under_way if not write.allowed_by(state)}
        with self._gate:
            self._gate.wait_for(lambda: not late & self._under_way)
        return state

    @contextmanager
    def writing(self, nexus: Nexus, offset: int, length: int) -> Iterator[None]:
        """The block may write these bytes. NbdRefused (EPERM) if this nexus may not, or its turn is over."""
        write = _UnderWay(nexus, offset, length)
        with self._gate:
            if not self._turns.current(nexus) or not write.allowed_by(self._state):
                raise NbdRefused("EPERM", f"{nexus} may not write {length} bytes at {offset}")
            self._under_way.add(write)
        try:
            yield
        finally:
            with self._gate:
                self._under_way.remove(write)
                self._gate.notify_all()

    def door(self, nexus: Nexus) -> Door:
        """The LUN as this nexus sees it."""
        return Door(self, nexus)

    def admit(self, door: Door) -> None:
        """From now on :meth:`cut`, or a later turn, may end the connection of `door`; those of earlier turns
        are ended, and write nothing any more. TurnOver if there is a later one: nothing has changed then."""
        with self._gate:
            self._turns.open(door.nexus)
            self._doors.add(door)
            over = [one for one in self._doors if door.nexus.ends(one.nexus)]
            self._gate.notify_all()  # one of them may be waiting for those before it
        for one in over:
            one.cut()

    def await_earlier(self, door: Door) -> None:
        """Return when no write of an earlier turn is under way any more. TurnOver if a later one has been
        opened meanwhile, which waits for them all itself."""
        nexus = door.nexus
        with self._gate:
            self._gate.wait_for(lambda: not self._turns.current(nexus) or not self._earlier(nexus))
            if not self._turns.current(nexus):
                raise TurnOver(f"turn {nexus.turn} of session {nexus.session} has not waited to the end")

    def _earlier(self, nexus: Nexus) -> bool:
        return any(nexus.ends(write.nexus) for write in self._under_way)

    def dismiss(self, door: Door) -> None:
        """Undo :meth:`admit`: the connection has ended, and nothing of it is under way."""
        with self._gate:
            self._doors.remove(door)
            self._turns.close(door.nexus)

    def cut(self, key: str) -> None:
        """End every connection that names this key."""
        with self._gate:
            doors = [door for door in self._doors if door.nexus.key == key]
        for door in doors:
            door.cut()


class Door:
    """A LUN as one nexus sees it: an export for :func:`testbed.storage.server.serve`."""

    flags = nbd.WRITABLE | TransmissionFlags.NBD_FLAG_CAN_MULTI_CONN

    def __init__(self, lun: Lun, nexus: Nexus) -> None:
        self.nexus = nexus
        self.cut: Callable[[], None] = _nothing
        self._lun = lun

    @property
    def size_bytes(self) -> int:
        return self._lun.store.size_bytes

    def read_into(self, offset: int, view: memoryview) -> None:
        if not self._lun.state.may_read(self.nexus):
            raise NbdRefused("EPERM", f"{self.nexus} may not read")
        self._lun.store.read_into(offset, view)

    def write(self, offset: int, view: memoryview) -> None:
        with self._lun.writing(self.nexus, offset, len(view)):
            self._lun.store.write(offset, view)

    def trim(self, offset: int, length: int) -> None:
        for start, part in _pieces(offset, length):
            with self._lun.writing(self.nexus, start, part):
                self._lun.store.trim(start, part)

    def write_zeroes(self, offset: int, length: int, no_hole: bool) -> None:
        for start, part in _pieces(offset, length):
            with self._lun.writing(self.nexus, start, part):
                self._lun.store.write_zeroes(start, part, no_hole)

    def flush(self) -> None:
        self._lun.store.sync()

    @contextmanager
    def attached(self, cut: Callable[[], None]) -> Iterator[None]:
        """For the length of the block the connection of this nexus is open; a preempt that aborts, or a later
        turn, ends it by calling `cut`.

        When the block begins, no write of an earlier turn can land any more. TurnOver if this one is over.
        """
        self.cut = cut
        self._lun.admit(self)
        try:
            self._lun.await_earlier(self)
            yield
        finally:
            self._lun.dismiss(self)


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    for start in range(offset, end, PIECE_BYTES):
        yield start, min(PIECE_BYTES, end - start)


def _nothing() -> None:
    """What cuts a connection that is not there yet."""
