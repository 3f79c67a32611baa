"""The storage target: LUNs in a folder, served over NBD, and the control service that says who may write."""

from __future__ import annotations

import json
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netns.forkserver import ready
from testbed.storage import lun_json, server, stream
from testbed.storage.control import answer, refusal
from testbed.storage.fencing import Door, Lun
from testbed.storage.files import BackingFile
from testbed.storage.kept import Kept
from testbed.storage.lines import LineBroken, Lines
from testbed.storage.lun import Kind, LunError, LunState
from testbed.storage.nbd import NbdBroken, NoSuchExport
from testbed.storage.turns import TurnOver

DISK_SUFFIX = ".img"
STATE_SUFFIX = ".lun"
MOST_CONNECTIONS = 256
HANDSHAKE_DEADLINE_S = 10.0
END_DEADLINE_S = 5.0
_KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
"""A client that has vanished without a word holds its place for a minute."""


class TargetError(Exception):
    """The target cannot be what it shall be; one line says why."""


@dataclass(frozen=True)
class TargetSpec:
    """Where a target has its files and listens (port 0: any), and which LUNs there shall be, with their
    sizes; one that is there keeps the size it has."""

    folder: Path
    address: str
    nbd_port: int
    lun_port: int
    luns: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, argument: Mapping[str, Any]) -> TargetSpec:
        """From {"folder", "address", "nbd_port", "lun_port", "luns": {name: bytes}}. TargetError."""
        try:
            wanted = dict(argument.get("luns") or {})
            luns = {lun_json.parse_name(name, "LUN"): int(size) for name, size in wanted.items()}
            ports = int(argument["nbd_port"]), int(argument["lun_port"])
            return cls(Path(argument["folder"]), str(argument["address"]), *ports, luns)
        except (KeyError, TypeError, ValueError, LunError) as error:
            raise TargetError(f"not a target: {type(error).__name__}: {error}") from error


def main(argument: dict[str, Any], _fds: Sequence[int]) -> int:
    """Entry for the fork server: be the target that `argument` describes until SIGTERM.

    Says that it is ready once both ports listen. The exit status is 2, with a line on stderr, where it
    cannot be.
    """
    awake, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with Target(TargetSpec.parse(argument)) as target:
            ready()
            target.serve(awake)
    except TargetError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


