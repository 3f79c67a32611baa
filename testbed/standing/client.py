"""A terminal's end of the conversation with a lab's server (testbed.standing.protocol)."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from testbed.standing import registry
from testbed.standing.protocol import Incoming, LabGone, Message, ProtocolError, Refused, encode

ANSWER_DEADLINE_S = 30.0
"""Of what is answered at once: longer than a server is ever busy with something else (clients that are asked
for their figures while their network is cut)."""
_READ_BYTES = 1 << 16


def _unheard(_: Message) -> None:
    """Progress that nobody wants."""


class Conversation:
    """A connection to a server. A context manager."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._incoming = Incoming()
        self._waiting: deque[Message] = deque()

    @classmethod
    def with_lab(cls, name: str) -> Self:
        """LabGone if the lab's server is not there any more."""
        try:
            return cls(registry.connect(name))
        except OSError as error:
            raise LabGone(f"lab {name!r} is gone") from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(
        self,
        request: Message,
        deadline_s: float | None = ANSWER_DEADLINE_S,
        on_progress: Callable[[Message], None] = _unheard,
    ) -> Message:
        """Ask, hand on the progress, return what the answer's ``ok`` holds.

        Refused with the server's word; LabGone; TimeoutError if nothing at all comes for `deadline_s` (None:
        wait for ever).
        """
        try:
            self._socket.sendall(encode(request))
        except OSError as error:
            raise LabGone("the lab is gone") from error
        return self.answer(deadline_s, on_progress)

    def answer(
        self, deadline_s: float | None, on_progress: Callable[[Message], None] = _unheard
    ) -> Message:
        """As :meth:`ask`, for what has been asked already."""
        while True:
            message = self._next(deadline_s)
            if "ok" in message:
                return dict(message["ok"])
            if "error" in message:
                raise Refused(str(message["error"]), int(message.get("status", 1)))
            on_progress(message)

    def _next(self, deadline_s: float | None) -> Message:
        end = None if deadline_s is None else time.monotonic() + deadline_s
        while not self._waiting:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._socket], [], [], left)[0]:
                raise TimeoutError(110, f"the lab's server has not answered for {deadline_s:g} s")
            try:
                data = self._socket.recv(_READ_BYTES)
            except ConnectionResetError:
                data = b""
            if not data:
                raise LabGone("the lab has gone down")
            self._waiting.extend(self._incoming.feed(data))
        return self._waiting.popleft()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["ANSWER_DEADLINE_S", "Conversation", "LabGone", "ProtocolError", "Refused"]
