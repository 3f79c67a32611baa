"""A host's way to the storage that the hosts share: its guest's virtual disk, and the lease of it.

The lease of its disk is the ownership of a guest: whoever holds it may run the guest and write its disk, and
the storage target sees to the second. See :mod:`testbed.migration.ownership` and
:mod:`testbed.storage.service`.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from testbed.migration.errors import LocalError, Undecided
from testbed.migration.ownership import Lease
from testbed.storage.client import NbdClient, NbdLost, NbdRefused
from testbed.storage.lun_client import LunClient, LunLost, LunRefused
from testbed.storage.volume_client import VolumeClient, VolumeLost, VolumeRefused

ANSWER_DEADLINE_S = 2.0
CONNECT_DEADLINE_S = 10.0
BUSY_PAUSE_S = 0.005
FILLER = "filler-"
SMALLEST_FILLER_BYTES = 1 << 20
PAUSE_S = 0.05
"""Between two questions that the storage did not answer: it has no event for us."""


@dataclass(frozen=True)
class LunAccess:
    """Where the storage target's LUN service listens, the LUN, this host's key, and whose the keys are."""

    address: str
    port: int
    name: str
    key: str
    hosts: Mapping[str, str]


@dataclass(frozen=True)
class SharedStorage:
    """Where a host's volume service listens, for commands and for NBD, and the LUN below the volume.

    `moves`: the LUN is one host's at a time, as in a Quick Migration; else both have it mounted.
    """

    control: Path
    nbd: Path
    lun: LunAccess
    moves: bool = False

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> Self | None:
        """From {"control", "nbd", "lun": {...}, "moves"}; None stays None."""
        if value is None:
            return None
        return cls(Path(value["control"]), Path(value["nbd"]), LunAccess(**value["lun"]), value["moves"])

    def leases(self) -> Leases:
        """A new connection for leases. Raises Unanswered."""
        return LunLeases(self) if self.moves else VolumeLeases(self)

    def client(self, deadline_s: float = CONNECT_DEADLINE_S) -> VolumeClient:
        """Raises VolumeLost."""
        return VolumeClient.connect(self.control, deadline_s)

    def take(self) -> None:
        """Mount a LUN that moves, whoever has it: its guest is this host's. LocalError."""
        try:
            with self.client() as client:
                client.mount("exclusive", preempt=True)
        except (VolumeLost, VolumeRefused) as error:
            raise LocalError(f"the LUN cannot be mounted: {error}") from error

    def let_go(self) -> None:
        """Dismount a LUN that moves, if it is mounted here. LocalError.

        The service may not have noticed yet that the guest's disk was closed: asked again while it is busy.
        """
        end = time.monotonic() + CONNECT_DEADLINE_S
        try:
            with self.client() as client:
                while client.state()["mode"] is not None:
                    try:
                        client.dismount()
                    except VolumeRefused as refused:
                        if refused.kind != "Busy" or time.monotonic() > end:
                            raise
                        select.select([], [], [], BUSY_PAUSE_S)
        except (VolumeLost, VolumeRefused) as error:
            raise LocalError(f"the LUN cannot be dismounted: {error}") from error

    def own(self, disk: str, host: str) -> int:
        """Make the lease of `disk` `host`'s, whosever it was; its epoch. Raises VolumeLost, VolumeRefused."""
        with self.client() as client:
            lease = client.lease(disk)
            return lease["epoch"] if lease["holder"] == host else client.claim(disk, lease["epoch"])

    def arbiter(self, disk: str, lease: Lease, host: str) -> DiskArbiter:
        """Whom `host` asks whose the guest with `disk` is. LocalError."""
        return DiskArbiter(self.leases, disk, lease, host)

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
        """Leave no room on the volume: disks of nothing take it, whose names begin with :data:`FILLER`."""
        with self.client() as client:
            size, number = 1 << 40, 0
            while size >= SMALLEST_FILLER_BYTES:
                try:
                    client.create(f"{FILLER}{number}", size)
                    number += 1
                except VolumeRefused as refused:
                    if refused.kind != "Full":
                        raise
                    size //= 2


class Unanswered(Exception):
    """The storage gave no answer; what was asked may yet be carried out."""


