"""A hash table of byte strings in guest RAM: what the kv program stores into.

    buckets   a root: one word each, the offset of the first record of a chain, or 0
    record    a block of the heap: next, hash, epoch, key length, value length (32 bytes), key, value

The number of buckets is fixed when RAM is new, in proportion to it, because growing a table takes longer
than a step may. To empty the store is to begin a new epoch: records of an older one are not found, and are
freed a few at a time. Keys are hashed by XXH3, not by Python, whose hash() is another one in every process:
the bucket of a key must be the same after a migration.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from xxhash import xxh3_64_intdigest

from testbed.guest.heap import OutOfMemory
from testbed.guest.memory import Memory

BYTES_A_BUCKET = 512
"""RAM for each bucket: about one record a chain when RAM is full of small ones."""
SWEEP_BUCKETS = 4
"""Looked at for old records by each store; all of them, when memory has run out."""

_RECORD = struct.Struct("<QQIIII")
_HEAD_BYTES = _RECORD.size
_KEYS, _EPOCH, _SWEPT = range(3)


class Store:
    """Keys and values, all in `memory`. `reserve` bytes of the heap are never taken, for those who also
    live there.
    """

    def __init__(self, memory: Memory, reserve: int) -> None:
        self._memory = memory
        self._ram = memory.view
        self._heap = memory.heap
        self._reserve = reserve
        count = 1 << (max(64, len(memory.view) // BYTES_A_BUCKET).bit_length() - 1)
        self._buckets = memory.words("store.buckets", count)
        self._mask = count - 1
        self._state = memory.words("store.state", 3)  # keys; epoch; buckets swept since it began

    def __len__(self) -> int:
        return int(self._state[_KEYS])

    def get(self, key: bytes) -> memoryview | None:
        """The value of `key`, a view of RAM good until the next change; None when there is none."""
        offset, _, key_bytes, value_bytes = self._find(key, xxh3_64_intdigest(key))
        if not offset:
            return None
        start = offset + _HEAD_BYTES + key_bytes
        return self._ram[start : start + value_bytes]

    def set(self, key: bytes, value: bytes) -> None:
        """Store `value` under `key`. OutOfMemory when there is no room; the old value is still there then."""
        hashed = xxh3_64_intdigest(key)
        offset, before, _, _ = self._find(key, hashed)
        need = _HEAD_BYTES + len(key) + len(value)
        if offset and need <= self._heap.usable(offset) <= 2 * need + 64:
            _RECORD.pack_into(
                self._ram, offset, self._next(offset), hashed, self._state[_EPOCH], len(key), len(value), 0
            )
            start = offset + _HEAD_BYTES + len(key)
            self._ram[start : start + len(value)] = value
            return
        if self._swept() < len(self._buckets):
            self._sweep(SWEEP_BUCKETS)
            offset, before, _, _ = self._find(key, hashed)
        new = self._allocate(need)
        if offset:
            self._unlink(hashed, offset, before)
        bucket = hashed & self._mask
        _RECORD.pack_into(
            self._ram, new, self._buckets[bucket], hashed, self._state[_EPOCH], len(key), len(value), 0
        )
        self._ram[new + _HEAD_BYTES : new + need] = key + value
        self._buckets[bucket] = new
        self._state[_KEYS] += 1

    def set_all(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Store all `pairs`, or none: OutOfMemory beforehand when they would not fit as new records."""
        need = sum(_HEAD_BYTES + len(key) + len(value) + 24 for key, value in pairs)
        if self._heap.free_bytes - need < self._reserve:
            self.reclaim()
            if self._heap.free_bytes - need < self._reserve:
                raise OutOfMemory(f"no room for {len(pairs)} values of {need} bytes together")
        for key, value in pairs:
            self.set(key, value)

    def delete(self, key: bytes) -> bool:
        """Forget `key`; False when it was not there."""
        hashed = xxh3_64_intdigest(key)
        offset, before, _, _ = self._find(key, hashed)
        if offset:
            self._unlink(hashed, offset, before)
        return bool(offset)

    def clear(self) -> None:
        """Forget every key, at once; the memory comes back little by little."""
        self._state[_EPOCH] = (self._state[_EPOCH] + 1) & 0xFFFF_FFFF
        self._state[_KEYS] = self._state[_SWEPT] = 0

    @property
    def buckets(self) -> int:
        """How many buckets there are: the same for as long as this RAM lives."""
        return self._mask + 1

    def records(self, start: int, stop: int) -> Iterator[tuple[int, bytes, memoryview]]:
        """(bucket, key, value) of each record in the buckets from `start` to before `stop`. The store must
        not be changed meanwhile.
        """
        epoch, ram = self._state[_EPOCH], self._ram
        for bucket in np.flatnonzero(np.frombuffer(self._buckets[start:stop], np.uint64)):
            offset = self._buckets[start + int(bucket)]
            while offset:
                following, _, record_epoch, key_bytes, value_bytes, _ = _RECORD.unpack_from(ram, offset)
                if record_epoch == epoch:
                    middle = offset + _HEAD_BYTES + key_bytes
                    key = bytes(ram[offset + _HEAD_BYTES : middle])
                    yield start + int(bucket), key, ram[middle : middle + value_bytes]
                offset = following

    def reclaim(self) -> None:
        """Free at once what was cleared: when memory has run out."""
        self._sweep(len(self._buckets))

    def _next(self, offset: int) -> int:
        following: int = _RECORD.unpack_from(self._ram, offset)[0]
        return following

    def _find(self, key: bytes, hashed: int) -> tuple[int, int, int, int]:
        """(offset of the record or 0, offset of the one before it or 0, bytes of its key, bytes of its
        value).
        """
        before, offset = 0, self._buckets[hashed & self._mask]
        epoch, wanted, ram = self._state[_EPOCH], len(key), self._ram
        while offset:
            following, found, record_epoch, key_bytes, value_bytes, _ = _RECORD.unpack_from(ram, offset)
            if found == hashed and key_bytes == wanted and record_epoch == epoch:
                start = offset + _HEAD_BYTES
                if ram[start : start + wanted] == key:
                    return offset, before, key_bytes, value_bytes
            before, offset = offset, following
        return 0, 0, 0, 0

    def _allocate(self, size: int) -> int:
        for last_try in (False, True):
            if self._heap.free_bytes - size >= self._reserve:
                try:
                    return self._heap.alloc(size)
                except OutOfMemory:
                    if last_try:
                        raise
            if self._swept() >= len(self._buckets):
                break
            self.reclaim()
        raise OutOfMemory(f"no room for {size} bytes beside the {self._reserve} that are kept")

    def _unlink(self, hashed: int, offset: int, before: int) -> None:
        self._cut(hashed & self._mask, offset, before)
        self._state[_KEYS] -= 1

    def _cut(self, bucket: int, offset: int, before: int) -> None:
        following = self._next(offset)
        if before:
            struct.pack_into("<Q", self._ram, before, following)
        else:
            self._buckets[bucket] = following
        self._heap.free(offset)

    def _swept(self) -> int:
        if not self._state[_EPOCH]:
            return len(self._buckets)  # nothing was ever cleared
        return int(self._state[_SWEPT])

    def _sweep(self, most: int) -> None:
        """Free the old records of the next `most` buckets."""
        epoch, ram = self._state[_EPOCH], self._ram
        start = self._swept()
        stop = min(len(self._buckets), start + most)
        used = np.flatnonzero(np.frombuffer(self._buckets[start:stop], np.uint64)).tolist()
        for bucket in (start + index for index in used):
            before, offset = 0, self._buckets[bucket]
            while offset:
                following, _, record_epoch, _, _, _ = _RECORD.unpack_from(ram, offset)
                if record_epoch != epoch:
                    self._cut(bucket, offset, before)
                else:
                    before = offset
                offset = following
        self._state[_SWEPT] = stop
