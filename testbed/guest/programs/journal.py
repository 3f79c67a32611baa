"""The journal of a store: what is changed goes to a disk, in groups, and is told once it is lasting.

Entries collect in a block of RAM while a turn lasts. At its end, unless a commit is under way, they become
one frame of the log (:mod:`testbed.guest.programs.log_format`): one write, one flush, however many
connections asked. Each group has a number; :attr:`Journal.reached` is the last one that is lasting.

**A full area.** What is live in the store is copied to the other area, a few records a step, while the log
goes on in both: a *snapshot*. Records are copied as they are when their turn comes. That is right because
entries say what came out (key and value, not INCR), so that repeating one changes nothing, and because they
stand in the copy in the order in which they happened to RAM: what was copied before a change is followed by
that change's entry, what is copied after has it already. When all is copied, whatever is in RAM but in no
frame yet is committed to the copy alone; a flush; then the header that says that the copy is the log; a
flush. Up to that header's write the old area is the log, with every commit that was ever told. So half of a
transaction is never what a disk holds, wherever it stops.

Where commits would take the room of the copy, none is made until it is done: connections wait, and none is
told something untrue. A copy that grew too long begins anew. Whether the live data fits at all is decided
before each change (:meth:`Journal.reserve`).

An error of the disk, of whatever kind, breaks the journal for good: nobody can say then what is on it.

Every fact of this is in words of RAM, so it moves with the guest at any instant.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

from testbed.guest.disk import Disk
from testbed.guest.heap import OutOfMemory
from testbed.guest.memory import Memory
from testbed.guest.programs.log_format import (
    CLEAR,
    FRAME_HEAD_BYTES,
    PAGE_BYTES,
    SET,
    Header,
    area_bytes_of,
    area_start,
    decode_headers,
    entries,
    entry_bytes,
    framed_bytes,
    is_frame,
    payload_of,
    put_entry,
    seal,
)
from testbed.guest.programs.store import Store

COMMIT_WRITE, COMMITTED, COPY_WRITE, COPIED, HEADER_WRITE, SWITCHED = range(1, 7)
"""Tags of requests to the disk: a flush has the name of what is true when it is done."""

FIRST_BLOCK_BYTES = 4096
STEP_RECORDS = 128
STEP_BYTES = 16 << 10
STEP_BUCKETS = 1 << 14
"""A step of the copy: at most so many records, bytes (or one record), buckets looked at."""
SLOTS_NEEDED = 8
_READ_BYTES = 1 << 20

_NONE, _COPYING, _SETTLING, _SETTLED, _SWITCHING = range(5)
"""Of a copy: it is being made; made, and flushed; lasting; and its header written."""

_WORDS = 32
(
    _AREA_BYTES, _AREA, _GENERATION, _SEED, _NUMBER, _AT,
    _BLOCK, _USED, _GROUP, _COMMITTING, _COMMITTING_BYTES, _REACHED, _LIVE_BYTES, _BROKEN,
    _PHASE, _ALONE, _COPY_SEED, _COPY_NUMBER, _COPY_AT, _COPY_BUCKET, _COPY_BUSY,
    _COMMITS, _COPIES, _STALLS,
) = range(24)  # fmt: skip


class JournalFull(Exception):
    """The disk is too small for that. Nothing has changed."""


class JournalBroken(Exception):
    """The disk has failed before: nothing can be made lasting any more."""


class Journal:
    """The journal in `memory`, of a store, on `disk`. :meth:`open` comes first in the life of a guest."""

    def __init__(self, memory: Memory, disk: Disk) -> None:
        self._memory = memory
        self._disk = disk
        self._words = memory.words("journal", _WORDS)
        self._replaying = False

    # -- for the store ---------------------------------------------------------------------------------------

    def reserve(self, count: int, *, frees: bool = False) -> None:
        """Make sure that entries of `count` bytes can be appended, and kept. `frees`: they make room.

        Raises JournalFull, JournalBroken, OutOfMemory; nothing has changed then.
        """
        words, heap = self._words, self._memory.heap
        if words[_BROKEN]:
            raise JournalBroken("the disk has failed")
        more = words[_AREA_BYTES] // 16 if frees else 0
        if self._uncommitted + count > self._room + more:
            raise JournalFull(f"no room for {count} bytes in a log of {words[_AREA_BYTES]}")
        block, used = words[_BLOCK], words[_USED]
        need = framed_bytes(used + count)
        if block and need <= heap.usable(block):
            return
        wider = heap.alloc(max(FIRST_BLOCK_BYTES, 2 * need if block else need))
        if block:
            end = FRAME_HEAD_BYTES + used
            self._memory.view[wider : wider + end] = self._memory.view[block : block + end]
            heap.free(block)
        words[_BLOCK] = wider

    def append(self, operation: int, key: bytes, value: bytes = b"") -> None:
        """Note a change that was made, for which there is room reserved."""
        if self._replaying:
            return
        words = self._words
        start = words[_BLOCK] + FRAME_HEAD_BYTES
        end = put_entry(self._memory.view, start + words[_USED], operation, key, value)
        words[_USED] = end - start

    def add_live(self, amount: int) -> None:
        """The live data has become `amount` bytes more, as entries."""
        self._words[_LIVE_BYTES] += amount

    def clear_live(self) -> None:
        self._words[_LIVE_BYTES] = 0

    # -- for the program -------------------------------------------------------------------------------------

    @property
    def pending_bytes(self) -> int:
        """Entries that are in no frame yet."""
        return int(self._words[_USED])

    @property
    def last_group(self) -> int:
        """The number of the group that the last entry belongs to: of those that are pending, if there are
        any."""
        return int(self._words[_GROUP]) - (not self._words[_USED])

    @property
    def is_crowded(self) -> bool:
        """So much waits to be committed that more should not be asked for before it is."""
        return self._uncommitted > max(0, self._room // 2)

    @property
    def reached(self) -> int | None:
        """The last group that is lasting; None when the journal is broken."""
        return None if self._words[_BROKEN] else int(self._words[_REACHED])

    def end_turn(self, store: Store) -> None:
        """A step of whatever is to be done: of the copy, and a commit."""
        words = self._words
        if words[_BROKEN] or self._disk.free_slots < SLOTS_NEEDED:
            return
        if words[_PHASE] == _NONE and self._is_worth_a_copy():
            self._begin_copy(alone=False)
        copied_all = words[_PHASE] == _COPYING and words[_COPY_BUCKET] >= store.buckets
        if words[_USED] and not words[_COMMITTING] and words[_PHASE] <= _COPYING and not copied_all:
            self._commit()
        while words[_PHASE] == _COPYING and not words[_COPY_BUSY]:
            if self._copy(store):
                break
        if words[_PHASE] == _SETTLED:
            self._write_header()

    def disk_done(self, tag: int, error: str | None) -> None:
        """The disk has carried out a request of ours."""
        words = self._words
        if error is not None:
            words[_BROKEN] = 1
        elif words[_BROKEN]:
            return
        elif tag == COMMITTED:
            self._committed()
        elif tag == COPY_WRITE:
            words[_COPY_BUSY] = 0
        elif tag == COPIED:
            words[_PHASE] = _SETTLED
        elif tag == SWITCHED:
            self._switch()

    def stats(self) -> dict[str, Any]:
        """`used_bytes` of the `area_bytes` of the log's area; `stalls`: how often commits had to wait for a
        snapshot."""
        words = self._words
        return {
            "area_bytes": int(words[_AREA_BYTES]),
            "used_bytes": int(words[_AT]),
            "live_bytes": int(words[_LIVE_BYTES]),
            "commits": int(words[_COMMITS]),
            "snapshots": int(words[_COPIES]),
            "stalls": int(words[_STALLS]),
            "broken": bool(words[_BROKEN]),
        }

    @property
    def _uncommitted(self) -> int:
        return int(self._words[_USED] + self._words[_COMMITTING_BYTES])

    @property
    def _room(self) -> int:
        """How much can be changed before what is live, and that, would no longer fit into an area."""
        return int(self._words[_AREA_BYTES]) * 3 // 4 - int(self._words[_LIVE_BYTES])

    # -- committing ------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """One frame of all that is pending, if it fits just now."""
        words = self._words
        size = framed_bytes(words[_USED])
        if words[_AT] + size > words[_AREA_BYTES]:
            if words[_PHASE] == _NONE:
                self._begin_copy(alone=True)
            return
        if words[_PHASE] == _COPYING:
            if words[_ALONE]:
                return
            room = words[_AREA_BYTES] - words[_COPY_AT] - _copy_cost(words[_LIVE_BYTES])
            if size > room or not self._mirror():
                self._stall()
                return
        self._take_group(words[_AREA], words[_AT], words[_NUMBER], words[_SEED])
        words[_AT] += size
        words[_NUMBER] += 1
        self._disk.flush(COMMITTED)

    def _mirror(self) -> bool:
        """Put what is pending into the copy too; False when RAM is short."""
        words, view = self._words, self._memory.view
        size = framed_bytes(words[_USED])
        try:
            block = self._memory.heap.alloc(size)
        except OutOfMemory:
            return False
        end = FRAME_HEAD_BYTES + words[_USED]
        view[block : block + end] = view[words[_BLOCK] : words[_BLOCK] + end]
        self._write_copy(block, words[_USED], COMMIT_WRITE)
        return True

    def _take_group(self, area: int, at: int, number: int, seed: int) -> None:
        """Write what is pending as frame `number` of an area; it is the group under way from here on."""
        words = self._words
        block, used = words[_BLOCK], words[_USED]
        buffer = self._memory.view[block : block + framed_bytes(used)]
        size = seal(buffer, used, number, seed)
        self._disk.write_block(area_start(area, words[_AREA_BYTES]) + at, block, size, COMMIT_WRITE)
        words[_BLOCK] = words[_USED] = 0
        words[_COMMITTING], words[_COMMITTING_BYTES] = words[_GROUP], used
        words[_GROUP] += 1

    def _committed(self) -> None:
        words = self._words
        words[_REACHED] = words[_COMMITTING]
        words[_COMMITTING] = words[_COMMITTING_BYTES] = 0
        words[_COMMITS] += 1

    # -- copying ---------------------------------------------------------------------------------------------

    def _is_worth_a_copy(self) -> bool:
        """The area fills, and much of it is of the past."""
        words = self._words
        area_bytes, used = words[_AREA_BYTES], words[_AT]
        return used > area_bytes * 3 // 4 and used > _copy_cost(words[_LIVE_BYTES]) + area_bytes // 8

    def _begin_copy(self, *, alone: bool) -> None:
        """Begin to copy, from the first record on; `alone`: nothing is committed until it is done."""
        words = self._words
        words[_PHASE], words[_ALONE] = _COPYING, 0
        if alone:
            self._stall()
        words[_COPY_SEED] = _next_seed(words[_COPY_SEED] or words[_SEED])
        words[_COPY_NUMBER], words[_COPY_AT], words[_COPY_BUCKET] = 1, 0, 0

    def _stall(self) -> None:
        """Nothing is committed until the copy is done."""
        self._words[_ALONE] = 1
        self._words[_STALLS] += 1

    def _copy(self, store: Store) -> bool:
        """A step: some records as one frame, or the end of it. RAM too short: later. False when it had to be
        begun anew."""
        words = self._words
        if words[_COPY_BUCKET] >= store.buckets:
            return bool(words[_COMMITTING]) or self._end_copy()
        found, following = _some_records(store, words[_COPY_BUCKET])
        size = sum(entry_bytes(len(key), len(value)) for key, value in found)
        if words[_COPY_AT] + framed_bytes(size) > words[_AREA_BYTES]:
            self._begin_copy(alone=True)
            return False
        try:
            block = self._memory.heap.alloc(framed_bytes(size))
        except OutOfMemory:
            return True
        at = block + FRAME_HEAD_BYTES
        for key, value in found:
            at = put_entry(self._memory.view, at, SET, key, value)
        words[_COPY_BUCKET], words[_COPY_BUSY] = following, 1
        self._write_copy(block, size, COPY_WRITE)
        return True

    def _write_copy(self, block: int, payload_bytes: int, tag: int) -> None:
        words = self._words
        buffer = self._memory.view[block : block + framed_bytes(payload_bytes)]
        size = seal(buffer, payload_bytes, words[_COPY_NUMBER], words[_COPY_SEED])
        start = area_start(1 - words[_AREA], words[_AREA_BYTES])
        self._disk.write_block(start + words[_COPY_AT], block, size, tag)
        words[_COPY_AT] += size
        words[_COPY_NUMBER] += 1

    def _end_copy(self) -> bool:
        """All is copied, and no commit is under way: what no frame has yet goes to the copy alone; and a
        flush. False when it does not fit."""
        words = self._words
        if words[_USED]:
            size = framed_bytes(words[_USED])
            if words[_COPY_AT] + size > words[_AREA_BYTES]:
                self._begin_copy(alone=True)
                return False
            self._take_group(1 - words[_AREA], words[_COPY_AT], words[_COPY_NUMBER], words[_COPY_SEED])
            words[_COPY_AT] += size
            words[_COPY_NUMBER] += 1
        words[_PHASE] = _SETTLING
        self._disk.flush(COPIED)
        return True

    def _write_header(self) -> None:
        """The copy is lasting: say that it is the log. RAM too short: later."""
        words = self._words
        header = Header(words[_GENERATION] + 1, 1 - words[_AREA], words[_AREA_BYTES], words[_COPY_SEED])
        try:
            self._disk.write(header.place, header.encode(), HEADER_WRITE)
        except OutOfMemory:
            return
        self._disk.flush(SWITCHED)
        words[_PHASE] = _SWITCHING

    def _switch(self) -> None:
        """The header is lasting: the copy is the log."""
        words = self._words
        words[_AREA] = 1 - words[_AREA]
        words[_GENERATION] += 1
        words[_SEED], words[_NUMBER], words[_AT] = words[_COPY_SEED], words[_COPY_NUMBER], words[_COPY_AT]
        words[_PHASE] = _NONE
        words[_COPIES] += 1
        if words[_COMMITTING]:
            self._committed()

    # -- booting ---------------------------------------------------------------------------------------------

    def open(self, store: Store) -> None:
        """RAM is new: read into `store` what the disk's log says, or begin a log on a disk that is new.

        Waits for the disk, so only in boot(). Raises LogError, OutOfMemory when RAM is smaller than what the
        log holds, and what :meth:`Disk.read_now` raises.
        """
        words, disk = self._words, self._disk
        area_bytes = area_bytes_of(disk.size_bytes)
        words[_GROUP] = 1
        header = decode_headers(disk.read_now(0, 2 * PAGE_BYTES), disk.size_bytes)
        if header is None:
            header = Header(1, 0, area_bytes, secrets.randbits(64))
            disk.write(header.place, header.encode(), HEADER_WRITE)  # the first commit's flush covers it
        words[_AREA_BYTES], words[_AREA] = header.area_bytes, header.area
        words[_GENERATION], words[_SEED] = header.generation, header.seed
        words[_COPY_SEED] = secrets.randbits(64)
        words[_NUMBER] = 1
        self._replaying = True
        for payload in self._frames():
            for operation, key, value in entries(payload):
                _apply(store, operation, key, value)
        self._replaying = False

    def _frames(self) -> Iterator[bytes]:
        """The payload of each frame of the log, to its end; that is where the next one goes."""
        words = self._words
        take = self._reader(area_start(words[_AREA], words[_AREA_BYTES]), words[_AREA_BYTES])
        while words[_AT] + FRAME_HEAD_BYTES <= words[_AREA_BYTES]:
            size = FRAME_HEAD_BYTES + payload_of(take(words[_AT], FRAME_HEAD_BYTES))
            if words[_AT] + size > words[_AREA_BYTES]:
                return
            frame = take(words[_AT], size)
            if not is_frame(frame, words[_NUMBER], words[_SEED]):
                return
            yield frame[FRAME_HEAD_BYTES:]
            words[_AT] += framed_bytes(size - FRAME_HEAD_BYTES)
            words[_NUMBER] += 1

    def _reader(self, start: int, size: int) -> Callable[[int, int], bytes]:
        """A function that gives bytes of an area by place and length, and reads ahead."""
        window, window_at = b"", 0

        def take(at: int, count: int) -> bytes:
            nonlocal window, window_at
            if at < window_at or at + count > window_at + len(window):
                window = self._disk.read_now(start + at, min(max(count, _READ_BYTES), size - at))
                window_at = at
            return window[at - window_at : at - window_at + count]

        return take


def _apply(store: Store, operation: int, key: bytes, value: bytes) -> None:
    if operation == SET:
        store.set(key, value)
    elif operation == CLEAR:
        store.clear()
    else:
        store.delete(key)


def _some_records(store: Store, start: int) -> tuple[list[tuple[bytes, memoryview]], int]:
    """Records from bucket `start` on, enough for a step, and the bucket to begin at in the next one."""
    following = min(store.buckets, start + STEP_BUCKETS)
    found: list[tuple[bytes, memoryview]] = []
    size = 0
    for bucket, key, value in store.records(start, following):
        if bucket >= following:
            break
        found.append((key, value))
        size += len(key) + len(value)
        if size >= STEP_BYTES or len(found) >= STEP_RECORDS:
            following = bucket + 1  # what this bucket has besides still goes along
    return found, following


def _copy_cost(live_bytes: int) -> int:
    """About how many bytes of an area a copy of so much live data takes."""
    return live_bytes + live_bytes // 8 + (16 << 10)


def _next_seed(seed: int) -> int:
    """Another seed: from one that nobody knows comes one that nobody knows (SplitMix64's step)."""
    mixed = (seed + 0x9E3779B97F4A7C15) & 0xFFFF_FFFF_FFFF_FFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFF_FFFF_FFFF_FFFF
    return mixed ^ (mixed >> 27)
