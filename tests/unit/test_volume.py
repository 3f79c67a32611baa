"""The volume's format: extents stay disjoint, a torn table is never seen, and nonsense is refused."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable
from functools import partial

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from testbed.storage import layout
from testbed.storage.layout import (
    BLOCK_BYTES,
    HEADER_BYTES,
    METADATA_BYTES,
    SLOT_BYTES,
    Disk,
    Superblock,
    Table,
    VolumeError,
    slot_offset,
)
from testbed.storage.volume import (
    Volume,
    created,
    deleted,
    find,
    format_volume,
    free_bytes,
    free_runs,
    geometry,
    grown,
    open_volume,
)

MIB = 1 << 20
VOLUME = uuid.UUID(int=7)
ONE = uuid.UUID(int=1)
TWO = uuid.UUID(int=2)


class Ram:
    """A block device that remembers what was written, and can lose the power in the middle of a write."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.torn_after: int | None = None
        self.writes: list[tuple[int, int, bool]] = []

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        assert 0 <= offset <= offset + len(data) <= self.size
        self.writes.append((offset, len(data), fua))
        arrived = data if self.torn_after is None else data[: self.torn_after]
        self.data[offset : offset + len(arrived)] = arrived


def formatted(extents: int = 16, extent_bytes: int = 64 << 10) -> tuple[Ram, Volume]:
    device = Ram(METADATA_BYTES + extents * extent_bytes)
    return device, format_volume(device, Superblock(VOLUME, device.size, extent_bytes))


def kind_of(action: Callable[[], object]) -> str:
    with pytest.raises(VolumeError) as refused:
        action()
    assert "\n" not in str(refused.value)
    return refused.value.kind


# ---- extents


ORDERS = st.lists(
    st.tuples(
        st.sampled_from(["create", "grow", "delete"]),
        st.sampled_from("abcd"),
        st.integers(1, 9 * 128).map(lambda sectors: sectors * 512),
    ),
    max_size=40,
)


@given(ORDERS)
def test_extents_are_disjoint_and_content_never_moves(orders: list[tuple[str, str, int]]) -> None:
    device, volume = formatted()
    block = volume.superblock
    for order, name, size in orders:
        table = volume.read_table(device)
        before = {disk.name: disk for disk in table.disks}
        try:
            match order:
                case "create":
                    table, _ = created(block, table, name, size, ONE)
                case "grow":
                    table, _ = grown(block, table, name, size)
                case "delete":
                    table, _ = deleted(table, name)
        except VolumeError:
            continue
        volume.write_table(device, table)
        _check_disjoint(volume, table)
        for disk in table.disks:
            if (old := before.get(disk.name)) and old.identity == disk.identity and order == "grow":
                pieces = volume.segments(old, 0, old.size_bytes)
                assert volume.segments(disk, 0, old.size_bytes) == pieces


