"""A disk's requests in guest RAM, in the manner of virtio-blk's ring: a fixed table of slots.

A slot has an operation, its place on the disk, the program's tag, and the block of the heap that holds its
data. It is in one of four ways:

    FREE -> WAITING -> SENT -> KEPT -> FREE
                               a write that is done, and that no flush has made lasting yet
             ^-----------+------+
             a new connection: all that is not known to be on the medium is sent again

So whatever the guest is cut off from, its RAM alone says what is still to be done. A write may be sent twice,
which is harmless: it puts the same bytes in the same place. Two rules keep it so, whatever order the other
side works in: a request that touches the bytes of an earlier one waits for it, and a flush waits for every
write before it.
"""

from __future__ import annotations

from testbed.guest.memory import Memory
from testbed.storage.nbd import NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_WRITE

READ, WRITE, FLUSH = NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_FLUSH

SLOTS = 64
KEPT_MOST = SLOTS // 2
"""With more writes kept than this, a flush is due that nobody asked for."""

FREE, WAITING, SENT, KEPT = range(4)

_SLOT_WORDS = 8
_STATE, _OPERATION, _OFFSET, _LENGTH, _TAG, _BLOCK, _SEQUENCE, _SILENT = range(_SLOT_WORDS)
_HEAD_WORDS = 8
_SIZE, _NEXT, _WRITTEN_BYTES, _FLUSHES, _RESUBMITTED, _DEFERRED = range(6)


class DiskBusy(Exception):
    """Every slot is taken: ask again when a request is done. Nothing was queued."""


