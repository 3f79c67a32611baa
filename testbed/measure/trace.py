"""Trace events: what each process saw, on one clock.

Every process of a lab stamps its events with CLOCK_MONOTONIC, which all network namespaces of a machine
share, so events of different processes can be laid on one line without synchronising anything.

An event is one JSON object: ``t_ns`` (CLOCK_MONOTONIC), ``source`` (the process: ``host-a``, ``client1``),
``event`` (what happened) and any further fields. A phase is a pair of events ``begin`` and ``end`` with the
field ``phase``.

Recording appends to a list and costs about a microsecond, so it may be done inside the blackout;
:meth:`Trace.flush` sends what has gathered to the recorder, a JSON line each, and belongs outside it. The
connection is a stream, for a queue of datagrams is full after ten (net.unix.max_dgram_qlen), and whoever
flushes would then wait for whoever records, who may be waiting for it.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READ_BYTES = 1 << 18
OFFER_BYTES = 16 << 10
BEAT = "beat"
"""The event that only whoever watches needs: a recorder gives it on and does not keep it."""

_GONE = (BrokenPipeError, ConnectionResetError)


class Trace:
    """The events of one process, named `source`, on their way to the recorder.

    `recorder` is the path of the recorder's socket; without one the events stay in :attr:`pending`. `of_all`
    are fields that each of its events has.
    """

    def __init__(
        self, source: str, recorder: Path | None = None, of_all: Mapping[str, Any] | None = None
    ) -> None:
        self.source = source
        self._of_all = dict(of_all or {})
        self.pending: list[dict[str, Any]] = []
        self._socket: socket.socket | None = None
        if recorder is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(str(recorder))

    def event(self, event: str, *, t_ns: int | None = None, **fields: Any) -> int:
        """Record `event`, now or at `t_ns`; returns its time in nanoseconds."""
        if t_ns is None:
            t_ns = time.monotonic_ns()
        self.pending.append({"t_ns": t_ns, "source": self.source, "event": event, **self._of_all, **fields})
        return t_ns

    @contextmanager
    def phase(self, phase: str, **fields: Any) -> Iterator[None]:
        """Record the begin and the end of `phase`; the end says if it was left by an exception."""
        self.event("begin", phase=phase, **fields)
        try:
            yield
        except BaseException as error:
            self.event("end", phase=phase, error=f"{type(error).__name__}: {error}")
            raise
        self.event("end", phase=phase)

    def flush(self) -> bool:
        """Send what has gathered; whether there is somebody who records. Blocks while the recorder's buffer
        is full, some hundred events that nobody has read; never call it in the blackout.

        That whoever records has gone is no error: the lab goes with it, and what is under way, as a
        migration, is not to break off in the middle of a step because nobody writes it down.
        """
        if self._socket is None:
            return False
        pending, self.pending = self.pending, []
        try:
            self._socket.sendall(_lines(pending))
        except _GONE:
            self._let_go()
        return self._socket is not None

    def offer(self) -> bool:
        """Send what has gathered if the recorder's buffer takes it now; whether it did. Never waits.

        What comes to some kilobytes goes as one piece or not at all, for the kernel's buffers are larger than
        that; more than that is left to :meth:`flush`.
        """
        data = _lines(self.pending)
        if self._socket is None or len(data) > OFFER_BYTES:
            return False
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT)
            self.pending.clear()
            self._socket.sendall(data[sent:])
        except BlockingIOError:
            return False
        except _GONE:
            self._let_go()
            return False
        return True

    def close(self) -> None:
        """Send what has gathered, if there is still somebody who records."""
        self.flush()
        self._let_go()

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _lines(events: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events).encode()


class Recorder:
    """The receiving end: listens at `path`, and has every event received so far in :attr:`events`."""

    def __init__(self, path: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(str(path))
        self._listener.listen(socket.SOMAXCONN)
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._sources: dict[int, tuple[socket.socket, bytearray]] = {}

    def fileno(self) -> int:
        """Readable when something has arrived."""
        return self._epoll.fileno()

    def receive(self) -> list[dict[str, Any]]:
        """Take in what has arrived, without waiting; returns the new events. Beats are not kept: the samples
        of a client say all that they say, and more."""
        new: list[dict[str, Any]] = []
        while found := self._epoll.poll(0):
            for fd, _ in found:
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    new += self._read(fd)
        self.events.extend(event for event in new if event["event"] != BEAT)
        return new

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._sources[connection.fileno()] = (connection, bytearray())
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _read(self, fd: int) -> list[dict[str, Any]]:
        """The whole lines that one process has sent; what it had not finished when it died is left out."""
        connection, buffer = self._sources[fd]
        try:
            data = connection.recv(READ_BYTES)
        except (BlockingIOError, ConnectionResetError):
            data = b""
        if not data:
            self._epoll.unregister(fd)
            connection.close()
            del self._sources[fd]
            return []
        buffer += data
        *lines, rest = buffer.split(b"\n")
        buffer[:] = rest
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Stop receiving; the path is free again."""
        self._epoll.close()
        self._listener.close()
        for connection, _ in self._sources.values():
            connection.close()
        self._path.unlink(missing_ok=True)