def _check_disjoint(volume: Volume, table: Table) -> None:
    ranges = sorted(range_ for disk in table.disks for range_ in volume.ranges(disk))
    end = METADATA_BYTES
    for start, length in ranges:
        assert start >= end
        end = start + length
    assert end <= volume.superblock.lun_bytes
    taken = sum(length for _, length in ranges)
    assert taken + free_bytes(volume.superblock, table) == 16 * (64 << 10)


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=5),
    st.data(),
)
def test_segments_are_the_bytes_asked_for_in_their_order(counts: list[int], data: st.DataObject) -> None:
    extent = 64 << 10
    _, volume = formatted(40, extent)
    runs, start = [], 0
    for count in counts:
        runs.append((start, count))
        start += count + 1
    runs.reverse()  # an order of its own, not the LUN's
    size = sum(counts) * extent - HEADER_BYTES
    disk = Disk("d", ONE, size, tuple(runs))
    offset = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - offset))
    content = [at for begin, run in volume.ranges(disk) for at in range(begin, begin + run, 512)]
    pieces = volume.segments(disk, offset, length)
    assert sum(part for _, part in pieces) == length
    whole = [at for begin, part in pieces for at in (begin, begin + part - 1)]
    expected = [offset + HEADER_BYTES]
    for _, part in pieces[:-1]:
        expected += [expected[-1] + part]
    for (begin, _), at in zip(pieces, expected, strict=False):
        assert begin == content[at // 512] + at % 512
    assert all(METADATA_BYTES <= at < volume.superblock.lun_bytes for at in whole)


def test_a_disk_is_in_one_piece_where_there_is_room_and_in_several_where_not() -> None:
    device, volume = formatted(16)
    block = volume.superblock
    extent = block.extent_bytes
    table = volume.read_table(device)
    for name in "abcd":
        table, _ = created(block, table, name, 4 * extent - HEADER_BYTES, ONE)
    assert kind_of(lambda: created(block, table, "e", 512, ONE)) == "Full"
    table, _ = deleted(table, "a")
    table, _ = deleted(table, "c")
    assert free_runs(block, table) == [(0, 4), (8, 4)]
    _, whole = created(block, table, "e", 3 * extent, ONE)
    assert whole.extents == ((0, 4),)
    _, split = created(block, table, "e", 5 * extent, ONE)
    assert split.extents == ((0, 4), (8, 2))


def test_growing_within_the_last_extent_takes_none() -> None:
    device, volume = formatted()
    table, disk = created(volume.superblock, volume.read_table(device), "a", 512, ONE)
    _, larger = grown(volume.superblock, table, "a", volume.superblock.extent_bytes - HEADER_BYTES)
    assert larger.extents == disk.extents
    _, larger = grown(volume.superblock, table, "a", volume.superblock.extent_bytes)
    assert larger.extents == ((0, 2),)


# ---- torn writes


def test_a_torn_write_of_the_table_is_never_seen() -> None:
    """At every byte: before the change stands the old table, after it the new one, in between the old one."""
    device, volume = formatted()
    table = volume.read_table(device)
    for name in "ab":
        table, _ = created(volume.superblock, table, name, 512, ONE)
        volume.write_table(device, table)
    following, _ = created(volume.superblock, table, "c", 512, TWO)
    before = bytes(device.data)
    seen = []
    for torn_after in range(len(layout.encode_table(VOLUME, following)) + 1):
        device.data[:] = before
        device.torn_after = torn_after
        volume.write_table(device, following)
        now = open_volume(device).read_table(device)
        assert now in (table, following)
        seen.append(now.sequence)
    assert seen[0] == table.sequence
    assert seen[-1] == following.sequence
    assert seen == sorted(seen)


def test_with_a_single_place_a_torn_write_would_lose_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: it is the two places in turn that keep the table."""
    monkeypatch.setattr("testbed.storage.volume.slot_offset", lambda sequence: BLOCK_BYTES)
    device, volume = formatted()
    table, _ = created(volume.superblock, volume.read_table(device), "a", 512, ONE)
    device.torn_after = 100
    volume.write_table(device, table)
    assert kind_of(lambda: volume.read_table(device)) == "Corrupt"


def test_a_change_is_durable_when_it_returns() -> None:
    device, volume = formatted()
    table, _ = created(volume.superblock, volume.read_table(device), "a", 512, ONE)
    device.writes.clear()
    volume.write_table(device, table)
    assert device.writes == [(slot_offset(table.sequence), 512, True)]


def test_a_reader_that_two_changes_pass_looks_again() -> None:
    device, volume = formatted()
    whole = device.read(0, METADATA_BYTES)

    class Passing(Ram):
        looks = 0

        def read(self, offset: int, length: int) -> bytes:
            data = super().read(offset, length)
            self.looks += 1
            return data if self.looks > 2 else bytes(length)

    passing = Passing(device.size)
    passing.data[: len(whole)] = whole
    assert volume.read_table(passing) == volume.read_table(device)


def test_a_former_volume_s_table_is_not_taken_for_this_one_s() -> None:
    device, volume = formatted()
    table, _ = created(volume.superblock, volume.read_table(device), "old", 512, ONE)
    volume.write_table(device, table)
    other = Volume(Superblock(TWO, device.size, volume.superblock.extent_bytes))
    assert kind_of(lambda: other.read_table(device)) == "Corrupt"


def test_formatting_again_leaves_nothing_of_before() -> None:
    device, volume = formatted()
    table, _ = created(volume.superblock, volume.read_table(device), "old", 512, ONE)
    volume.write_table(device, table)
    again = format_volume(device, Superblock(TWO, device.size, 64 << 10))
    assert again.read_table(device) == Table(1)
    assert device.writes[-1] == (0, BLOCK_BYTES, True)


def test_a_lun_half_formatted_holds_no_volume() -> None:
    device, _ = formatted()
    device.torn_after = 0
    device.data[:BLOCK_BYTES] = bytes(BLOCK_BYTES)
    assert kind_of(lambda: open_volume(device)) == "NotAVolume"


# ---- bad input


@pytest.mark.parametrize(
    ("name", "size", "kind"),
    [
        ("", 512, "BadRequest"),
        ("metadata", 512, "BadRequest"),
        ("a/b", 512, "BadRequest"),
        ("a?key=1", 512, "BadRequest"),
        ("a" * 64, 512, "BadRequest"),
        ("a", 0, "BadRequest"),
        ("a", -512, "BadRequest"),
        ("a", 513, "BadRequest"),
        ("a", "512", "BadRequest"),
        ("a", 512.0, "BadRequest"),
        (None, 512, "BadRequest"),
        ("there", 512, "Exists"),
        ("a", 1 << 60, "Full"),
    ],
)
def test_what_cannot_be_created(name: str, size: int, kind: str) -> None:
    device, volume = formatted()
    table, _ = created(volume.superblock, volume.read_table(device), "there", 512, ONE)
    assert kind_of(lambda: created(volume.superblock, table, name, size, TWO)) == kind


def test_what_cannot_be_found_grown_or_deleted() -> None:
    device, volume = formatted()
    block = volume.superblock
    table, _ = created(block, volume.read_table(device), "a", 1024, ONE)
    assert kind_of(lambda: find(table, "b")) == "NoSuchDisk"
    assert kind_of(lambda: deleted(table, "b")) == "NoSuchDisk"
    assert kind_of(lambda: grown(block, table, "b", 1024)) == "NoSuchDisk"
    assert kind_of(lambda: grown(block, table, "a", 512)) == "BadRequest"
    assert kind_of(lambda: grown(block, table, "a", 1 << 40)) == "Full"


@pytest.mark.parametrize("extent_bytes", [0, 1, 100_000, 32 << 10, 2 << 30])
def test_an_extent_of_a_wrong_size_is_refused(extent_bytes: int) -> None:
    assert kind_of(lambda: geometry(4 * MIB, extent_bytes)) == "BadRequest"


def test_what_is_no_volume_says_so() -> None:
    assert kind_of(lambda: open_volume(Ram(4 * MIB))) == "NotAVolume"
    assert kind_of(lambda: open_volume(Ram(512))) == "NotAVolume"


@pytest.mark.parametrize(("lun_bytes", "size_bytes"), [(MIB, None), (4 * MIB, MIB), (4 * MIB, 4 * MIB + 1)])
def test_a_volume_that_does_not_fit_is_refused(lun_bytes: int, size_bytes: int | None) -> None:
    assert kind_of(lambda: geometry(lun_bytes, MIB, size_bytes)) == "BadRequest"


def test_a_volume_may_be_smaller_than_its_lun() -> None:
    assert geometry(8 * MIB, MIB, 4 * MIB).extents == 3


def test_another_version_and_a_changed_superblock_are_refused() -> None:
    device, _ = formatted()
    struct.pack_into("<I", device.data, 8, 2)
    assert kind_of(lambda: open_volume(device)) == "OtherVersion"
    struct.pack_into("<I", device.data, 8, 1)
    device.data[20] ^= 1
    assert kind_of(lambda: open_volume(device)) == "Corrupt"


def test_a_volume_larger_than_its_lun_is_refused() -> None:
    device, _ = formatted(16)
    del device.data[-1:]
    assert kind_of(lambda: open_volume(device)) == "Corrupt"


def test_too_many_disks_for_the_table_is_full() -> None:
    disks = tuple(Disk(f"d{number}", ONE, 512, ((number, 1),)) for number in range(6000))
    assert kind_of(lambda: layout.encode_table(VOLUME, Table(2, disks))) == "Full"
    assert len(layout.encode_table(VOLUME, Table(2, disks[:4000]))) <= SLOT_BYTES


def test_a_disk_that_is_not_where_the_table_says_is_noticed() -> None:
    device, volume = formatted()
    table, disk = created(volume.superblock, volume.read_table(device), "a", 512, ONE)
    _, other = created(volume.superblock, table, "b", 512, TWO)
    volume.write_header(device, disk)
    volume.write_header(device, other)
    volume.check_header(device, disk)
    moved = Disk("b", TWO, 512, disk.extents)
    assert kind_of(lambda: volume.check_header(device, moved)) == "Corrupt"
    device.data[volume.ranges(disk)[0][0] + 100] ^= 1
    assert kind_of(lambda: volume.check_header(device, disk)) == "Corrupt"


def _whole_table(body: bytes) -> bytes:
    """A table's copy with a right digest over whatever body."""
    size = -(-(layout._SLOT.size + len(body)) // 512) * 512
    head = layout._SLOT.pack(b"LMT-TBL\0", VOLUME.bytes, 9, len(body), bytes(16))
    data = (head + body).ljust(size, b"\0")
    place = layout._SLOT.size - 16
    return data[:place] + xxhash.xxh3_128_digest(data) + data[place + 16 :]


def _disk(name: str = "a", extents: object = ((0, 1),), size: object = 512) -> dict[str, object]:
    return {"name": name, "identity": ONE.hex, "bytes": size, "extents": extents}


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b"\xff",
        b"{}",
        json.dumps({"disks": [{}]}).encode(),
        json.dumps({"disks": [_disk("a?b")]}).encode(),
        json.dumps({"disks": [_disk(), _disk("b")]}).encode(),
        json.dumps({"disks": [_disk(extents=[[15, 2]])]}).encode(),
        json.dumps({"disks": [_disk(extents=[[-1, 2]])]}).encode(),
        json.dumps({"disks": [_disk(extents=[[1, 0]])]}).encode(),
        json.dumps({"disks": [_disk(extents=[3])]}).encode(),
        json.dumps({"disks": [_disk(size=1 << 30)]}).encode(),
    ],
)
def test_a_whole_table_that_contradicts_itself_is_corrupt(body: bytes) -> None:
    _, volume = formatted()
    read = partial(layout.decode_table, volume.superblock, _whole_table(body))
    assert kind_of(read) == "Corrupt"


@given(st.binary(min_size=100, max_size=3000))
def test_any_bytes_are_no_table_rather_than_a_crash(data: bytes) -> None:
    _, volume = formatted()
    assert layout.decode_table(volume.superblock, data) is None
    assert layout.decode_table(volume.superblock, b"LMT-TBL\0" + VOLUME.bytes + data) is None