class Target:
    """A target that listens from when it is made; :meth:`serve` accepts connections, each on a thread of its
    own.

    Raises TargetError if a port is taken or a file is not what it must be; nothing is left open then.
    """

    def __init__(self, spec: TargetSpec) -> None:
        self.luns: dict[str, Lun] = {}
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        if not spec.folder.is_dir():
            raise TargetError(f"there is no folder {spec.folder}")
        with ExitStack() as stack:
            for name, size_bytes in spec.luns.items():
                _create(spec.folder, name, size_bytes)
            for path in sorted(filter(Path.is_file, spec.folder.glob(f"*{DISK_SUFFIX}"))):
                self.luns[path.name.removesuffix(DISK_SUFFIX)] = _open(path, stack)
            self._nbd = stack.enter_context(_listen(spec.address, spec.nbd_port))
            self._control = stack.enter_context(_listen(spec.address, spec.lun_port))
            self._stack = stack.pop_all()

    @property
    def nbd_address(self) -> tuple[str, int]:
        host, port = self._nbd.getsockname()
        return host, port

    @property
    def lun_address(self) -> tuple[str, int]:
        host, port = self._control.getsockname()
        return host, port

    def serve(self, until: socket.socket) -> None:
        """Take connections until there is something to read from `until`."""
        with selectors.DefaultSelector() as selector:
            for listener, serve in ((self._nbd, self._serve_nbd), (self._control, self._serve_control)):
                selector.register(listener, selectors.EVENT_READ, serve)
            selector.register(until, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    self._accept(key.fileobj, key.data)

    def _accept(self, listener: Any, serve: Callable[[socket.socket], None]) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # it broke off before we came to it, or we have no descriptor left
            print(f"a connection could not be accepted: {error}", file=sys.stderr)
            return
        with self._lock:
            if len(self._connections) >= MOST_CONNECTIONS:
                connection.close()
                return
            thread = threading.Thread(target=self._run, args=(connection, serve), daemon=True)
            self._connections[connection] = thread
            thread.start()

    def _run(self, connection: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        try:
            _tune(connection)
            serve(connection)
        except (NbdBroken, LineBroken) as error:
            print(f"a client was cut off: {error}", file=sys.stderr)
        except (stream.StreamLost, OSError):
            pass  # it is gone, and has no one to tell
        finally:
            with self._lock:
                del self._connections[connection]
            connection.close()

    def _serve_nbd(self, connection: socket.socket) -> None:
        with _AskedFor(self, connection) as asked_for:
            door = server.handshake(connection, asked_for, HANDSHAKE_DEADLINE_S)
            if door is not None:
                server.serve(connection, door)

    def _serve_control(self, connection: socket.socket) -> None:
        lines = Lines(connection)
        try:
            while (request := lines.receive()) is not None:
                lines.send(answer(self.luns, request))
        except LineBroken as error:
            lines.send(refusal(LunError(Kind.BAD_REQUEST, str(error))))
            raise

    def names(self) -> list[str]:
        """The exports, for a client that lists them."""
        return sorted(self.luns)

    def find(self, name: str) -> Door:
        """The LUN as the nexus in the export's `name` sees it; of a target with one LUN "" is its name
        too."""
        try:
            wanted, nexus = lun_json.parse_export_name(name)
        except LunError as error:
            raise NoSuchExport(str(error)) from error
        wanted = wanted or (next(iter(self.luns)) if len(self.luns) == 1 else "")
        if wanted not in self.luns:
            raise NoSuchExport(f"there is no LUN {wanted!r}; there are: {', '.join(self.names())}")
        return self.luns[wanted].door(nexus)

    def close(self) -> None:
        """End every connection, let what is under way come to its end, and close the files, synced.

        A request that was under way is done or not done, and not answered.
        """
        self._nbd.close()
        self._control.close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            _cut(connection)
        end_s = time.monotonic() + END_DEADLINE_S
        for thread in connections.values():
            thread.join(max(0.0, end_s - time.monotonic()))
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class _AskedFor:
    """What one client asks for while it negotiates. The LUN that it asked for last is open to it, before the
    answer is: from then on it may send writes."""

    def __init__(self, target: Target, connection: socket.socket) -> None:
        self._target = target
        self._connection = connection
        self._open = ExitStack()

    def names(self) -> list[str]:
        return self._target.names()

    def find(self, name: str) -> Door:
        """NoSuchExport; also for a turn that is over."""
        self._open.close()
        door = self._target.find(name)
        try:
            self._open.enter_context(door.attached(lambda: _cut(self._connection)))
        except TurnOver as error:
            raise NoSuchExport(str(error)) from error
        return door

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._open.close()


def _listen(address: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((address, port), backlog=MOST_CONNECTIONS)
    except OSError as error:
        raise TargetError(f"cannot listen on {address}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _create(folder: Path, name: str, size_bytes: int) -> None:
    """Make the LUN's file unless it is there. TargetError."""
    path = folder / f"{name}{DISK_SUFFIX}"
    try:
        if not path.exists():
            BackingFile.create(path, size_bytes).close()
    except (OSError, ValueError) as error:
        raise TargetError(f"LUN {name!r} of {size_bytes} bytes: cannot make {path}: {error}") from error


def _open(path: Path, stack: ExitStack) -> Lun:
    """The LUN in a file, with its state as it was when the target last ended. TargetError."""
    try:
        disk = BackingFile(path)
    except OSError as error:
        raise TargetError(f"cannot open {path}: {error.strerror}") from error
    stack.callback(disk.close)
    stack.callback(disk.sync)
    beside = path.with_name(path.name.removesuffix(DISK_SUFFIX) + STATE_SUFFIX)
    state = LunState(disk.size_bytes)
    try:
        kept = Kept(beside)
        stack.callback(kept.close)
        if kept.text:
            state = lun_json.from_json(json.loads(kept.text), disk.size_bytes)
    except (OSError, ValueError) as error:
        raise TargetError(f"{beside} does not say who may write: {error}") from error
    return Lun(disk, state, lambda changed: kept.replace(json.dumps(lun_json.as_json(changed))))


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _cut(connection: socket.socket) -> None:
    """End a connection whose thread may wait for it: that wakes it up."""
    with suppress(OSError):  # it is gone already
        connection.shutdown(socket.SHUT_RDWR)
