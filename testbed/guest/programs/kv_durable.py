"""The key-value server whose writes outlive the guest: no reply to a write is sent before it is on the disk.

Each command that changes something is carried out in RAM at once, and what came out of it appended to a log
on the guest's disk (:mod:`testbed.guest.programs.journal`). The connection is held until that is lasting: its
replies wait, in RAM, and what it has asked after them is not carried out before. All that one turn of the
machine brought goes to the disk as one write and one flush. A guest that boots with fresh RAM over a disk
with a log reads it: nothing that a client was told is lost.

What a client sees: its own commands in order, and every reply true for ever. Of others it may read a value
that is not on the disk yet; such a value is lost if the guest is killed before it is (it was told to nobody
who wrote it). A transaction is there whole or not at all.

Where the disk is too small for the data a write is answered with `-ERR disk full`, and deletes still work. A
quarter of each of the log's two areas stays free, and while changes take half of the rest, connections wait:
a disk should have four times the size of its data, and eight for a log that seldom needs a copy. Where the
disk has failed, those who wait for it are closed without a reply, further writes are answered with an error,
reads go on.
"""

from __future__ import annotations

from typing import Any

from testbed.guest.connections import Connection
from testbed.guest.heap import OutOfMemory
from testbed.guest.memory import Memory
from testbed.guest.programs.journal import Journal, JournalBroken, JournalFull
from testbed.guest.programs.kv import OUT_OF_MEMORY, KeyValue, Then
from testbed.guest.programs.log_format import CLEAR, DELETE, SET, entry_bytes
from testbed.guest.programs.resp import Dialect
from testbed.guest.programs.store import Store

DISK_FULL = b"-ERR disk full\r\n"
DISK_FAILED = b"-ERR disk failed: nothing can be stored any more\r\n"
WRITES = (b"SET", b"DEL", b"INCR", b"DECR", b"INCRBY", b"MSET", b"FLUSHALL", b"FLUSHDB")
FREEING = (b"DEL", b"FLUSHALL", b"FLUSHDB")
_NUMBER_BYTES = 20


class JournaledStore(Store):
    """A store that notes every change in a journal, and how much of it is live. What a change needs there
    must have been reserved."""

    def __init__(self, memory: Memory, reserve: int, journal: Journal) -> None:
        super().__init__(memory, reserve)
        self._journal = journal

    def set(self, key: bytes, value: bytes) -> None:
        old = self._cost(key)
        super().set(key, value)
        self._journal.add_live(entry_bytes(len(key), len(value)) - old)
        self._journal.append(SET, key, value)

    def delete(self, key: bytes) -> bool:
        old = self._cost(key)
        if not super().delete(key):
            return False
        self._journal.add_live(-old)
        self._journal.append(DELETE, key)
        return True

    def clear(self) -> None:
        super().clear()
        self._journal.clear_live()
        self._journal.append(CLEAR, b"")

    def _cost(self, key: bytes) -> int:
        value = self.get(key)
        return 0 if value is None else entry_bytes(len(key), len(value))


class DurableKeyValue(KeyValue):
    """Nothing is lost that it has told."""

    def boot(self) -> None:
        self._find_journal()
        self.journal.open(self.make_store(self.reserve_bytes))

    def attach(self) -> None:
        self._find_journal()
        super().attach()

    def make_store(self, reserve: int) -> Store:
        return JournaledStore(self.memory, reserve, self.journal)

    def _find_journal(self) -> None:
        if self.disk is None:
            raise ValueError("kv-durable needs a disk: give the guest one")
        self.journal = Journal(self.memory, self.disk)

    def stats(self) -> dict[str, Any]:
        return {**super().stats(), "log": self.journal.stats()}

    # -- holding replies ---------------------------------------------------------------------------------

    def turn_ended(self) -> None:
        self.journal.end_turn(self.store)

    def disk_done(self, tag: int, error: str | None, _data: memoryview) -> None:
        self.journal.disk_done(tag, error)

    def reached(self) -> int | None:
        return self.journal.reached

    def enough_done(self, reply_bytes: int) -> bool:
        return super().enough_done(reply_bytes) or self.journal.is_crowded

    def _carry_out(self, connection: Connection, replies: list[bytes]) -> tuple[int, Then]:
        if self.journal.is_crowded:
            connection.hold(self.journal.last_group)
            return 0, Then.MORE
        before = self.journal.pending_bytes
        try:
            return super()._carry_out(connection, replies)
        finally:
            if self.journal.pending_bytes != before:
                connection.hold(self.journal.last_group)

    def _execute(self, name: bytes, words: list[bytes], dialect: Dialect) -> bytes:
        if name in WRITES:
            need = sum(entry_bytes(len(word), 0) for word in words) + _NUMBER_BYTES
            try:
                self.journal.reserve(need, frees=name in FREEING)
            except JournalFull:
                return DISK_FULL
            except JournalBroken:
                return DISK_FAILED
            except OutOfMemory:
                return OUT_OF_MEMORY
        return super()._execute(name, words, dialect)
