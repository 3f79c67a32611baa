"""The bytes of a cluster shared volume: what stands where on the LUN, to bytes and back. Pure.

::

    0            superblock: which volume this is, how large, how large its extents      4 KiB
    4 KiB        table, one copy: sequence number and the disks                        510 KiB
    514 KiB      table, the other copy                                                 510 KiB
    1 MiB        extent 0
    1 MiB + e    extent 1 ...                                     as many as the LUN has room for

    a disk:      its first extent begins with a header of 4 KiB; its content follows, through all its extents

Each block carries a digest over the whole of itself, and each but the superblock the volume's identity, so
that neither a torn block nor one of a volume that was here before is taken for one of this volume. The two
copies of the table are written in turn, by their sequence number: while one is being written the other still
stands, so a reader sees the table before the change or the table after it, wherever the write was torn.

All integers are little-endian; a table's disks are JSON, which its digest covers.
"""

from __future__ import annotations

import json
import re
import struct
import uuid
from dataclasses import dataclass
from typing import Any

import xxhash

SECTOR_BYTES = 512
BLOCK_BYTES = 4096
METADATA_BYTES = 1 << 20
SLOT_BYTES = (METADATA_BYTES - BLOCK_BYTES) // 2
HEADER_BYTES = BLOCK_BYTES
EXTENT_BYTES = 1 << 20
VERSION = 1
METADATA_LEASE = "metadata"
"""The lease whose holder is the coordinator; no disk can have this name."""

_SUPERBLOCK = struct.Struct("<8sI16sQQ16s")  # magic, version, volume, LUN's bytes, an extent's bytes, digest
_SLOT = struct.Struct("<8s16sQQ16s")  # magic, volume, sequence number, bytes of JSON, digest
_HEADER = struct.Struct("<8s16s16sQ16s")  # magic, volume, disk, bytes at its creation, digest
_DIGEST_BYTES = 16
_SUPERBLOCK_MAGIC = b"LMT-CSV\0"
_SLOT_MAGIC = b"LMT-TBL\0"
_HEADER_MAGIC = b"LMT-DSK\0"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class VolumeError(Exception):
    """What a volume refuses, in one line. `kind` is one of "NotAVolume", "OtherVersion", "Corrupt",
    "NoSuchDisk", "Exists", "Full", "BadRequest"."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Superblock:
    """Which volume this is. Written once, when the LUN is formatted."""

    volume: uuid.UUID
    lun_bytes: int
    extent_bytes: int = EXTENT_BYTES

    @property
    def extents(self) -> int:
        """How many extents there are."""
        return (self.lun_bytes - METADATA_BYTES) // self.extent_bytes


@dataclass(frozen=True, slots=True)
class Disk:
    """A virtual disk. `extents` are runs (first extent, count) in the order of the content. Who may write to
    it does not stand here: that is the target's to know, by the lease of the disk's name."""

    name: str
    identity: uuid.UUID
    size_bytes: int
    extents: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """All disks, at one `sequence` number."""

    sequence: int
    disks: tuple[Disk, ...] = ()


# ---- superblock


def encode_superblock(superblock: Superblock) -> bytes:
    """The 4 KiB at the beginning of the LUN."""
    fields = (superblock.volume.bytes, superblock.lun_bytes, superblock.extent_bytes)
    return _block(_SUPERBLOCK, _SUPERBLOCK_MAGIC, VERSION, *fields)


def decode_superblock(data: bytes, lun_bytes: int) -> Superblock:
    """The superblock of a LUN of `lun_bytes`.

    VolumeError: "NotAVolume", "OtherVersion" (which is looked at before all that another version may have
    changed), "Corrupt" for a wrong digest or a size that the LUN does not have.
    """
    magic, version, volume, size, extent, _ = _SUPERBLOCK.unpack_from(data)
    if magic != _SUPERBLOCK_MAGIC:
        raise VolumeError("the LUN holds no volume: format it first", "NotAVolume")
    if version != VERSION:
        text = f"the volume is of version {version}: only version {VERSION} can be read"
        raise VolumeError(text, "OtherVersion")
    if not _is_whole(_SUPERBLOCK, data[:BLOCK_BYTES]):
        raise VolumeError("the volume's superblock does not match its digest", "Corrupt")
    superblock = Superblock(uuid.UUID(bytes=volume), size, extent)
    if size > lun_bytes:
        raise VolumeError(f"the volume has {size} bytes, its LUN only {lun_bytes}", "Corrupt")
    return superblock


# ---- table


def slot_offset(sequence: int) -> int:
    """Where the table of that sequence number is written: its predecessor stands in the other place."""
    return BLOCK_BYTES + sequence % 2 * SLOT_BYTES


def copy_bytes(head: bytes) -> int:
    """How many bytes a copy of the table has, by its first sector; more than SLOT_BYTES if it is none."""
    length: int = _SLOT.unpack_from(head)[3]
    return _whole_sectors(_SLOT.size + length)


def _whole_sectors(size_bytes: int) -> int:
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def encode_table(volume: uuid.UUID, table: Table) -> bytes:
    """A table as it is written at its `slot_offset`, padded to whole sectors. VolumeError "Full" if there are
    more disks than its place holds."""
    body = json.dumps(_table_json(table), separators=(",", ":")).encode()
    if _SLOT.size + len(body) > SLOT_BYTES:
        text = f"the table of disks has {_SLOT.size + len(body)} bytes, of at most {SLOT_BYTES}"
        raise VolumeError(text, "Full")
    size = _whole_sectors(_SLOT.size + len(body))
    head = _SLOT.pack(_SLOT_MAGIC, volume.bytes, table.sequence, len(body), bytes(_DIGEST_BYTES))
    return _sealed(_SLOT, (head + body).ljust(size, b"\0"))


def decode_table(superblock: Superblock, data: bytes) -> Table | None:
    """The table in one of the two places; None if what stands there is no whole table of this volume.

    VolumeError "Corrupt" for a table that is whole but contradicts itself: no torn write explains that.
    """
    magic, volume, sequence, length, _ = _SLOT.unpack_from(data)
    if magic != _SLOT_MAGIC or volume != superblock.volume.bytes:
        return None
    size = copy_bytes(data)
    if size > SLOT_BYTES or not _is_whole(_SLOT, data[:size]):
        return None
    try:
        table = _table_from_json(json.loads(data[_SLOT.size : _SLOT.size + length]), sequence)
    except (ValueError, TypeError, KeyError, AttributeError, VolumeError) as error:
        raise VolumeError(f"the table of disks cannot be read: {error}", "Corrupt") from error
    _check_extents(superblock, table)
    return table


def current_table(superblock: Superblock, first: bytes, second: bytes) -> Table:
    """The newer of the two copies that are whole. VolumeError "Corrupt" if neither is."""
    copies = [decode_table(superblock, data) for data in (first, second)]
    whole = [table for table in copies if table is not None]
    if not whole:
        raise VolumeError("neither copy of the table of disks is whole", "Corrupt")
    return max(whole, key=lambda table: table.sequence)


def _table_json(table: Table) -> dict[str, Any]:
    disks = [
        {
            "name": disk.name,
            "identity": disk.identity.hex,
            "bytes": disk.size_bytes,
            "extents": disk.extents,
        }
        for disk in table.disks
    ]
    return {"disks": disks}


def _table_from_json(body: dict[str, Any], sequence: int) -> Table:
    disks = tuple(
        Disk(
            name=check_name(one["name"]),
            identity=uuid.UUID(hex=one["identity"]),
            size_bytes=int(one["bytes"]),
            extents=tuple((int(start), int(count)) for start, count in one["extents"]),
        )
        for one in body["disks"]
    )
    return Table(sequence, disks)


def _check_extents(superblock: Superblock, table: Table) -> None:
    """VolumeError "Corrupt" if two disks share an extent, or one has too few, or some that are not there."""
    end = 0
    for start, count, name in sorted((*run, disk.name) for disk in table.disks for run in disk.extents):
        if start < end or count < 1 or start + count > superblock.extents:
            text = f"disk {name}: extents {start} to {start + count - 1} are another's or not there"
            raise VolumeError(text, "Corrupt")
        end = start + count
    for disk in table.disks:
        if sum(count for _, count in disk.extents) < extents_for(superblock, disk.size_bytes):
            raise VolumeError(f"disk {disk.name}: too few extents for {disk.size_bytes} bytes", "Corrupt")


def extents_for(superblock: Superblock, size_bytes: int) -> int:
    """How many extents a disk of that size takes, its header among them."""
    return -(-(HEADER_BYTES + size_bytes) // superblock.extent_bytes)


# ---- a disk's header


def encode_header(volume: uuid.UUID, disk: Disk) -> bytes:
    """The 4 KiB at the beginning of a disk's first extent."""
    fields = (volume.bytes, disk.identity.bytes, disk.size_bytes)
    return _block(_HEADER, _HEADER_MAGIC, *fields)


