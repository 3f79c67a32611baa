"""How the orchestrator tells an agent what to do: one JSON object a line, over a Unix socket.

The agent listens, and obeys whoever connected last. An orchestrator that goes away in the middle of a
migration changes nothing of it; the next one asks what became of it (``status``).

A request has ``do`` and whatever that command needs. Its answers are ``{"ok": ...}`` or ``{"error": text,
"kind": name, ...}``; a command that takes time answers ``{"started": ...}`` first. One request at a time is
under way, ``cancel`` excepted, which has no answer of its own.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from pathlib import Path
from typing import Any

MAX_LINE = 1 << 20
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)


class ControlError(Exception):
    """The other end broke the protocol, ended, or stayed silent past the deadline."""


class CommandFailed(Exception):
    """The agent could not do what it was told; `kind` names the exception's class over there."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class Line:
    """A JSON-lines connection. `fileno` makes it selectable: a whole line may then be waiting already, see
    `pending`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()

    @classmethod
    def connect(cls, path: Path) -> Line:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(path))
        return cls(connection)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        return b"\n" in self._buffer

    def option(self, name: int, size: int) -> bytes:
        """A socket option of the connection (SOL_SOCKET)."""
        return self._socket.getsockopt(socket.SOL_SOCKET, name, size)

    def send(self, message: dict[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            raise ControlError(f"the agent's connection broke: {error.strerror}") from error

    def receive(self, deadline_s: float) -> dict[str, Any]:
        """The next message. Raises ControlError."""
        end = time.monotonic() + deadline_s
        while not self.pending:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                raise ControlError(f"no answer within {deadline_s:g} s")
            self._fill()
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ControlError("a line that is not JSON") from error
        if not isinstance(message, dict):
            raise ControlError("a line that is not a JSON object")
        return message

    def poll(self) -> dict[str, Any] | None:
        """The next message if one is there, without waiting."""
        if not self.pending and select.select([self._socket], [], [], 0)[0]:
            self._fill()
        return self.receive(0) if self.pending else None

    def _fill(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except OSError as error:
            raise ControlError(f"the connection broke: {error.strerror}") from error
        if not data:
            raise ControlError("the other end closed the connection")
        self._buffer += data
        if len(self._buffer) > MAX_LINE:
            raise ControlError("a line that is too long")

    def ask(self, message: dict[str, Any], deadline_s: float) -> Any:
        """Send a request and wait for its answer. Raises ControlError, or CommandFailed with the agent's
        reason."""
        self.send(message)
        return self.answer(deadline_s)

    def answer(self, deadline_s: float) -> Any:
        """The final answer to the request under way, or the word that it has started."""
        answer = self.receive(deadline_s)
        if "error" in answer:
            raise CommandFailed(str(answer["error"]), str(answer.get("kind", "")))
        return answer["ok"] if "ok" in answer else answer["started"]

    def close(self) -> None:
        self._socket.close()


class Reception:
    """The agent's end: a listening socket, and the orchestrator that came last, if it is still there.

    An answer goes to the one who asked: if that one is gone, to nobody.
    """

    def __init__(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._line: Line | None = None
        self._asker: Line | None = None
        self._waiting: list[dict[str, Any]] = []

    def sources(self) -> list[Any]:
        """What to wait on until :meth:`poll` may have something."""
        return [self._listener] if self._line is None else [self._listener, self._line]

    @property
    def pending(self) -> bool:
        return bool(self._waiting) or (self._line is not None and self._line.pending)

    def cancelled(self) -> bool:
        """Whether a ``cancel`` has come while a command is being carried out; other requests wait."""
        message = self._next()
        if message is None:
            return False
        if message.get("do") == "cancel":
            return True
        self._waiting.append(message)
        return False

    def poll(self) -> dict[str, Any] | None:
        """The next request if one is there, without waiting. An orchestrator that is gone is forgotten."""
        message = self._waiting.pop(0) if self._waiting else self._next()
        if message is not None:
            self._asker = self._line
        return message

    def _next(self) -> dict[str, Any] | None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            pass  # nobody new
        else:
            self._hang_up()
            connection.setblocking(True)
            self._line = Line(connection)
        if self._line is None:
            return None
        try:
            return self._line.poll()
        except ControlError:
            self._hang_up()
            return None

    @property
    def peer_pid(self) -> int | None:
        """The orchestrator's process; None where there is none."""
        if self._line is None or self._line is not self._asker:
            return None
        pid, _, _ = _CREDENTIALS.unpack(self._line.option(socket.SO_PEERCRED, _CREDENTIALS.size))
        return int(pid)

    def send(self, message: dict[str, Any]) -> bool:
        """Answer; False where nobody is there to hear it any more."""
        if self._line is None or self._line is not self._asker:
            return False
        try:
            self._line.send(message)
        except ControlError:
            self._hang_up()
            return False
        return True

    def _hang_up(self) -> None:
        self._waiting.clear()
        if self._line is not None:
            self._line.close()
            self._line = None
