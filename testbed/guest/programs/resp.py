"""RESP, the protocol of Redis clients: bytes in, commands out; values in, bytes out. No I/O.

Version 2 is spoken from the start; a client that says HELLO 3 gets version 3 (redis-py does so by itself
from version 8 on), which here differs in two things only: there is a null, and there are maps.
https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from dataclasses import dataclass

VALUE_LIMIT_BYTES = 512 << 10
INLINE_LIMIT_BYTES = 64 << 10
ARGUMENTS_LIMIT = 1 << 16
_LINE_BYTES = 32
"""A length and its line end are never longer."""


class ProtocolError(Exception):
    """What came is not RESP: it is answered and the connection closed."""


def parse(data: bytes, start: int) -> tuple[list[bytes], int] | None:
    """The command that begins at `start` and where the next one begins; None when it is not all there.

    An empty line or array is a command of no words. Raises ProtocolError. Pure.
    """
    if data[start] != 0x2A:  # '*'
        end = data.find(b"\n", start)
        if end < 0:
            if len(data) - start > INLINE_LIMIT_BYTES:
                raise ProtocolError("ERR Protocol error: too big inline request")
            return None
        return data[start:end].split(), end + 1
    end = data.find(b"\r\n", start, start + _LINE_BYTES)
    if end < 0:
        if len(data) - start >= _LINE_BYTES:
            raise ProtocolError("ERR Protocol error: invalid multibulk length")
        return None
    count = _number(data[start + 1 : end], ARGUMENTS_LIMIT, "invalid multibulk length")
    words = []
    at = end + 2
    for _ in range(count):
        end = data.find(b"\r\n", at, at + _LINE_BYTES)
        if end < 0:
            if data[at : at + 1] not in (b"$", b""):
                raise ProtocolError(f"ERR Protocol error: expected '$', got '{chr(data[at])}'")
            if len(data) - at >= _LINE_BYTES:
                raise ProtocolError("ERR Protocol error: invalid bulk length")
            return None
        if data[at] != 0x24:  # '$'
            raise ProtocolError(f"ERR Protocol error: expected '$', got '{chr(data[at])}'")
        length = _number(data[at + 1 : end], VALUE_LIMIT_BYTES, "invalid bulk length")
        if length < 0:
            raise ProtocolError("ERR Protocol error: invalid bulk length")
        at = end + 2 + length + 2
        if at > len(data):
            return None
        if data[at - 2 : at] != b"\r\n":
            raise ProtocolError("ERR Protocol error: a bulk string does not end where it says")
        words.append(data[end + 2 : at - 2])
    return words, at


def _number(digits: bytes, limit: int, problem: str) -> int:
    unsigned = digits[1:] if digits[:1] == b"-" else digits
    if not unsigned.isdigit() or len(digits) > 20 or int(digits) > limit:
        raise ProtocolError(f"ERR Protocol error: {problem}")
    return int(digits)


@dataclass(frozen=True)
class Dialect:
    """A version of the protocol."""

    version: int
    null: bytes
    map_mark: bytes
    entries_a_pair: int

    def bulk(self, value: bytes | memoryview | None) -> bytes:
        """A bulk string, or the null."""
        return self.null if value is None else b"$%d\r\n%b\r\n" % (len(value), bytes(value))

    def map(self, pairs: list[tuple[bytes, bytes]]) -> bytes:
        """A map of `pairs`, encoded already; an array of twice as many in version 2."""
        body = b"".join(key + value for key, value in pairs)
        return b"%b%d\r\n%b" % (self.map_mark, len(pairs) * self.entries_a_pair, body)


RESP2 = Dialect(2, b"$-1\r\n", b"*", 2)
RESP3 = Dialect(3, b"_\r\n", b"%", 1)
