"""Starting processes: any process of a universe asks, the universe's first process forks.

Why a fork server. A new interpreter that imports numpy and the rest takes 200 ms and more on a busy machine;
a fork of a process that has them takes a few. But only a process with a single thread may be forked safely,
and whoever runs a network simulation soon has more. So the first process (pid 1 of the universe) does nothing
but this: it imports once, keeps to one thread, forks when asked, and reaps.

Who owns a process. Each request comes on a connection of its own, and the connection is the lease: when its
last copy is closed, however the owner ended, the fork server kills the process and whatever else is in its
session's process group. An owner that forks hands the copy on; close the Process in the child if that is not
meant.

The conversation on one connection (SOCK_SEQPACKET, one JSON object a message):

    owner  -> server   {"entry", "argument", "name", "namespace": bool} + [ready, stderr, (namespace), fds...]
    server -> owner    {"pid": 12} + [pidfd]        or {"error": "..."}
    server -> owner    {"exit": 0}                  (-n: ended by signal n)      then the server closes
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netns.namespace import Namespace
from netns.paths import FORK_SERVER, demand_universe

LARGEST_REQUEST_BYTES = 128 * 1024
MOST_DESCRIPTORS = 240
"""How many `fds` a process can be given. The kernel passes 253 in one message (SCM_MAX_FD); a few are
ours.
"""

TAIL_BYTES = 4096
_REPLY_DEADLINE_S = 60.0
_LAST_WORDS_DEADLINE_S = 5.0


class SpawnError(Exception):
    """A process could not be started: the request was wrong, or the fork server refused it. Nothing was
    started.
    """


class ProcessDied(Exception):
    """A process ended before it was ready. The message carries its exit status and the tail of its stderr."""


class NotReady(TimeoutError):
    """A process runs, but did not say within the deadline that it is ready."""


class Process:
    """A process that this one owns. It lives at most as long as this object's connection to the fork server.

    `pid` is its number in the universe, `pidfd` a descriptor that becomes readable when it ends. Not for use
    by two threads at once. As a context manager it kills the process at the end of the block, and waits.
    """

    def __init__(
        self, name: str, pid: int, pidfd: int, connection: socket.socket, ready: int, stderr: int
    ) -> None:
        self.name = name
        self.pid = pid
        self.pidfd = pidfd
        self._connection = connection
        self._ready = ready
        self._stderr = stderr
        self._status: int | None = None

    @classmethod
    def adopt(cls, name: str, pid: int, descriptors: Sequence[int]) -> Self:
        """A process that another one owned, which has handed on its `descriptors`; they belong to this object
        now.
        """
        connection, pidfd, stderr = descriptors
        return cls(name, pid, pidfd, socket.socket(fileno=connection), -1, stderr)

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """What :meth:`adopt` wants. Who holds duplicates keeps the process alive, whoever else ends."""
        return self._connection.fileno(), self.pidfd, self._stderr

    def wait_ready(self, deadline_s: float) -> None:
        """Return once the process has called `ready()`. ProcessDied or NotReady if it does not come to
        that.
        """
        if self._ready < 0:
            return
        if not _readable(self._ready, deadline_s):
            raise NotReady(f"{self} was not ready within {deadline_s:g} s{self._last_words()}")
        if os.read(self._ready, 1):
            os.close(self._ready)
            self._ready = -1
            return
        status = self.wait(_LAST_WORDS_DEADLINE_S)
        what = f"ended before it was ready: {_said(status)}" if status is not None else "will never be ready"
        raise ProcessDied(f"{self} {what}{self._last_words()}")

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit status (-n: ended by signal n), or None if it still runs after `timeout_s` seconds (None:
        for ever).

        May be asked again after the end. SpawnError if the fork server itself is gone.
        """
        if self._status is None and self._connection.fileno() >= 0 and _readable(self._connection, timeout_s):
            message = self._connection.recv(LARGEST_REQUEST_BYTES)
            if not message:
                raise SpawnError(f"{self}: the universe is ending")
            self._status = int(json.loads(message)["exit"])
        return self._status

    def stderr_tail(self, size_bytes: int = TAIL_BYTES) -> str:
        """The end of what it has written to stdout and stderr so far, at most `size_bytes` of it."""
        length = os.fstat(self._stderr).st_size
        start = max(0, length - size_bytes)
        return os.pread(self._stderr, size_bytes, start).decode(errors="replace")

    def terminate(self) -> None:
        """Send SIGTERM. Nothing happens if it has ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL. Nothing happens if it has ended."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Give the process up: if it still runs, the fork server kills it. Closing twice is allowed."""
        self._connection.close()
        for descriptor in (self.pidfd, self._ready, self._stderr):
            if descriptor >= 0:
                os.close(descriptor)
        self.pidfd = self._ready = self._stderr = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.pidfd >= 0:
            try:
                self.kill()
                self.wait()
            finally:
                self.close()

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended: what was wanted has happened
            signal.pidfd_send_signal(self.pidfd, number)

    def _last_words(self) -> str:
        tail = self.stderr_tail().strip()
        return f"; its last words:\n{tail}" if tail else "; it wrote nothing"


