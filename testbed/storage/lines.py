"""One JSON object a line, over a blocking socket: how the control services of this room speak."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

from testbed.storage.stream import StreamLost, lost, send

MOST_LINE_BYTES = 1 << 20


class LineBroken(Exception):
    """What came is no line of this kind: too long, no JSON, or no object."""


class Lines:
    """A connection that carries lines both ways; its deadline is the socket's."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._buffer = bytearray()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send `message`. Raises StreamLost."""
        send(self.socket, json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None if the other end has closed after a whole one. Raises StreamLost,
        LineBroken."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > MOST_LINE_BYTES:
                raise LineBroken(f"a line of more than {MOST_LINE_BYTES} bytes")
            data = self._more()
            if not data and not self._buffer:
                return None
            if not data:
                raise StreamLost("the other end closed the connection in the middle of a line")
            self._buffer += data
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        return _parse(line)

    def _more(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except OSError as error:
            raise lost(error) from error


def _parse(line: bytes | bytearray) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineBroken(f"a line that is not JSON: {bytes(line[:60])!r}") from error
    if not isinstance(message, dict):
        raise LineBroken(f"a line that is not a JSON object: {bytes(line[:60])!r}")
    return message
