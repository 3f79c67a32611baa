"""What outlives an agent: its guest's descriptors and a few words, kept by whoever supervises the host.

An agent that dies must not take its guest along: the guest runs on, and the agent that is started in its
place finds it again. So, in the manner of systemd's file descriptor store, the agent hands duplicates of what
holds the guest to its supervisor, which gives them to the next agent::

    supervisor  a journal and a store (memfds of a page and of as much as is needed), made once a host
    agent    -> supervisor   {"keep": {...}} + [RAM, flag, control, connection, pidfd, stderr, (userfaultfd)]
    agent    -> supervisor   {"drop": true}                the guest is gone, or is another host's
    supervisor -> next agent the last {"keep"} that was not dropped, as an argument and descriptors

What changes during a migration is not sent (that would cost blackout) but written into the journal, which
both map: where the guest stands (:class:`Stage`) and the epoch of its lease. The connections that came to a
target lie in the store until they live, for without them the sockets could not be completed.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

_ENTRY = struct.Struct("<BxxxxxxxQ")
_MOST_BYTES = 128 << 10
_FIXED = 6


class Stage(IntEnum):
    """Where a host's guest stands, as far as the next agent must know."""

    NONE = 0  # there is no guest here
    HOSTED = 1  # it is this host's
    EXPOSED = 2  # its state has left for another host, which may claim it
    YIELDED = 3  # without a lease: the commit has left; the guest may run there
    ARRIVING = 4  # another host's, being copied
    ARRIVED = 5  # this host's, by claim or commit, and not yet let live


class Journal:
    """One page that the supervisor and the agent map: a :class:`Stage` and an epoch."""

    def __init__(self, fd: int) -> None:
        """`fd` is a memfd of one page; it stays the caller's."""
        self._page = mmap.mmap(fd, mmap.PAGESIZE)

    @classmethod
    def new(cls) -> int:
        """The descriptor of a new journal's page."""
        fd = os.memfd_create("journal")
        os.ftruncate(fd, mmap.PAGESIZE)
        return fd

    @property
    def stage(self) -> Stage:
        return Stage(_ENTRY.unpack_from(self._page)[0])

    @property
    def epoch(self) -> int:
        """The epoch at which the guest is, or would be, this host's; 0 without a lease."""
        return int(_ENTRY.unpack_from(self._page)[1])

    def write(self, stage: Stage, epoch: int | None = None) -> None:
        """Half a microsecond: may be done in the blackout. (Not by pack_into, which sets to zero first what
        it writes: an agent that died in between would have forgotten its guest.)"""
        self._page[: _ENTRY.size] = _ENTRY.pack(stage, self.epoch if epoch is None else epoch)


@dataclass(frozen=True)
class Kept:
    """A guest whose agent has died: its description (JSON), where its process has mapped RAM, and its
    descriptors."""

    description: dict[str, Any]
    pid: int
    address: int
    refusal: str
    fds: tuple[int, ...]

    @property
    def ram(self) -> int:
        return self.fds[0]

    @property
    def flag(self) -> int:
        return self.fds[1]

    @property
    def control(self) -> int:
        return self.fds[2]

    @property
    def process(self) -> tuple[int, ...]:
        """What :meth:`netns.forkserver.Process.adopt` wants."""
        return self.fds[3:_FIXED]

    @property
    def userfaultfd(self) -> int | None:
        return self.fds[_FIXED] if len(self.fds) > _FIXED else None


class Keeper:
    """The agent's line to its supervisor. With no line (None) nothing is kept, and an agent's death is its
    guest's."""

    def __init__(self, line: socket.socket | None, journal: int, store: int) -> None:
        self._line = line
        self.journal = Journal(journal)
        self._store = store

    def keep(self, kept: Kept) -> None:
        """Hand over duplicates of the guest's descriptors: about 20 us. OSError where the supervisor is
        gone."""
        if self._line is None:
            return
        told = {name: value for name, value in asdict(kept).items() if name != "fds"}
        socket.send_fds(self._line, [json.dumps({"keep": told}).encode()], list(kept.fds))

    def settle(self, epoch: int) -> None:
        """The guest is this host's, at `epoch`, and its sockets live. What was kept of those that came with
        it is old from here on: to complete one by it again would send its bytes a second time.
        """
        os.ftruncate(self._store, 0)
        self.journal.write(Stage.HOSTED, epoch)

    def drop(self) -> None:
        """There is no guest here any more."""
        self.journal.write(Stage.NONE, 0)
        os.ftruncate(self._store, 0)
        if self._line is not None:
            self._line.send(b'{"drop":true}')

    def put_connections(self, data: bytes) -> None:
        """Keep the state of connections (as testbed.host.devices encodes them) behind what is kept
        already."""
        os.pwrite(self._store, data, os.fstat(self._store).st_size)

    def connections(self) -> bytes:
        """All that was put since the guest began to come; nothing once it has settled."""
        return os.pread(self._store, os.fstat(self._store).st_size, 0)


class Storeroom:
    """The supervisor's side: the journal, the store, and what the agent gave to be kept. Close it at the
    end."""

    def __init__(self) -> None:
        self.line, self.agents_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.setblocking(False)
        self.journal = Journal.new()
        self.store = os.memfd_create("connections")
        self._told: dict[str, Any] | None = None
        self._fds: list[int] = []

    def fileno(self) -> int:
        return self.line.fileno()

    def take(self) -> None:
        """Take in what the agent has sent, without waiting."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.line, _MOST_BYTES, 16)
            except BlockingIOError:
                return
            if not data:
                return
            self._forget()
            message = json.loads(data)
            if "keep" in message:
                self._told, self._fds = message["keep"], list(fds)

    def kept(self) -> tuple[dict[str, Any] | None, Sequence[int]]:
        """What the next agent is to be given: the words, and the descriptors, which stay here too."""
        self.take()
        return self._told, self._fds

    def _forget(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._told, self._fds = None, []

    def close(self) -> None:
        """Let go of everything; what only this kept alive ends."""
        self._forget()
        for end in (self.line, self.agents_end):
            end.close()
        os.close(self.journal)
        os.close(self.store)
