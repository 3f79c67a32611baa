"""A numbered datagram: which one came back, when it was sent, and when the service had it. Pure.

::

    4 bytes "LMtb" | u32 flow | u64 number | i64 sent | i64 handled

(big-endian; times are CLOCK_MONOTONIC, ns) and then, up to the size that was asked for, the byte ramp of
:mod:`testbed.measure.pattern` from byte `number` on, so that each byte is checked. `handled` is zero on the
way there; the service fills it in.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from testbed.measure.pattern import pattern

MAGIC = b"LMtb"
MARKER = (1 << 64) - 1
"""The number of a datagram that is not counted: it asks whether the other end hears at all."""

_HEADER = struct.Struct("!4sIQqq")
_HANDLED = struct.Struct("!q")
_HANDLED_AT = _HEADER.size - _HANDLED.size
HEADER_BYTES = _HEADER.size


class Numbered(NamedTuple):
    """What a datagram says of itself; `whole` is False where a byte after the header is not as it was sent.
    """

    flow: int
    number: int
    sent_ns: int
    handled_ns: int
    whole: bool


def build(flow: int, number: int, sent_ns: int, size: int) -> bytes:
    """A datagram of `size` bytes, at least HEADER_BYTES."""
    head = _HEADER.pack(MAGIC, flow, number, sent_ns, 0)
    return head + pattern(number % (1 << 32), size - HEADER_BYTES) if size > HEADER_BYTES else head


def handled(datagram: bytes, now_ns: int) -> bytes:
    """The datagram as the service sends it back; one that is none of ours comes back as it is."""
    if len(datagram) < HEADER_BYTES or not datagram.startswith(MAGIC):
        return datagram
    return datagram[:_HANDLED_AT] + _HANDLED.pack(now_ns) + datagram[HEADER_BYTES:]


def parse(datagram: bytes) -> Numbered | None:
    """What came back; None if it is no datagram of ours."""
    if len(datagram) < HEADER_BYTES or not datagram.startswith(MAGIC):
        return None
    _, flow, number, sent_ns, handled_ns = _HEADER.unpack_from(datagram)
    rest = datagram[HEADER_BYTES:]
    return Numbered(flow, number, sent_ns, handled_ns, rest == pattern(number % (1 << 32), len(rest)))
