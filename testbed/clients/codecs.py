"""What a closed-loop probe says to each guest program, and how it knows the answer to be right.

A codec belongs to one connection. `request()` gives the next request; `received(data)` takes in what came and
says whether the reply is complete. It does no I/O and reads no clock. What was wrong with the replies stands
in `integrity`, and the first wrong reply, in words, in `complaint`.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Protocol

from testbed.clients.integrity import Integrity, StreamChecker
from testbed.measure.pattern import pattern

LINES_LIMIT = 16 << 10
"""Bytes after which a line, or the head of a response, must have ended."""


class Codec(Protocol):
    integrity: Integrity
    complaint: str | None

    def request(self) -> bytes:
        """The next request. Only after the reply to the last one was complete."""

    def received(self, data: bytes) -> bool:
        """Take in `data`; True if with it the reply to the last request is complete.

        Bytes that come when no reply is due count as duplicated (and give False).
        """

    def finish(self) -> None:
        """Nothing more will come: what was still due is lost."""


class EchoCodec:
    """Requests of `size` bytes that come back unchanged: consecutive pieces of the byte ramp from `offset`
    on.

    Give each connection an offset of its own: then bytes of another connection are as wrong as any others.
    """

    def __init__(self, size: int, offset: int = 0) -> None:
        self.complaint: str | None = None
        self._size = size
        self._sent = offset
        self._due = b""
        self._checker = StreamChecker(offset)
        self.integrity = self._checker.integrity

    def request(self) -> bytes:
        self._due = due = pattern(self._sent, self._size)
        self._sent += self._size
        return due

    def received(self, data: bytes) -> bool:
        checker = self._checker
        if data == self._due and checker.position + self._size == self._sent:  # all but always
            checker.position = self._sent
            self._due = b""
            return True
        was_due = bool(self._due)
        checker.feed(data, self._sent)
        if self.complaint is None and not self.integrity.whole():
            self.complaint = f"echo came back wrong near byte {checker.position}: {data[:32]!r}"
        if was_due and checker.position >= self._sent:
            self._due = b""
            return True
        return False

    def finish(self) -> None:
        self._checker.finish(self._sent)


class KvCodec:
    """SET and GET in turn, of a value of `size` bytes that is new each time: what was stored must be what is
    read.

    `key` must be this connection's own, else another one's SET is seen as corruption.
    """

    def __init__(self, size: int, key: str) -> None:
        self.integrity = Integrity()
        self.complaint: str | None = None
        self._size = size
        self._key = key.encode()
        self._requests = 0
        self._value = b""
        self._due = b""
        self._last = b""
        self._buffer = b""

    def request(self) -> bytes:
        asks = self._requests
        self._requests += 1
        if asks % 2 == 0:
            self._value = pattern(asks // 2 * self._size, self._size)
            self._due = b"+OK\r\n"
            return resp(b"SET", self._key, self._value)
        self._due = b"$%d\r\n%s\r\n" % (self._size, self._value)
        return resp(b"GET", self._key)

    def received(self, data: bytes) -> bool:
        if not self._due:
            self._note(f"{len(data)} bytes came unasked: {data[:64]!r}")
            self.integrity.duplicated += len(data)
            return False
        self._buffer = buffer = self._buffer + data
        due = self._due
        if buffer == due:
            return self._complete()
        if due.startswith(buffer):
            return False
        if self._last and buffer.startswith(self._last) and not due.startswith(buffer[: len(due)]):
            self._note(f"the reply before came again: {self._last[:64]!r}")
            self.integrity.duplicated += len(self._last)
            self._buffer = b""
            rest = buffer[len(self._last) :]
            return self.received(rest) if rest else False
        return self._odd_reply(buffer, due)

    def finish(self) -> None:
        if self._due:
            self.integrity.lost += max(1, len(self._due) - len(self._buffer))
            self._due = b""

    def _odd_reply(self, buffer: bytes, due: bytes) -> bool:
        """A reply that is not the one due: is it complete?"""
        length = resp_length(buffer, len(due))
        if length is None or len(buffer) < length:
            return False
        reply, extra = buffer[:length], buffer[length:]
        if reply != due:
            self._note(f"reply {reply[:64]!r} in place of {due[:64]!r}")
            self.integrity.corrupted += sum(a != b for a, b in zip(reply, due, strict=False)) or 1
        self._complete()
        if extra:
            self.received(extra)
        return True

    def _complete(self) -> bool:
        self._last, self._due, self._buffer = self._due, b"", b""
        return True

    def _note(self, complaint: str) -> None:
        self.complaint = self.complaint or complaint


class HttpCodec:
    """`GET path` on one HTTP/1.1 connection (RFC 9112): status 200, a Content-Length, and so many bytes after
    the head.

    With the path /counter the body is JSON whose `requests` counts the requests served by the guest: it must
    grow with each answer, for a guest that forgot requests has lost memory.
    """

    COUNTER = "/counter"

    def __init__(self, host: str, path: str = COUNTER, statuses: Counter[str] | None = None) -> None:
        """`statuses`: any status is an answer, and counted there. Without it, only 200 is one."""
        self._any_status = statuses is not None
        self.statuses = Counter() if statuses is None else statuses
        self.integrity = Integrity()
        self.complaint: str | None = None
        named = f"[{host}]" if ":" in host else host
        self._request = f"GET {path} HTTP/1.1\r\nHost: {named}\r\n\r\n".encode()
        self._counts = path == self.COUNTER
        self._counted = -1
        self._waiting = False
        self._buffer = b""

    def request(self) -> bytes:
        self._waiting = True
        return self._request

    def received(self, data: bytes) -> bool:
        if not self._waiting:
            self._note(f"{len(data)} bytes came unasked: {data[:64]!r}")
            self.integrity.duplicated += len(data)
            return False
        self._buffer += data
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            if len(head) > LINES_LIMIT:
                return self._wrong(f"no end of the head in {len(head)} bytes", len(head))
            return False
        status, length = _http_head(head)
        if length is None:
            return self._wrong(f"no Content-Length in {head[:200]!r}", len(self._buffer))
        if len(rest) < length:
            return False
        body, extra = rest[:length], rest[length:]
        self._buffer, self._waiting = b"", False
        self._judge(status, body)
        if extra:
            self.received(extra)
        return True

    def finish(self) -> None:
        """How many bytes a missing reply would have had is not known: one stands for all."""
        if self._waiting:
            self.integrity.lost += 1
            self._waiting = False

    def _judge(self, status: bytes, body: bytes) -> None:
        self.statuses[status.decode("latin-1")] += 1
        if status != b"200" and self._any_status and status.isdigit():
            return
        if status != b"200":
            self._wrong(f"status {status!r}", len(body) or 1)
        elif self._counts:
            counted = _counter(body)
            if counted is None or counted <= self._counted:
                self._wrong(f"counter after {self._counted}: {body[:64]!r}", len(body) or 1)
            else:
                self._counted = counted

    def _wrong(self, complaint: str, count: int) -> bool:
        self._note(complaint)
        self.integrity.corrupted += count
        self._buffer, self._waiting = b"", False
        return True

    def _note(self, complaint: str) -> None:
        self.complaint = self.complaint or complaint


def resp(*words: bytes) -> bytes:
    """A command in RESP2: an array of bulk strings."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def resp_length(buffer: bytes, otherwise: int) -> int | None:
    """The length of the RESP2 reply that `buffer` begins with; None if that is not known yet.

    `otherwise` for what is no RESP2 simple reply or bulk string.
    """
    line, end, _ = buffer.partition(b"\r\n")
    if buffer[:1] not in (b"+", b"-", b":", b"$"):
        return otherwise
    if not end:
        return None if len(buffer) < LINES_LIMIT else otherwise
    if line[:1] != b"$" or line == b"$-1":
        return len(line) + 2
    return len(line) + 2 + int(line[1:]) + 2 if line[1:].isdigit() else otherwise


def _http_head(head: bytes) -> tuple[bytes, int | None]:
    """Status code and Content-Length of a response head; the length is None if absent or no number."""
    lines = head.split(b"\r\n")
    words = lines[0].split(b" ", 2)
    status = words[1] if len(words) > 1 and words[0].startswith(b"HTTP/1.") else lines[0][:32]
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            return status, int(value)
    return status, None


def _counter(body: bytes) -> int | None:
    try:
        decoded = json.loads(body)
    except ValueError:
        return None
    requests = decoded.get("requests") if isinstance(decoded, dict) else None
    return requests if isinstance(requests, int) else None
