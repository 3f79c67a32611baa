"""A cluster shared volume: its disks, and where on the LUN their bytes are. Pure but for the device it is
given.

A change is made in two steps. `created`, `grown` and `deleted` decide: from one table they make the next, and
touch nothing. `Volume.write_table` makes it so, in one write that is seen whole or not at all. What has to
happen between the two (the new extents get their lease and a header) is the coordinator's business: see
:mod:`testbed.storage.mounted`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Protocol

from testbed.storage.layout import (
    BLOCK_BYTES,
    EXTENT_BYTES,
    HEADER_BYTES,
    METADATA_BYTES,
    SECTOR_BYTES,
    SLOT_BYTES,
    Disk,
    Superblock,
    Table,
    VolumeError,
    check_header,
    check_name,
    copy_bytes,
    current_table,
    decode_superblock,
    encode_header,
    encode_superblock,
    encode_table,
    extents_for,
    slot_offset,
)

SMALLEST_EXTENT_BYTES = 64 << 10
LARGEST_EXTENT_BYTES = 1 << 30
_LOOKS = 3


class BlockDevice(Protocol):
    """What a volume lies on. `write` has arrived when it returns; with `fua` it is durable as well."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class Volume:
    """An opened volume: the superblock, and how the rest is found. It keeps no table: another host may write
    the next one at any time, so whoever needs it reads it."""

    superblock: Superblock

    def read_table(self, device: BlockDevice) -> Table:
        """The table as it stands now, before or after a change that is being written meanwhile.

        Two changes in a row may be written while the two copies are read, and then both may look torn: so it
        looks again before it calls the volume corrupt.
        """
        for looks_left in range(_LOOKS - 1, -1, -1):
            copies = [_read_copy(device, slot_offset(number)) for number in (0, 1)]
            try:
                return current_table(self.superblock, *copies)
            except VolumeError:
                if not looks_left:
                    raise
        raise AssertionError("the last look returns or raises")

    def write_table(self, device: BlockDevice, table: Table) -> None:
        """Make `table`, the successor of the one that stands, the volume's table. Durable when it returns."""
        device.write(slot_offset(table.sequence), encode_table(self.superblock.volume, table), fua=True)

    def ranges(self, disk: Disk) -> list[tuple[int, int]]:
        """(first byte, length) on the LUN of each run of extents of a disk, header included: what its lease
        covers."""
        extent = self.superblock.extent_bytes
        return [(METADATA_BYTES + start * extent, count * extent) for start, count in disk.extents]

    def room(self, disk: Disk) -> int:
        """How many bytes of content its extents hold."""
        return sum(length for _, length in self.ranges(disk)) - HEADER_BYTES

    def segments(self, disk: Disk, offset: int, length: int) -> list[tuple[int, int]]:
        """(first byte on the LUN, length) of the pieces that make up `length` bytes of a disk's content from
        `offset`. The caller has checked that they lie in the disk."""
        found = []
        skipped = offset + HEADER_BYTES
        for start, size in self.ranges(disk):
            if skipped < size and length > 0:
                part = min(size - skipped, length)
                found.append((start + skipped, part))
                length -= part
                skipped = 0
            else:
                skipped = max(0, skipped - size)
        return found

    def write_header(self, device: BlockDevice, disk: Disk) -> None:
        """Mark the place of a new disk as this disk's."""
        device.write(self.ranges(disk)[0][0], encode_header(self.superblock.volume, disk), fua=True)

    def check_header(self, device: BlockDevice, disk: Disk) -> None:
        """VolumeError "Corrupt" if the disk is not where the table says."""
        check_header(
            self.superblock.volume, disk, device.read(self.ranges(disk)[0][0], HEADER_BYTES)
        )


def _read_copy(device: BlockDevice, offset: int) -> bytes:
    """One copy of the table, whole or not: no more is read than it has."""
    head = device.read(offset, BLOCK_BYTES)
    size = min(copy_bytes(head), SLOT_BYTES)
    return head if size <= BLOCK_BYTES else head + device.read(offset + BLOCK_BYTES, size - BLOCK_BYTES)


def geometry(lun_bytes: int, extent_bytes: int = EXTENT_BYTES, size_bytes: int | None = None) -> Superblock:
    """A new volume on the first `size_bytes` (None: all) of a LUN.

    VolumeError "BadRequest" for an extent size that is no power of two from 64 KiB to 1 GiB, or a size with
    no room for one extent or larger than the LUN.
    """
    if extent_bytes & (extent_bytes - 1) or not SMALLEST_EXTENT_BYTES <= extent_bytes <= LARGEST_EXTENT_BYTES:
        text = f"extents of {extent_bytes} bytes: must be a power of two from 64 KiB to 1 GiB"
        raise VolumeError(text, "BadRequest")
    size = lun_bytes if size_bytes is None else size_bytes
    least = METADATA_BYTES + extent_bytes
    if not least <= size <= lun_bytes:
        text = f"a volume of {size} bytes: must be {least} to {lun_bytes}, which is what the LUN has"
        raise VolumeError(text, "BadRequest")
    return Superblock(uuid.uuid4(), size, extent_bytes)