class Ring:
    """The table of the disk in `memory`: of a disk of `size_bytes`, or (None) the one that RAM has already.

    Raises ValueError when it has none. What it keeps in Python is the order of the slots in use, made again
    from RAM.
    """

    def __init__(self, memory: Memory, size_bytes: int | None) -> None:
        if size_bytes is None and not Ring.in_ram(memory):
            raise ValueError("RAM has no disk")
        self.memory = memory
        self._words = memory.words("disk.ring", _HEAD_WORDS + SLOTS * _SLOT_WORDS)
        if size_bytes is not None:
            self._words[_SIZE] = size_bytes
        self.in_use = [slot for slot in range(SLOTS) if self.state(slot) != FREE]
        """Slots that are not free, in the order in which they were given."""
        self.in_use.sort(key=self.sequence)

    @staticmethod
    def in_ram(memory: Memory) -> bool:
        return memory.heap.find("disk.ring") is not None

    # -- what is there -----------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        return int(self._words[_SIZE])

    def grow(self, size_bytes: int) -> None:
        """ValueError for less than there was."""
        if size_bytes < self.size_bytes:
            raise ValueError(f"a disk of {self.size_bytes} bytes cannot become one of {size_bytes}")
        self._words[_SIZE] = size_bytes

    def state(self, slot: int) -> int:
        return self._get(slot, _STATE)

    def operation(self, slot: int) -> int:
        return self._get(slot, _OPERATION)

    def offset(self, slot: int) -> int:
        return self._get(slot, _OFFSET)

    def tag(self, slot: int) -> int:
        return self._get(slot, _TAG)

    def length(self, slot: int) -> int:
        return self._get(slot, _LENGTH)

    def sequence(self, slot: int) -> int:
        return self._get(slot, _SEQUENCE)

    def silent(self, slot: int) -> bool:
        """Whether the program is not to be told: it did not ask, or was told before."""
        return bool(self._get(slot, _SILENT))

    def data(self, slot: int) -> memoryview:
        """The request's data in RAM: what is written, or where what is read goes."""
        block = self._get(slot, _BLOCK)
        return self.memory.view[block : block + self.length(slot)]

    def cookie(self, slot: int) -> int:
        """The number that a reply repeats: of no other request in the life of the guest."""
        return self.sequence(slot) * SLOTS + slot

    def slot_of(self, cookie: int) -> int | None:
        """The slot which a reply with `cookie` answers, or None."""
        slot = cookie % SLOTS
        return slot if self.state(slot) == SENT and self.sequence(slot) == cookie // SLOTS else None

    @property
    def free_slots(self) -> int:
        return SLOTS - 1 - len(self.in_use)

    @property
    def unfinished(self) -> int:
        """Requests that the program has not been told of."""
        return sum(self.state(slot) != KEPT and not self.silent(slot) for slot in self.in_use)

    def stats(self) -> dict[str, int]:
        """`in_flight`: requests that the program waits for. `written_bytes`, `flushes`: of requests done in
        the life of the guest. `resubmitted`: how many were sent again on another connection.
        """
        words = self._words
        return {
            "bytes": self.size_bytes,
            "in_flight": self.unfinished,
            "written_bytes": int(words[_WRITTEN_BYTES]),
            "flushes": int(words[_FLUSHES]),
            "resubmitted": int(words[_RESUBMITTED]),
        }

    # -- what happens ------------------------------------------------------------------------------------

    def add(
        self, operation: int, offset: int, length: int, tag: int, block: int, *, silent: bool = False
    ) -> None:
        """A new request. It owns `block` (0: none) from here on and frees it in the end. Raises DiskBusy.

        The last slot is for the flush that nobody asked for: without it, writes that are kept could fill all.
        """
        if len(self.in_use) >= SLOTS - (not silent):
            raise DiskBusy(f"all of the disk's {SLOTS} slots are taken")
        taken = set(self.in_use)
        slot = next(slot for slot in range(SLOTS) if slot not in taken)
        words, at = self._words, _HEAD_WORDS + slot * _SLOT_WORDS
        words[_NEXT] += 1
        words[at + _OPERATION], words[at + _OFFSET], words[at + _LENGTH] = operation, offset, length
        words[at + _TAG], words[at + _BLOCK], words[at + _SILENT] = tag, block, silent
        words[at + _SEQUENCE] = words[_NEXT]
        words[at + _STATE] = WAITING
        self.in_use.append(slot)

    def take_number(self) -> int:
        """A cookie for a request that takes no slot."""
        self._words[_NEXT] += 1
        return int(self._words[_NEXT]) * SLOTS

    def to_send(self) -> int | None:
        """The first request that waits for nothing but to be sent, or None."""
        for index, slot in enumerate(self.in_use):
            if self.state(slot) == WAITING and not self._blocked(index, slot):
                return slot
        return None

    def sent(self, slot: int) -> None:
        self._set(slot, _STATE, SENT)

    def start_again(self) -> None:
        """There is a new connection: all that is not known to be on the medium waits to be sent."""
        for slot in self.in_use:
            if self.state(slot) != WAITING:
                self._words[_RESUBMITTED] += 1
                self._set(slot, _SILENT, self.silent(slot) or self.state(slot) == KEPT)
                self._set(slot, _STATE, WAITING)

    def done(self, slot: int, error: int) -> int:
        """The request was answered with `error` (0: none). Returns what to tell of it: of a flush also the
        error of a write before it whose program heard no other word.

        A read's slot stays until :meth:`release`.
        """
        words, operation = self._words, self.operation(slot)
        if operation == FLUSH:
            error = error or int(words[_DEFERRED])
            words[_DEFERRED] = 0
            words[_FLUSHES] += 1
            if not error:
                self._release_kept_before(self.sequence(slot))
        elif operation == WRITE and not error:
            words[_WRITTEN_BYTES] += 0 if self.silent(slot) else self.length(slot)
            self._set(slot, _STATE, KEPT)
            return 0
        if error and operation != READ and self.silent(slot):
            words[_DEFERRED] = error
        if operation != READ:
            self.release(slot)
        return error

    def release(self, slot: int) -> None:
        """Free the slot and its block."""
        block = self._get(slot, _BLOCK)
        if block:
            self.memory.heap.free(block)
        self._set(slot, _STATE, FREE)
        self.in_use.remove(slot)

    def flush_is_due(self) -> bool:
        """Whether so much is kept that it must be flushed, and no flush is under way."""
        kept = sum(self.state(slot) == KEPT for slot in self.in_use)
        return kept > KEPT_MOST and all(self.operation(slot) != FLUSH for slot in self.in_use)

    # -- inside ------------------------------------------------------------------------------------------

    def _release_kept_before(self, sequence: int) -> None:
        for slot in list(self.in_use):
            if self.state(slot) == KEPT and self.sequence(slot) < sequence:
                self.release(slot)

    def _blocked(self, index: int, slot: int) -> bool:
        """Whether an earlier request that is not done must be done first."""
        operation, start = self.operation(slot), self.offset(slot)
        end = start + self.length(slot)
        for earlier in self.in_use[:index]:
            other = self.operation(earlier)
            if self.state(earlier) == KEPT or WRITE not in (operation, other):
                continue
            if operation == FLUSH:
                return True
            if self.offset(earlier) < end and start < self.offset(earlier) + self.length(earlier):
                return True
        return False

    def _get(self, slot: int, word: int) -> int:
        value: int = self._words[_HEAD_WORDS + slot * _SLOT_WORDS + word]
        return value

    def _set(self, slot: int, word: int, value: int) -> None:
        self._words[_HEAD_WORDS + slot * _SLOT_WORDS + word] = value
