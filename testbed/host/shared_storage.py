"""A host's way to the storage that the hosts share: its guest's virtual disk, and the lease of it.

The lease of its disk is the ownership of a guest: whoever holds it may run the guest and write its disk, and
the storage target sees to the second. See :mod:`testbed.migration.ownership` and
:mod:`testbed.storage.service`.
"""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from testbed.migration.errors import LocalError, Undecided
from testbed.migration.ownership import Lease
from testbed.storage.client import NbdClient, NbdLost, NbdRefused
from testbed.storage.volume_client import VolumeClient, VolumeLost, VolumeRefused

ANSWER_DEADLINE_S = 2.0
CONNECT_DEADLINE_S = 10.0
FILLER = "filler-"
SMALLEST_FILLER_BYTES = 1 << 20
PAUSE_S = 0.05
"""Between two questions that the storage did not answer: it has no event for us."""


@dataclass(frozen=True)
class SharedStorage:
    """Where a host's volume service listens: for commands, and for NBD."""

    control: Path
    nbd: Path

    @classmethod
    def from_json(cls, value: dict[str, str] | None) -> Self | None:
        return None if value is None else cls(Path(value["control"]), Path(value["nbd"]))

    def client(self, deadline_s: float = CONNECT_DEADLINE_S) -> VolumeClient:
        """Raises VolumeLost."""
        return VolumeClient.connect(self.control, deadline_s)

    def lease(self, disk: str) -> Lease:
        """Raises VolumeLost, VolumeRefused."""
        with self.client() as client:
            return _lease(client.lease(disk))

    def open_disk(self, disk: str, epoch: int) -> tuple[socket.socket, int]:
        """A connection of the disk, in NBD's transmission phase, and the disk's size in bytes. Writes are
        refused until `epoch` is this host's, and from when it is not any more. LocalError.
        """
        try:
            client = NbdClient.connect(self.nbd, f"{disk}?epoch={epoch}", deadline_s=CONNECT_DEADLINE_S)
        except (NbdLost, NbdRefused) as error:
            raise LocalError(f"disk {disk!r} cannot be opened: {error}") from error
        return client.detach(), client.size


    def fill(self) -> None:
        """Leave no room on the volume: a disk of zeroes takes it. :meth:`make_room` gives it back."""
        with self.client() as client:
            size = 1 << 40
            while size >= SMALLEST_FILLER_BYTES:
                try:
                    client.create(f"{FILLER}{size}", size)
                except VolumeRefused as refused:
                    if refused.kind != "Full":
                        raise
                    size //= 2

    def make_room(self) -> None:
        """Delete what :meth:`fill` has made."""
        with self.client() as client:
            for disk in client.disks():
                if disk.startswith(FILLER):
                    client.delete(disk)


class DiskArbiter:
    """Implements :class:`testbed.migration.arbiter.Arbiter` by the lease of the guest's disk.

    The connection to the volume service is made in advance: a claim lies in the blackout.
    """

    def __init__(self, storage: SharedStorage, disk: str, lease: Lease, host: str) -> None:
        """`lease` is what it was when the migration began, `host` is this one. Raises VolumeLost."""
        self.lease = lease
        self.epoch: int | None = None
        """At which the guest is this host's, once this host has claimed it."""
        self._storage = storage
        self._disk = disk
        self._host = host
        self._client: VolumeClient | None = storage.client(ANSWER_DEADLINE_S)

    def claim(self) -> bool:
        try:
            self.epoch = self._connected().claim(self._disk, self.lease.epoch)
            return True
        except VolumeRefused as refused:
            if refused.kind == "Lost":
                return False
            raise self._undecided(refused) from refused
        except VolumeLost as lost:
            raise self._undecided(lost) from lost

    def look(self) -> Lease:
        try:
            seen = _lease(self._connected().lease(self._disk))
        except (VolumeRefused, VolumeLost) as error:
            raise self._undecided(error) from error
        if seen.epoch == self.lease.epoch:
            select.select([], [], [], PAUSE_S)
        elif seen.holder == self._host:
            self.epoch = seen.epoch
        return seen

    def _connected(self) -> VolumeClient:
        if self._client is None:
            self._client = self._storage.client(ANSWER_DEADLINE_S)
        return self._client

    def _undecided(self, error: Exception) -> Undecided:
        """The next question is asked on a connection of its own, after a little while."""
        self.close()
        select.select([], [], [], PAUSE_S)
        return Undecided(f"the storage does not say whose the guest is: {error}")

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _lease(told: dict[str, Any]) -> Lease:
    return Lease(str(told["holder"]), int(told["epoch"]))
