"""A volume that a host has mounted: its disks, their owners, and the coordinator's changes to them.

Both hosts may have a volume mounted at once. Each reads the table of disks from the LUN whenever it needs it.
One of them, the coordinator, changes it: it holds the lease "metadata", which covers the table, so a
coordinator that has been deposed and does not know it yet cannot write a word of it.

The order of a change keeps this true at every moment, wherever the coordinator dies: *each disk of the table
is covered by its lease, and what is under no lease belongs to no disk.*

    create    zero the extents, lease, header, table       grow    zero what is added, lease, table
    delete    table, lease, give the extents back

What a coordinator left half done is a lease too many, or one that covers too much; its successor finds and
mends that before it changes anything (:meth:`MountedVolume.take_coordination`).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from testbed.storage.client import NbdRefused
from testbed.storage.layout import EXTENT_BYTES, METADATA_BYTES, METADATA_LEASE, Disk, Table, VolumeError
from testbed.storage.lun_client import LunRefused
from testbed.storage.nexus import Nexus
from testbed.storage.paths import Paths
from testbed.storage.rights import Rights
from testbed.storage.volume import Volume, created, deleted, find, format_volume, geometry, grown, open_volume

CONTROL_DEADLINE_S = 5.0
"""How long a command waits for a way to the storage before it says that there is none."""

EXCLUSIVE = "exclusive"
SHARED = "shared"


class Deposed(Exception):
    """This host is not the coordinator, or no longer."""


class Owned(Exception):
    """A disk is another host's. `holder` is that host's key."""

    def __init__(self, disk: str, holder: str, epoch: int) -> None:
        super().__init__(f"disk {disk!r} is {holder}'s, at epoch {epoch}")
        self.holder = holder


class MountedVolume:
    """See the module. For any thread. Methods raise Offline, LunRefused, NbdRefused and VolumeError besides
    what they say."""

    def __init__(self, paths: Paths, rights: Rights, mode: str, preempt: bool = False) -> None:
        """Mount. LunRefused "Conflict" if another host has it exclusively, or anybody has it and this one
        wants it exclusively; with `preempt` every other host loses its rights first, for one that has died
        with them. VolumeError if it is no volume. After a failure this host has no rights to the LUN."""
        self.mode = mode
        self.rights = rights
        self._paths = paths
        self._reading = threading.Lock()
        self._changing = threading.RLock()
        self._device = Nexus(paths, f"{rights.lun}?key={rights.key}", CONTROL_DEADLINE_S)
        self._metadata: Nexus | None = None
        with ExitStack() as undo:
            rights.register()
            undo.callback(rights.unregister)
            for other in rights.status()["registrations"] if preempt else ():
                if other != rights.key:
                    rights.preempt(other)
            rights.reserve(mode)
            undo.callback(self._device.close)
            self.volume: Volume = open_volume(self._device)
            if self.mode == EXCLUSIVE or self.coordinator() in (None, rights.key):
                with suppress(Deposed):  # then there is one: the host that mounts at the same moment
                    self.take_coordination()
            undo.pop_all()

    def dismount(self) -> None:
        """Give up the rights to the LUN. Leases stay whose they are, until another host claims them."""
        self.rights.unregister()
        with self._changing, self._reading:
            self._resign()
            self._device.close()

    # ---- what is there

    def table(self) -> Table:
        with self._reading:
            return self.volume.read_table(self._device)

    def coordinator(self) -> str | None:
        """The key of the host that changes the table; None if it has gone."""
        status = self.rights.status()
        lease = status["leases"].get(METADATA_LEASE)
        return lease["holder"] if lease is not None and lease["holder"] in status["registrations"] else None

    def lease(self, name: str) -> dict[str, Any]:
        """{"holder": key, "epoch"} of a disk. VolumeError "NoSuchDisk"."""
        lease = self.rights.status()["leases"].get(name)
        if lease is None or name == METADATA_LEASE:
            find(self.table(), name)  # raises: each disk has a lease
            raise VolumeError(f"disk {name!r} has no lease: its coordinator mends that", "Corrupt")
        return {"holder": lease["holder"], "epoch": lease["epoch"]}

    def disk(self, name: str) -> Disk:
        """The disk of that name, found in its place. VolumeError "NoSuchDisk", "Corrupt"."""
        with self._reading:
            disk = find(self.volume.read_table(self._device), name)
            self.volume.check_header(self._device, disk)
            return disk

    def connection(self, name: str, epoch: int) -> Nexus:
        """A connection on which the disk may be written while its lease is this host's and has this epoch."""
        return _bound(self._paths, self.rights, name, epoch)

    # ---- the coordinator's

    def take_coordination(self) -> None:
        """Become the coordinator, whoever was, and mend what it left half done. Deposed if another host does
        the same at this moment, and has the last word."""
        with self._changing:
            self._resign()
            epoch = self._lead(self.rights.status()["leases"].get(METADATA_LEASE))
            self._metadata = self.connection(METADATA_LEASE, epoch)
            with self._coordinating() as device:
                self._mend(self.volume.read_table(device), self.rights.status()["leases"])

    def _lead(self, lease: dict[str, Any] | None) -> int:
        """Make the coordinator's lease, or take it over as it is; its epoch. Deposed."""
        try:
            if lease is None:
                return self.rights.guard(METADATA_LEASE, [(0, METADATA_BYTES)])
            return self.rights.claim(METADATA_LEASE, lease["epoch"])
        except LunRefused as refused:
            if refused.kind not in ("Lost", "Conflict"):
                raise
            raise Deposed(f"another host has become the coordinator: {refused}") from refused

    def create(self, name: str, size_bytes: int, identity: uuid.UUID) -> int:
        """Make a disk, all zeroes, whose lease is this host's; its epoch. If that very disk is there already,
        the answer to an earlier try was lost. Deposed; VolumeError "Exists", "Full", "BadRequest"."""
        with self._coordinating() as device, ExitStack() as undo:
            old = self.volume.read_table(device)
            if any((one.name, one.identity) == (name, identity) for one in old.disks):
                return int(self.lease(name)["epoch"])
            table, disk = created(self.volume.superblock, old, name, size_bytes, identity)
            ranges = self.volume.ranges(disk)
            for start, length in ranges:
                device.write_zeroes(start, length)
            epoch = self.rights.guard(name, ranges)
            undo.callback(self.rights.unguard, name)
            own = self.connection(name, epoch)
            undo.callback(own.close)
            self.volume.write_header(own, disk)
            own.close()
            self.volume.write_table(device, table)
            undo.pop_all()
            return epoch

    def grow(self, name: str, size_bytes: int) -> None:
        """Make a disk larger; what is added reads as zeroes. Who has it open sees that when it opens it
        again. Deposed; VolumeError "NoSuchDisk", "Full", "BadRequest"."""
        with self._coordinating() as device:
            old = self.volume.read_table(device)
            before = self.volume.room(find(old, name))
            table, disk = grown(self.volume.superblock, old, name, size_bytes)
            for start, length in self.volume.segments(disk, before, self.volume.room(disk) - before):
                device.write_zeroes(start, length)
            self.rights.guard(name, self.volume.ranges(disk))
            self.volume.write_table(device, table)

    def delete(self, name: str, asked_by: str) -> None:
        """Remove a disk, for the host whose key is `asked_by`. Deposed; VolumeError "NoSuchDisk"; Owned if
        another host that is there has it."""
        with self._coordinating() as device:
            table, disk = deleted(self.volume.read_table(device), name)
            status = self.rights.status()
            lease = status["leases"].get(name)
            if lease is not None and lease["holder"] in set(status["registrations"]) - {asked_by}:
                raise Owned(name, lease["holder"], lease["epoch"])
            self.volume.write_table(device, table)
            with suppress(LunRefused, NbdRefused):  # deposed meanwhile: the successor mends what is left
                self.rights.unguard(name)
                for start, length in self.volume.ranges(disk):
                    device.trim(start, length)

    @contextmanager
    def _coordinating(self) -> Iterator[Nexus]:
        """The block may change the table through the connection that it gets. Deposed if it may not, or finds
        out on the way: the target has refused it then, and the table is as another coordinator wants it."""
        with self._changing:
            if self._metadata is None:
                raise Deposed("this host is not the coordinator")
            try:
                yield self._metadata
            except (NbdRefused, LunRefused) as refused:
                if isinstance(refused, NbdRefused) and refused.name != "EPERM":
                    raise
                if isinstance(refused, LunRefused) and refused.kind != "Conflict":
                    raise
                self._resign()
                raise Deposed(f"this host is the coordinator no longer: {refused}") from refused

    def _mend(self, table: Table, leases: dict[str, Any]) -> None:
        """Make the leases what the table says: one for each disk, which covers it, and no other."""
        disks = {disk.name: disk for disk in table.disks}
        for name in leases.keys() - disks.keys() - {METADATA_LEASE}:
            self.rights.unguard(name)
        for name, disk in disks.items():
            ranges = sorted(self.volume.ranges(disk))
            covered = [tuple(one) for one in leases[name]["ranges"]] if name in leases else []
            if covered != ranges:
                self.rights.guard(name, ranges)

    def _resign(self) -> None:
        metadata, self._metadata = self._metadata, None
        if metadata is not None:
            metadata.close()