def format_volume(device: BlockDevice, superblock: Superblock) -> Volume:
    """Make an empty volume; what was on the device is lost. The superblock goes last: until then the device
    holds no volume."""
    made = Volume(superblock)
    device.write(0, bytes(BLOCK_BYTES), fua=True)
    for sequence in (0, 1):
        made.write_table(device, Table(sequence))
    device.write(0, encode_superblock(superblock), fua=True)
    return made


def open_volume(device: BlockDevice) -> Volume:
    """The volume on the device. VolumeError: "NotAVolume", "OtherVersion", "Corrupt"."""
    if device.size < METADATA_BYTES:
        raise VolumeError("the LUN holds no volume: format it first", "NotAVolume")
    return Volume(decode_superblock(device.read(0, BLOCK_BYTES), device.size))


# ---- decisions


def find(table: Table, name: str) -> Disk:
    """The disk of that name. VolumeError "NoSuchDisk", naming those that are there."""
    for disk in table.disks:
        if disk.name == name:
            return disk
    there = ", ".join(sorted(disk.name for disk in table.disks)) or "none"
    raise VolumeError(f"there is no disk {name!r}; there are: {there}", "NoSuchDisk")


def created(
    superblock: Superblock, table: Table, name: str, size_bytes: int, identity: uuid.UUID
) -> tuple[Table, Disk]:
    """The table with one more disk, and that disk. VolumeError: "BadRequest", "Exists", "Full"."""
    check_name(name)
    _check_size(name, size_bytes)
    if any(disk.name == name for disk in table.disks):
        raise VolumeError(f"there is a disk {name!r} already", "Exists")
    extents = _free_extents(superblock, table, extents_for(superblock, size_bytes), name)
    disk = Disk(name, identity, size_bytes, extents)
    return Table(table.sequence + 1, (*table.disks, disk)), disk


def grown(superblock: Superblock, table: Table, name: str, size_bytes: int) -> tuple[Table, Disk]:
    """The table with the disk made larger, and that disk. Its content stays where it is; what is added to it
    lies behind. VolumeError: "NoSuchDisk", "BadRequest" (a disk never shrinks), "Full"."""
    disk = find(table, name)
    _check_size(name, size_bytes)
    if size_bytes < disk.size_bytes:
        text = f"disk {name!r} has {disk.size_bytes} bytes: {size_bytes} would cut some off"
        raise VolumeError(text, "BadRequest")
    more = extents_for(superblock, size_bytes) - sum(count for _, count in disk.extents)
    extents = disk.extents
    if more > 0:
        extents = _joined((*extents, *_free_extents(superblock, table, more, name)))
    larger = replace(disk, size_bytes=size_bytes, extents=extents)
    disks = tuple(larger if one is disk else one for one in table.disks)
    return Table(table.sequence + 1, disks), larger


def deleted(table: Table, name: str) -> tuple[Table, Disk]:
    """The table without the disk, and the disk. VolumeError "NoSuchDisk"."""
    disk = find(table, name)
    return Table(table.sequence + 1, tuple(one for one in table.disks if one is not disk)), disk


def free_runs(superblock: Superblock, table: Table) -> list[tuple[int, int]]:
    """Runs (first extent, count) that belong to no disk, in their order on the LUN."""
    free, end = [], 0
    used = sorted(run for disk in table.disks for run in disk.extents)
    for start, count in (*used, (superblock.extents, 0)):
        if start > end:
            free.append((end, start - end))
        end = start + count
    return free


def free_bytes(superblock: Superblock, table: Table) -> int:
    """How much room no disk has taken."""
    return superblock.extent_bytes * sum(count for _, count in free_runs(superblock, table))


def _check_size(name: str, size_bytes: int) -> None:
    if not isinstance(size_bytes, int) or size_bytes <= 0 or size_bytes % SECTOR_BYTES:
        text = f"disk {name!r}: {size_bytes!r} bytes are not one or more whole sectors of {SECTOR_BYTES}"
        raise VolumeError(text, "BadRequest")


def _free_extents(
    superblock: Superblock, table: Table, wanted: int, name: str
) -> tuple[tuple[int, int], ...]:
    """The first free run that is long enough, so that a disk is in one piece; else the longest ones."""
    free = free_runs(superblock, table)
    have = sum(count for _, count in free)
    if wanted > have:
        extent = superblock.extent_bytes
        text = f"volume full: disk {name!r} needs {wanted * extent} bytes more, {have * extent} are free"
        raise VolumeError(text, "Full")
    for start, count in free:
        if count >= wanted:
            return ((start, wanted),)
    chosen = []
    for start, count in sorted(free, key=lambda run: -run[1]):
        part = min(count, wanted)
        chosen.append((start, part))
        wanted -= part
        if not wanted:
            break
    return tuple(chosen)


def _joined(runs: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """The same extents in the same order, with neighbours made one run."""
    joined = [runs[0]]
    for start, count in runs[1:]:
        last, length = joined[-1]
        if start == last + length:
            joined[-1] = (last, length + count)
        else:
            joined.append((start, count))
    return tuple(joined)
