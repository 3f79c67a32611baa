"""A text that is changed as a whole: whatever is cut off, it is the old one or the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from testbed.storage.kept import SLOT_BYTES, Kept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "csv.lun"


def filled(path: Path, *texts: str) -> None:
    one = Kept(path)
    for text in texts:
        one.replace(text)
    one.close()


def reopened(path: Path) -> str:
    one = Kept(path)
    one.close()
    return one.text


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_where_there_is_no_file_nothing_is_kept(path: Path) -> None:
    assert reopened(path) == ""
    assert not path.exists()


@pytest.mark.parametrize("count", range(1, 6))
def test_the_last_text_is_kept(path: Path, count: int) -> None:
    texts = [f"text {number}" * (6 - number) for number in range(count)]
    filled(path, *texts)
    assert reopened(path) == texts[-1]
    filled(path, "one more")
    assert reopened(path) == "one more"


@pytest.mark.parametrize("number", [2, 3])
def test_a_text_written_to_any_byte_only_leaves_the_one_before(path: Path, number: int) -> None:
    """Whichever slot it goes to."""
    texts = ["first text", "the second text", "a third text"][:number]
    filled(path, *texts[:-1])
    before = path.read_bytes()
    filled(path, texts[-1])
    after = path.read_bytes()
    start = number % 2 * SLOT_BYTES
    length = after.index(b"\n", start) + 1 - start
    for written in range(length):
        path.write_bytes(before[:start] + after[start : start + written] + before[start + written :])
        assert reopened(path) == texts[-2], written
    path.write_bytes(before[:start] + after[start : start + length] + before[start + length :])
    assert reopened(path) == texts[-1]


def test_what_is_no_such_file_is_not_taken_for_an_empty_one(path: Path) -> None:
    for content in (b"", bytes(2 * SLOT_BYTES), b"1 00 {}\n", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no slot"):
            Kept(path)


def test_the_first_text_is_on_disk_before_the_file_has_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that survives a loss of power: content synced, renamed, folder synced."""
    steps: list[object] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append(path.exists()), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (steps.append("rename"), rename(self, to))[1])
    filled(path, "text")
    assert steps == [False, "rename", True]


def test_a_change_is_synced_before_it_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path, "old")
    one = Kept(path)
    seen: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: seen.append(reopened(path)))
    one.replace("new")
    assert seen == ["new"], "it has been written, then synced"
    one.close()


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_first_text_that_cannot_be_written_leaves_no_file(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Kept(path)
    with monkeypatch.context() as failing:
        failing.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            one.replace("new")
    assert list(path.parent.iterdir()) == []
    one.replace("new")
    one.close()
    assert reopened(path) == "new"


def test_a_change_that_fails_may_be_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path, "old")
    one = Kept(path)
    with monkeypatch.context() as failing:
        failing.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            one.replace("new")
    assert (one.text, reopened(path)) == ("old", "old")
    one.replace("newer")
    one.close()
    assert reopened(path) == "newer"


def test_a_text_that_fits_no_slot_is_refused(path: Path) -> None:
    filled(path, "old")
    one = Kept(path)
    with pytest.raises(OSError, match="of at most") as refused:
        one.replace("x" * SLOT_BYTES)
    one.close()
    assert refused.value.errno == errno.EFBIG
    assert reopened(path) == "old"