def check_header(volume: uuid.UUID, disk: Disk, data: bytes) -> None:
    """VolumeError "Corrupt" if `data` is not the header of this disk: the table then points to the wrong
    place."""
    magic, of_volume, of_disk, _, _ = _HEADER.unpack_from(data)
    ours = (magic, of_volume, of_disk) == (_HEADER_MAGIC, volume.bytes, disk.identity.bytes)
    if not ours or not _is_whole(_HEADER, data[:HEADER_BYTES]):
        raise VolumeError(f"disk {disk.name}: its header is not there where the table says", "Corrupt")


def check_name(name: str) -> str:
    """`name`, if a disk can have it. VolumeError "BadRequest"."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == METADATA_LEASE:
        text = f"disk {name!r}: a name is 1 to 63 letters, digits, dots, dashes, and not {METADATA_LEASE!r}"
        raise VolumeError(text, "BadRequest")
    return name


# ---- digests


def _block(form: struct.Struct, *fields: Any) -> bytes:
    return _sealed(form, form.pack(*fields, bytes(_DIGEST_BYTES)).ljust(BLOCK_BYTES, b"\0"))


def _sealed(form: struct.Struct, data: bytes) -> bytes:
    """`data` with its digest in the last field of its head, where it has zeroes."""
    return data[: form.size - _DIGEST_BYTES] + xxhash.xxh3_128_digest(data) + data[form.size :]


def _is_whole(form: struct.Struct, data: bytes) -> bool:
    place = slice(form.size - _DIGEST_BYTES, form.size)
    blank = data[: place.start] + bytes(_DIGEST_BYTES) + data[place.stop :]
    return xxhash.xxh3_128_digest(blank) == data[place]
