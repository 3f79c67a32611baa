"""Trace events: what each process saw, on one clock.

Every process of a lab stamps its events with CLOCK_MONOTONIC, which all network namespaces of a machine
share, so events of different processes can be laid on one line without synchronising anything.

An event is one JSON object: ``t_ns`` (CLOCK_MONOTONIC), ``source`` (the process: ``host-a``, ``client1``),
``event`` (what happened) and any further fields. A phase is a pair of events ``begin`` and ``end`` with the
field ``phase``.

Recording appends to a list and costs about a microsecond, so it may be done inside the blackout;
:meth:`Trace.flush` sends what has gathered to the recorder's datagram socket and belongs outside it.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RECORDER_BUFFER_BYTES = 4 << 20


class Trace:
    """The events of one process, named `source`, on their way to the recorder.

    `recorder` is the path of the recorder's datagram socket; without one the events stay in :attr:`pending`.
    """

    def __init__(self, source: str, recorder: Path | None = None) -> None:
        self.source = source
        self.pending: list[dict[str, Any]] = []
        self._socket: socket.socket | None = None
        if recorder is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.connect(str(recorder))

    def event(self, event: str, *, t_ns: int | None = None, **fields: Any) -> int:
        """Record `event`, now or at `t_ns`; returns its time in nanoseconds."""
        if t_ns is None:
            t_ns = time.monotonic_ns()
        self.pending.append({"t_ns": t_ns, "source": self.source, "event": event, **fields})
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

    def flush(self, *, wait: bool = True) -> None:
        """Send what has gathered. Blocks while the recorder's queue is full, which holds as little as ten
        events (net.unix.max_dgram_qlen): never call it in the blackout. Without `wait` the rest stays for the
        next time: for a process that its recorder's reader waits for.
        """
        if self._socket is None:
            return
        pending, self.pending = self.pending, []
        for number, event in enumerate(pending):
            data = json.dumps(event, separators=(",", ":")).encode()
            try:
                self._socket.send(data, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                self.pending = pending[number:]
                return

    def close(self) -> None:
        self.flush()
        if self._socket is not None:
            self._socket.close()


class Recorder:
    """The receiving end: a datagram socket at `path`, and every event received so far in :attr:`events`."""

    def __init__(self, path: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECORDER_BUFFER_BYTES)
        self._socket.bind(str(path))

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> list[dict[str, Any]]:
        """Take in what has arrived, without waiting; returns the new events."""
        new: list[dict[str, Any]] = []
        while True:
            try:
                new.append(json.loads(self._socket.recv(1 << 16)))
            except BlockingIOError:
                self.events.extend(new)
                return new

    def close(self) -> None:
        """Stop receiving; the path is free again."""
        self._socket.close()
        self._path.unlink(missing_ok=True)
