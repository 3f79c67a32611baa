"""A disk in a file: holes, zeroes and syncs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from testbed.storage import files
from testbed.storage.files import BackingFile

SIZE = 4 << 20


@pytest.fixture
def disk(tmp_path: Path) -> BackingFile:
    return BackingFile.create(tmp_path / "disk.img", SIZE)


def content(disk: BackingFile, offset: int, length: int) -> bytes:
    data = bytearray(length)
    disk.read_into(offset, memoryview(data))
    return bytes(data)


def blocks(tmp_path: Path) -> int:
    return (tmp_path / "disk.img").stat().st_blocks


def test_a_new_disk_is_zeroes_without_space(disk: BackingFile, tmp_path: Path) -> None:
    assert blocks(tmp_path) == 0
    assert content(disk, SIZE - 4096, 4096) == bytes(4096)


def test_what_is_written_is_there_when_it_is_opened_again(disk: BackingFile, tmp_path: Path) -> None:
    disk.write(SIZE - 4, memoryview(b"last"))
    disk.sync()
    disk.close()
    again = BackingFile(tmp_path / "disk.img")
    assert again.size_bytes == SIZE
    assert content(again, SIZE - 4, 4) == b"last"


def test_a_sync_is_the_kernels(disk: BackingFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the one descriptor through which every connection writes."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    disk.sync()
    assert synced == [(tmp_path / "disk.img").stat().st_ino]


def test_a_trim_gives_the_space_back(disk: BackingFile, tmp_path: Path) -> None:
    disk.write(0, memoryview(b"x" * (2 << 20)))
    disk.sync()
    full = blocks(tmp_path)
    disk.trim(0, 1 << 20)
    assert blocks(tmp_path) < full
    assert content(disk, 1 << 20, 4) == b"xxxx"


@pytest.mark.parametrize("no_hole", [True, False])
@pytest.mark.parametrize("able", [True, False])
def test_zeroes_read_as_zeroes(
    disk: BackingFile, tmp_path: Path, no_hole: bool, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the file system has the modes of fallocate or not; with `no_hole` they take up space."""
    if not able:
        monkeypatch.setattr(files, "fallocate", unable)
    disk.write(0, memoryview(b"x" * SIZE))
    disk.write_zeroes(100, SIZE - 200, no_hole)
    disk.sync()
    assert content(disk, 0, SIZE) == b"x" * 100 + bytes(SIZE - 200) + b"x" * 100
    assert (blocks(tmp_path) * 512 >= SIZE) is (no_hole or not able)


def unable(*_: int) -> None:
    raise OSError(errno.EOPNOTSUPP, "fallocate")


def test_a_trim_is_a_hint_where_no_holes_are(disk: BackingFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fallocate", unable)
    disk.write(0, memoryview(b"x"))
    disk.trim(0, 4096)
    assert content(disk, 0, 1) == b"x"


def test_other_failures_of_fallocate_are_told(disk: BackingFile) -> None:
    with pytest.raises(OSError, match="fallocate: ") as refused:
        disk.trim(-1, 4096)
    assert refused.value.errno == errno.EINVAL


def test_a_file_that_was_cut_is_an_error(disk: BackingFile, tmp_path: Path) -> None:
    os.truncate(tmp_path / "disk.img", 100)
    with pytest.raises(OSError, match="shorter"):
        content(disk, 0, 101)


def test_a_closed_disk_writes_to_no_other_file(disk: BackingFile, tmp_path: Path) -> None:
    disk.close()
    with (tmp_path / "another").open("wb"), pytest.raises(OSError, match="Bad file descriptor"):
        disk.write(0, memoryview(b"x"))
