"""Making a fault happen, in the process that it befalls, at the moment when it enters a phase."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from netns.links import Links
from netns.namespace import Namespace
from testbed.faults.kinds import SLOW_BITS_PER_S, Fault, Kind
from testbed.migration.channel import TcpChannel
from testbed.migration.wire import HEADER, Message, encode

MIGRATION_LINK, STORAGE_LINK = "mig0", "stor0"

_SPOILT = frozenset({Kind.MESSAGE_CORRUPTED, Kind.MESSAGE_DUPLICATED, Kind.MESSAGE_TRUNCATED})
_CUT_STORAGE = frozenset({Kind.STORAGE_CUT_SOURCE, Kind.STORAGE_CUT_TARGET, Kind.STORAGE_CUT_BOTH})


class SpoilableChannel(TcpChannel):
    """A TCP channel that can be told to spoil the next message, or to be reset."""

    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        super().__init__(connection, deadline_s)
        self.spoil: Kind | None = None

    def send(self, *messages: Message) -> int:
        kind, self.spoil = self.spoil, None
        if kind is None:
            return super().send(*messages)
        first, rest = encode(messages[0]), b"".join(map(encode, messages[1:]))
        if kind is Kind.MESSAGE_DUPLICATED:
            return self.send_bytes(first + first + rest)
        if kind is Kind.MESSAGE_CORRUPTED:
            return self.send_bytes(first[:-1] + bytes([first[-1] ^ 1]) + rest)
        sent = self.send_bytes(first[: max(len(first) // 2, HEADER.size // 2)])
        self.reset(quietly=True)
        return sent

    def reset(self, *, quietly: bool = False) -> None:
        """End the connection: the peer gets a reset, or `quietly` an ordinary end."""
        if not quietly:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        dead, other = socket.socketpair()
        with dead, other:
            os.dup2(dead.fileno(), self._socket.fileno())


class Tracer(Protocol):
    """The trace that is wrapped."""

    def event(self, event: str, *, t_ns: int | None = None, **fields: Any) -> int: ...
    def phase(self, phase: str) -> AbstractContextManager[None]: ...
    def flush(self) -> bool: ...


class Victim(Protocol):
    """What an injection needs of the side that it befalls."""

    channel: SpoilableChannel
    namespace: Namespace

    def guest_pid(self) -> int | None:
        """The guest's process on this host, if there is one."""
        ...

    def orchestrator_pid(self) -> int | None:
        """Whoever gave the order to migrate, if that is a process of its own."""
        ...

    def lose_announcement(self) -> None:
        """The next round of announcements is not sent."""
        ...

    def speak_early(self) -> None:
        """Announce the guest once, as if it were here."""
        ...

    def fill_lun(self) -> None:
        """Leave no room on the LUN."""
        ...


class FaultyTrace:
    """A trace that makes `fault` happen when its phase begins, once."""

    def __init__(self, trace: Tracer, fault: Fault, victim: Victim) -> None:
        self._trace = trace
        self._fault = fault
        self._victim = victim

    def event(self, event: str, *, t_ns: int | None = None, **fields: Any) -> int:
        return self._trace.event(event, t_ns=t_ns, **fields)

    def flush(self) -> bool:
        return self._trace.flush()

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        with self._trace.phase(phase):
            if phase == self._fault.phase.value:
                self._trace.event("fault", fault=str(self._fault))
                self._trace.flush()
                happen(self._fault.kind, self._victim)
            yield


def happen(kind: Kind, victim: Victim) -> None:
    """Make it happen now. Some kinds do not return: a process dies, or OSError is raised."""
    if kind in _SPOILT:
        victim.channel.spoil = kind
    elif kind in _CUT_STORAGE:
        _with_links(victim.namespace, lambda links: links.set_up(STORAGE_LINK, False))
    else:
        _MAKE[kind](victim)


def mend(namespace: Namespace, *, wire: bool, wire_rate_mbit: float | None, storage: bool) -> None:
    """Undo what :func:`happen` did to a host's links: to the `wire` of the migrations, if it has one, which
    was limited to `wire_rate_mbit`, and to its link to the storage."""

    def undo(links: Links) -> None:
        if wire:
            links.limit_rate(MIGRATION_LINK, wire_rate_mbit)
            links.set_up(MIGRATION_LINK)
        if storage:
            links.set_up(STORAGE_LINK)

    _with_links(namespace, undo)


def _with_links(namespace: Namespace, act: Callable[[Links], None]) -> None:
    with Links(namespace) as links:
        act(links)


def _kill_self(_: Victim) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_guest(victim: Victim) -> None:
    pid = victim.guest_pid()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def _kill_orchestrator(victim: Victim) -> None:
    pid = victim.orchestrator_pid()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def _out_of_memory(_: Victim) -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


_MAKE: dict[Kind, Callable[[Victim], None]] = {
    Kind.SOURCE_AGENT_KILLED: _kill_self,
    Kind.TARGET_AGENT_KILLED: _kill_self,
    Kind.GUEST_KILLED: _kill_guest,
    Kind.GUEST_KILLED: _kill_guest,
    Kind.ORCHESTRATOR_KILLED: _kill_orchestrator,
    Kind.LINK_BLACK_HOLE: lambda victim: _with_links(
        victim.namespace, lambda links: links.set_up(MIGRATION_LINK, False)
    ),
    Kind.LINK_RESET: lambda victim: victim.channel.reset(),
    Kind.LINK_SLOW: lambda victim: _with_links(
        victim.namespace, lambda links: links.limit_rate(MIGRATION_LINK, SLOW_BITS_PER_S / 1e6)
    ),
    Kind.TARGET_OUT_OF_MEMORY: _out_of_memory,
    Kind.LUN_FULL: lambda victim: victim.fill_lun(),
    Kind.ANNOUNCEMENT_LOST: lambda victim: victim.lose_announcement(),
    Kind.TARGET_SPEAKS_EARLY: lambda victim: victim.speak_early(),
}