class Leases(Protocol):
    """One way to ask for leases, on a connection that is made when it is. Methods raise Unanswered."""

    def claim(self, disk: str, expect: int) -> int | None:
        """The new epoch; None where the epoch is not `expect` any more."""
        ...

    def look(self, disk: str) -> Lease: ...
    def close(self) -> None: ...


class VolumeLeases:
    """By the host's volume service, which knows a way round a cut link."""

    def __init__(self, storage: SharedStorage) -> None:
        try:
            self._client = storage.client(ANSWER_DEADLINE_S)
        except VolumeLost as lost:
            raise Unanswered(str(lost)) from lost

    def claim(self, disk: str, expect: int) -> int | None:
        try:
            return self._client.claim(disk, expect)
        except VolumeRefused as refused:
            if refused.kind == "Lost":
                return None
            raise Unanswered(str(refused)) from refused
        except VolumeLost as lost:
            raise Unanswered(str(lost)) from lost

    def look(self, disk: str) -> Lease:
        try:
            told = self._client.lease(disk)
        except (VolumeRefused, VolumeLost) as error:
            raise Unanswered(str(error)) from error
        return Lease(str(told["holder"]), int(told["epoch"]))

    def close(self) -> None:
        self._client.close()


class LunLeases:
    """By the target itself, as a registrant of the LUN that need not have it mounted: in a Quick Migration
    the LUN is the other host's just when it matters.
    """

    def __init__(self, storage: SharedStorage) -> None:
        self._lun = storage.lun
        address = (self._lun.address, self._lun.port)
        try:
            self._client = LunClient.connect(address, deadline_s=ANSWER_DEADLINE_S)
        except LunLost as lost:
            raise Unanswered(str(lost)) from lost

    def claim(self, disk: str, expect: int) -> int | None:
        lun, key = self._lun.name, self._lun.key
        try:
            self._client.register(lun, key)
            return self._client.claim(lun, key, disk, expect)
        except LunRefused as refused:
            if refused.kind == "Lost":
                return None
            raise Unanswered(str(refused)) from refused
        except LunLost as lost:
            raise Unanswered(str(lost)) from lost

    def look(self, disk: str) -> Lease:
        try:
            told = self._client.status(self._lun.name)["leases"][disk]
        except (LunRefused, LunLost, KeyError) as error:
            raise Unanswered(str(error)) from error
        return Lease(self._lun.hosts.get(told["holder"], told["holder"]), int(told["epoch"]))

    def close(self) -> None:
        self._client.close()


class DiskArbiter:
    """Implements :class:`testbed.migration.arbiter.Arbiter` by the lease of the guest's disk.

    A claim lies in the blackout, so :meth:`connect` in advance. Who has time need not.
    """

    def __init__(self, leases: Callable[[], Leases], disk: str, lease: Lease, host: str) -> None:
        """`lease` is what it was when the migration began, `host` is this one. Nobody is asked yet."""
        self.lease = lease
        self.epoch: int | None = None
        """At which the guest is this host's, once this host has claimed it."""
        self._leases_anew = leases
        self._disk = disk
        self._host = host
        self._leases: Leases | None = None

    def connect(self) -> None:
        """LocalError where the storage cannot be reached."""
        try:
            self._connected()
        except Unanswered as error:
            raise LocalError(f"the storage that says whose the guest is: {error}") from error

    def claim(self) -> bool:
        try:
            epoch = self._connected().claim(self._disk, self.lease.epoch)
        except Unanswered as error:
            raise self._undecided(error) from error
        self.epoch = self.epoch if epoch is None else epoch
        return epoch is not None

    def look(self) -> Lease:
        try:
            seen = self._connected().look(self._disk)
        except Unanswered as error:
            raise self._undecided(error) from error
        if seen.epoch == self.lease.epoch:
            select.select([], [], [], PAUSE_S)
        elif seen.holder == self._host:
            self.epoch = seen.epoch
        return seen

    def _connected(self) -> Leases:
        if self._leases is None:
            self._leases = self._leases_anew()
        return self._leases

    def _undecided(self, error: Exception) -> Undecided:
        """The next question is asked on a connection of its own, after a little while."""
        self.close()
        select.select([], [], [], PAUSE_S)
        return Undecided(f"the storage does not say whose the guest is: {error}")

    def close(self) -> None:
        if self._leases is not None:
            self._leases.close()
            self._leases = None