def spawn(
    entry: str,
    argument: Any,
    *,
    namespace: Namespace | None,
    fds: Sequence[int] = (),
    name: str,
    stderr: Path | None = None,
) -> Process:
    """Start `entry` ("package.module:function") as function(argument, fds), in a fork of the universe's first
    process.

    It runs in the network namespace `namespace` (None: the universe's own), in a session of its own with
    SIGINT ignored, stdin on /dev/null, stdout and stderr appended to the file `stderr` (None: kept in memory,
    see `Process.stderr_tail`), and owns duplicates of `fds` and no other descriptor. Its exit status is what
    the function returns (None: 0), 1 after an exception, which it writes to its stderr. It calls `ready()`
    when it is.

    `argument` must be JSON; with its entry and name at most 128 KiB. `name` is what ps shows (the first 15
    bytes). SpawnError if the request cannot be made or was refused; OSError if `stderr` cannot be opened. A
    wrong entry is noticed in the new process: `wait_ready` tells.
    """
    demand_universe(f"process {name!r}")
    request = _request(entry, argument, name, namespace is not None)
    if len(fds) > MOST_DESCRIPTORS:
        raise SpawnError(f"{name}: {len(fds)} descriptors, of at most {MOST_DESCRIPTORS}")
    with ExitStack() as undo:
        log = _open_log(name, stderr)
        undo.callback(os.close, log)
        ready_read, ready_write = os.pipe()
        undo.callback(os.close, ready_read)
        connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        try:
            connection.settimeout(_REPLY_DEADLINE_S)
            connection.connect(str(FORK_SERVER))
            passed = [ready_write, log, *([namespace.fd] if namespace is not None else []), *fds]
            socket.send_fds(connection, [request], passed)
        finally:
            os.close(ready_write)
        reply, received, _, _ = socket.recv_fds(connection, LARGEST_REQUEST_BYTES, 1)
        if not reply:
            raise SpawnError(f"{name}: the universe is ending")
        answer = json.loads(reply)
        if "error" in answer:
            raise SpawnError(f"{name}: {answer['error']}")
        connection.settimeout(None)
        undo.pop_all()
        return Process(name, answer["pid"], received[0], connection, ready_read, log)


_ready_descriptor = -1


def ready() -> None:
    """Called once by a spawned process: whoever waits in `wait_ready` goes on. RuntimeError in any other
    process.
    """
    global _ready_descriptor
    if _ready_descriptor < 0:
        raise RuntimeError("ready() is for a process that was spawned, and only once")
    descriptor, _ready_descriptor = _ready_descriptor, -1
    try:
        os.write(descriptor, b"!")
    except BrokenPipeError:
        pass  # the owner is gone or has given up waiting; the fork server's SIGKILL is under way
    finally:
        os.close(descriptor)


def set_ready_descriptor(descriptor: int) -> None:
    """For the fork server alone: what `ready()` in this new process shall write to."""
    global _ready_descriptor
    _ready_descriptor = descriptor


def _request(entry: str, argument: Any, name: str, namespaced: bool) -> bytes:
    if not name or "\0" in name:
        raise SpawnError(f"not a name for a process: {name!r}")
    module, separator, function = entry.partition(":")
    if not (module and separator and function):
        raise SpawnError(f"{name}: entry {entry!r} is not of the form package.module:function")
    try:
        request = {"entry": entry, "argument": argument, "name": name, "namespace": namespaced}
        encoded = json.dumps(request).encode()
    except (TypeError, ValueError) as error:
        raise SpawnError(f"{name}: the argument is not JSON: {error}") from error
    if len(encoded) > LARGEST_REQUEST_BYTES:
        raise SpawnError(f"{name}: a request of {len(encoded)} bytes, of at most {LARGEST_REQUEST_BYTES}")
    return encoded


def _open_log(name: str, path: Path | None) -> int:
    """The file for stdout and stderr. All who inherit it share its offset: nobody writes over another."""
    if path is not None:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    return os.memfd_create(f"{name[:200]}.stderr")


def _readable(source: int | socket.socket, timeout_s: float | None) -> bool:
    """Whether `source` has something to read, or its end, within `timeout_s` seconds."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    if timeout_s is None:
        return bool(poll.poll())
    end_s = time.monotonic() + timeout_s
    while True:
        left_ms = max(0.0, end_s - time.monotonic()) * 1000
        if poll.poll(left_ms):
            return True
        if time.monotonic() >= end_s:
            return False


def _said(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