def format_lun(
    paths: Paths, rights: Rights, size_bytes: int | None = None, extent_bytes: int = EXTENT_BYTES
) -> int:
    """Make an empty volume of a LUN, or of its first `size_bytes`; what it has room for, in bytes.

    It takes the LUN for itself meanwhile: LunRefused "Conflict" while a host has it mounted, and then nothing
    has changed. VolumeError "BadRequest" for sizes that do not fit.
    """
    with ExitStack() as undo:
        rights.register()
        undo.callback(rights.unregister)
        rights.reserve(EXCLUSIVE)
        status = rights.status()
        superblock = geometry(status["bytes"], extent_bytes, size_bytes)
        leases = status["leases"]
        if METADATA_LEASE in leases:
            epoch = rights.claim(METADATA_LEASE, leases[METADATA_LEASE]["epoch"])
        else:
            epoch = rights.guard(METADATA_LEASE, [(0, METADATA_BYTES)])
        for name in leases.keys() - {METADATA_LEASE}:
            rights.unguard(name)
        device = _bound(paths, rights, METADATA_LEASE, epoch)
        undo.callback(device.close)
        format_volume(device, superblock)
        return superblock.extents * superblock.extent_bytes


def _bound(paths: Paths, rights: Rights, lease: str, epoch: int) -> Nexus:
    export = f"{rights.lun}?key={rights.key}&lease={lease}&epoch={epoch}"
    return Nexus(paths, export, CONTROL_DEADLINE_S)
