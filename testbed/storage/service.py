"""The volume service of a host: the process between its agent and guests and the storage target.

It serves two Unix sockets. On `control` agents (and, through the relay, the peer's service) tell it what to
do, one JSON object a line, any number of connections, one answer a request: {"ok": {...}}, or {"error": one
line, "kind", "detail"}::

    format       bytes?, extent_bytes?   {"bytes"}    make an empty volume; it must be mounted nowhere
    mount        mode, preempt?          as state     "shared" (with the peer) or "exclusive"
    dismount                             {}           no disk may be open here
    create       disk, bytes             {"epoch"}    a disk of zeroes; its lease is this host's
    grow         disk, bytes             {}           who has it open sees that at the next opening
    delete       disk                    {}           not while another host owns it, or it is open here
    disks                                {name: {"bytes", "holder", "epoch"}}
    lease        disk                    {"holder", "epoch"}
    claim        disk, expect            {"epoch"}    the commit of a migration; may be repeated
    prepare      disk, epoch             {"bytes"}    connections for an epoch that may be still to come
    coordinate                           {}           become the coordinator
    maintenance  on                      {}           I/O of this host's guests waits while it is on
    state                                {"volume", "path", "mode", "coordinator", "open"}

    kinds: NotMounted, NoSuchDisk, Exists, Full, Busy, Lost, Conflict, NotRegistered, Fenced, Offline,
           NotCoordinator, NotAVolume, OtherVersion, Corrupt, NoSuchLun, BadRequest, Failed

On `nbd` it serves the disks, over NBD, as DISK?epoch=N: for reading, and for writing while this host owns the
disk at that epoch (EPERM otherwise: fenced), which may begin to be so after it has been opened. DISK alone is
the epoch at which this host owns it now.

It also relays the peer's storage traffic (:mod:`testbed.storage.relay`).
"""

from __future__ import annotations

import logging
import select
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netns.forkserver import ready
from testbed.measure.trace import Trace
from testbed.storage import relay, server
from testbed.storage.commands import Commands
from testbed.storage.lines import LineBroken, Lines
from testbed.storage.mounted import CONTROL_DEADLINE_S
from testbed.storage.nbd import NbdBroken, NbdRefused
from testbed.storage.open_disks import OpenDisk
from testbed.storage.paths import Offline, Paths, Route
from testbed.storage.relay import RelayPorts
from testbed.storage.rights import Rights
from testbed.storage.stream import StreamLost

HANDSHAKE_DEADLINE_S = 10.0
MOST_CONNECTIONS = 256


class ServiceError(Exception):
    """The service cannot be what it shall be; one line says why."""


