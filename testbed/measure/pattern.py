"""The byte ramp: a stream in which every byte tells where it belongs.

Both ends of a ramp connection compute the same bytes from nothing but the position in the stream, so either
can check what it receives without having seen what was sent, and goes on checking after a migration as long
as the guest kept its positions.

The stream repeats a table of :data:`PERIOD` pseudo-random bytes. The period is the largest prime below 2**16:
what a network loses or repeats comes in segments, pages and powers of two, none of which is a multiple of it,
so no such block can vanish without a trace. Any :data:`WINDOW` consecutive bytes occur once in the table, so
that a reader which fell out of step finds out by how much (:func:`displacement`).

The table is the output of SHAKE-128 (FIPS 202): the same on every machine and in every version of Python.
"""

from __future__ import annotations

import hashlib

PERIOD = 65521
WINDOW = 8

_DIRECT_BYTES = 1 << 18
"""Up to this length a piece of the stream is one slice of :data:`_TABLE`."""

_PERIOD_BYTES = hashlib.shake_128(b"live-migration testbed: byte ramp").digest(PERIOD)
_TABLE = _PERIOD_BYTES * (_DIRECT_BYTES // PERIOD + 2)


def pattern(offset: int, length: int) -> bytes:
    """The `length` bytes of the stream that begin at byte `offset` (both in bytes, from zero).

    One slice for up to 256 KiB (about 2 us per 64 KiB). ValueError when either is negative.
    """
    if offset < 0 or length < 0:
        raise ValueError(f"pattern({offset}, {length}): offset and length cannot be negative")
    start = offset % PERIOD
    if length <= _DIRECT_BYTES:
        return _TABLE[start : start + length]
    return (_PERIOD_BYTES * ((start + length) // PERIOD + 1))[start : start + length]


def displacement(expected_offset: int, window: bytes) -> int | None:
    """How many bytes the stream has jumped, where `window` came in place of byte `expected_offset`.

    Positive: so many bytes are missing before `window`. Negative: so many came again. Zero: in step.
    None: `window` occurs nowhere in the stream (its bytes were altered) or has not :data:`WINDOW` bytes.
    The answer is modulo the period, taken nearest to zero: jumps of up to 32,760 bytes are told exactly.
    """
    if len(window) != WINDOW:
        return None
    found = _TABLE.find(window, 0, PERIOD + WINDOW - 1)
    if found < 0:
        return None
    jump = (found - expected_offset) % PERIOD
    return jump if jump <= PERIOD // 2 else jump - PERIOD
