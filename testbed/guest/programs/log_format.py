"""What the durable store's log looks like on a disk. Bytes in, values out; no I/O.

    0           header, one of two copies of a page each
    4096        header, the other: they are written in turn, so that a torn one never hides the last
    8192        area 0
    8192 + A    area 1, as long

A header says which area is the log, and its *seed*. A log is frames one after the other from the start of its
area, numbered from 1, each in whole sectors:

    u64 number, u32 bytes of payload, u32 zero, u64 XXH3 of all the rest, with the area's seed
    payload: entries, of what was changed: u8 operation, u32 bytes of key, u32 bytes of value; key; value

The log ends at the first frame whose number or digest is not right: one that was torn, or what the area held
before. The seed is new for each use of an area and nobody's guess, so bytes that a client once stored can
never pass for a frame. A frame is wholly there or not at all, and so is what was changed in one step.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

PAGE_BYTES = 4096
SECTOR_BYTES = 512
LEAST_DISK_BYTES = 256 << 10
MAGIC = b"kv-log\x00\x01"

SET, DELETE, CLEAR = 1, 2, 3

_HEADER = struct.Struct("<8sQQQQ")  # magic, generation, area, bytes of an area, seed; then the digest
_DIGEST = struct.Struct("<Q")
_FRAME = struct.Struct("<QIIQ")
_ENTRY = struct.Struct("<BxxxII")
FRAME_HEAD_BYTES = _FRAME.size
ENTRY_HEAD_BYTES = _ENTRY.size


class LogError(Exception):
    """The disk does not hold a log, or one that cannot be read."""


@dataclass(frozen=True)
class Header:
    """Which area is the log. The copy with the higher generation counts."""

    generation: int
    area: int
    area_bytes: int
    seed: int

    def encode(self) -> bytes:
        """A page."""
        data = _HEADER.pack(MAGIC, self.generation, self.area, self.area_bytes, self.seed)
        return (data + _DIGEST.pack(xxh3_64_intdigest(data))).ljust(PAGE_BYTES, b"\0")

    @property
    def place(self) -> int:
        """Where on the disk it belongs."""
        return self.generation % 2 * PAGE_BYTES


def area_bytes_of(disk_bytes: int) -> int:
    """How long each area of a disk is. LogError when the disk is too small."""
    if disk_bytes < LEAST_DISK_BYTES:
        raise LogError(f"a disk of {disk_bytes} bytes: a log needs {LEAST_DISK_BYTES} or more")
    return (disk_bytes - 2 * PAGE_BYTES) // 2 // PAGE_BYTES * PAGE_BYTES


def area_start(area: int, area_bytes: int) -> int:
    return 2 * PAGE_BYTES + area * area_bytes


def decode_headers(pages: bytes, disk_bytes: int) -> Header | None:
    """The header that counts, of the first two pages of a disk; None when the disk is new.

    A disk that holds something else is LogError: it must not be written over.
    """
    copies = pages[:PAGE_BYTES], pages[PAGE_BYTES : 2 * PAGE_BYTES]
    found = [header for copy in copies if (header := _decode(copy))]
    if not found:
        for copy in copies:
            if copy[:8] not in (bytes(8), MAGIC):
                raise LogError(f"the disk holds something else: a header begins with {copy[:8]!r}")
        return None
    newest = max(found, key=lambda header: header.generation)
    if area_start(2, newest.area_bytes) > disk_bytes:
        raise LogError(f"the log's areas of {newest.area_bytes} bytes do not fit on {disk_bytes} bytes")
    return newest


def _decode(page: bytes) -> Header | None:
    magic, generation, area, area_bytes, seed = _HEADER.unpack_from(page)
    (digest,) = _DIGEST.unpack_from(page, _HEADER.size)
    if magic != MAGIC or area > 1 or digest != xxh3_64_intdigest(page[: _HEADER.size]):
        return None
    return Header(generation, area, area_bytes, seed)


def framed_bytes(payload_bytes: int) -> int:
    """How many bytes on the disk a frame of so much payload takes."""
    return -(-(FRAME_HEAD_BYTES + payload_bytes) // SECTOR_BYTES) * SECTOR_BYTES


def entry_bytes(key_bytes: int, value_bytes: int) -> int:
    return ENTRY_HEAD_BYTES + key_bytes + value_bytes


def put_entry(buffer: memoryview, at: int, operation: int, key: bytes, value: bytes | memoryview) -> int:
    """Put an entry into `buffer` at `at`; returns where the next one goes."""
    _ENTRY.pack_into(buffer, at, operation, len(key), len(value))
    at += ENTRY_HEAD_BYTES
    middle, end = at + len(key), at + len(key) + len(value)
    buffer[at:middle] = key
    buffer[middle:end] = value
    return end


def seal(buffer: memoryview, payload_bytes: int, number: int, seed: int) -> int:
    """Make a frame of `buffer`, in which the payload stands behind room for its head. Returns its bytes on
    the disk; what pads it to whole sectors is zero.
    """
    end, size = FRAME_HEAD_BYTES + payload_bytes, framed_bytes(payload_bytes)
    buffer[end:size] = bytes(size - end)
    digest = _digest(buffer[FRAME_HEAD_BYTES:end], number, seed)
    _FRAME.pack_into(buffer, 0, number, payload_bytes, 0, digest)
    return size


def payload_of(head: bytes) -> int:
    """How much payload the frame with this head says that it has: to be believed when :func:`is_frame`."""
    length: int = _FRAME.unpack_from(head)[1]
    return length


def is_frame(data: bytes, number: int, seed: int) -> bool:
    """Whether `data`, a head and as much payload as it says, is frame `number` of the log with `seed`."""
    found, length, zero, digest = _FRAME.unpack_from(data)
    payload = memoryview(data)[FRAME_HEAD_BYTES:]
    whole = found == number and length == len(payload) and not zero
    return whole and digest == _digest(payload, number, seed)


def entries(payload: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(operation, key, value) of each entry of a frame. LogError for what is none: its digest was right, so
    another program has written it."""
    at = 0
    while at < len(payload):
        if len(payload) - at < ENTRY_HEAD_BYTES:
            raise LogError("an entry of the log is cut short")
        operation, key_bytes, value_bytes = _ENTRY.unpack_from(payload, at)
        at += ENTRY_HEAD_BYTES
        middle, end = at + key_bytes, at + key_bytes + value_bytes
        if operation not in (SET, DELETE, CLEAR) or end > len(payload):
            raise LogError(f"operation {operation} with {key_bytes} and {value_bytes} bytes is no entry")
        yield operation, payload[at:middle], payload[middle:end]
        at = end


def _digest(payload: memoryview, number: int, seed: int) -> int:
    """Of the payload, its length and the frame's number: these two are small and go into the seed."""
    own_seed = (seed + number * 0x9E3779B97F4A7C15 + len(payload)) & 0xFFFF_FFFF_FFFF_FFFF
    digest: int = xxh3_64_intdigest(payload, own_seed)
    return digest