@dataclass(frozen=True)
class ServiceSpec:
    """Which host this is and where everything is. `hosts` says which host has which key, for what people
    read."""

    host: str
    key: str
    lun: str
    direct: Route
    control: Path
    nbd: Path
    peer: RelayPorts | None = None
    relay: RelayPorts | None = None
    hosts: Mapping[str, str] = field(default_factory=dict)
    recorder: Path | None = None

    @classmethod
    def parse(cls, argument: Mapping[str, Any]) -> ServiceSpec:
        """From {"host", "key", "lun", "target": [address, nbd_port, lun_port], "control": path, "nbd": path,
        "peer_relay": [address, port]?, "relay_listen": [address, port]?, "hosts": {host: key}?, "recorder":
        path?}. ServiceError."""
        try:
            address, nbd_port, lun_port = argument["target"]
            return cls(
                host=str(argument["host"]),
                key=str(argument["key"]),
                lun=str(argument["lun"]),
                direct=Route("direct", str(address), int(nbd_port), int(lun_port)),
                control=Path(argument["control"]),
                nbd=Path(argument["nbd"]),
                peer=_ports(argument.get("peer_relay")),
                relay=_ports(argument.get("relay_listen")),
                hosts={str(key): str(host) for host, key in dict(argument.get("hosts") or {}).items()},
                recorder=Path(argument["recorder"]) if argument.get("recorder") else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ServiceError(f"not a volume service: {type(error).__name__}: {error}") from error

    @property
    def routes(self) -> tuple[Route, ...]:
        """The ways to the target, the preferred one first."""
        if self.peer is None:
            return (self.direct,)
        return self.direct, Route("redirected", self.peer.host, self.peer.nbd, self.peer.lun)


def _ports(value: Any) -> RelayPorts | None:
    if value is None:
        return None
    host, port = value
    return RelayPorts(str(host), int(port))


def main(argument: dict[str, Any], _fds: Sequence[int]) -> int:
    """Entry for the fork server: be the volume service that `argument` describes until it is killed.

    Says that it is ready once everything listens, whether the target can be reached or not. The exit status
    is 2, with a line on stderr, where it cannot be. A service that is killed leaves nothing undone: what it
    has answered, the target has done.
    """
    try:
        service = Service(ServiceSpec.parse(argument))
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 2
    ready()
    service.serve()
    return 0


class Service:
    """A service that listens from when it is made. Raises ServiceError if a socket or port cannot be had."""

    def __init__(self, spec: ServiceSpec) -> None:
        self._trace = Trace(f"{spec.host}-volume", spec.recorder)
        self._paths = Paths(spec.routes, self._path_changed)
        rights = Rights(self._paths, spec.lun, spec.key, CONTROL_DEADLINE_S)
        peer = (spec.peer.host, spec.peer.service) if spec.peer is not None else None
        self._commands = Commands(self._paths, rights, spec.hosts, peer)
        self._connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            self._listeners = {
                _listen(spec.control): self._serve_control,
                _listen(spec.nbd): self._serve_nbd,
            }
            if spec.relay is not None:
                relay.listen(spec.relay, spec.direct.nbd, spec.direct.lun, spec.control)
        except OSError as error:
            raise ServiceError(f"{spec.host}: cannot listen: {error}") from error
        self._paths.start()

    def serve(self) -> None:
        """Take connections, each on a thread of its own, for ever."""
        with selectors.DefaultSelector() as selector:
            for listener, serve in self._listeners.items():
                selector.register(listener, selectors.EVENT_READ, serve)
            while True:
                for key, _ in selector.select():
                    self._accept(key.fileobj, key.data)

    def _accept(self, listener: Any, serve: Callable[[socket.socket], None]) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # it broke off before we came to it, or we have no descriptor left
            logging.warning("a connection could not be accepted: %s", error)
            return
        if not self._connections.acquire(blocking=False):
            connection.close()
            return
        threading.Thread(target=self._run, args=(connection, serve), daemon=True).start()

    def _run(self, connection: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        try:
            with connection:
                serve(connection)
        except (NbdBroken, LineBroken, NbdRefused) as error:
            logging.warning("a client was cut off: %s", error)
        except (StreamLost, Offline):
            pass  # it is gone, and has no one to tell
        finally:
            self._connections.release()

    def _serve_control(self, connection: socket.socket) -> None:
        lines = Lines(connection)
        while (request := lines.receive()) is not None:
            lines.send(self._commands.answer(request))

    def _serve_nbd(self, connection: socket.socket) -> None:
        asked_for = _AskedFor(self._commands)
        try:
            disk = server.handshake(connection, asked_for, HANDSHAKE_DEADLINE_S)
            if disk is not None:
                disk.wait_until(lambda: _hung_up(connection))
                disk.nexus.open()
                server.serve(connection, disk)
        finally:
            asked_for.close()

    def _path_changed(self, state: str) -> None:
        self._trace.event("volume-state", volume=state)
        try:
            self._trace.flush()
        except OSError as error:  # nobody records any more; the volume goes on
            logging.warning("the event cannot be recorded: %s", error)


class _AskedFor:
    """The disks that one client asks for while it negotiates. It may ask about one and then go on with it."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._found: dict[str, OpenDisk] = {}

    def names(self) -> list[str]:
        return self._commands.names()

    def find(self, name: str) -> OpenDisk:
        """NoSuchExport."""
        if name not in self._found:
            self._found[name] = self._commands.open(name)
        return self._found[name]

    def close(self) -> None:
        for disk in self._found.values():
            disk.close()


def _listen(path: Path) -> socket.socket:
    """A Unix socket at `path`, in the place of one that a service before has left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(MOST_CONNECTIONS)
    return listener


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))
