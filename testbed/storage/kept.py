"""A small text that survives whatever happens while it is changed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import xxhash

SLOT_BYTES = 1 << 20
_SLOTS = 2


class Kept:
    """A text in a file, changed as a whole and in place: after a loss of power it is the old or the new one.

    There are two slots, written in turn, each a line of serial number, digest and text; the one that counts
    is that with the higher number among those whose digest is right. So a text that holds is never written
    over, and half of one is not taken for a text. The file is made with both slots allocated.

    To write a new file and rename it would be simpler, but goes through the file system's journal. A commit
    of that first writes out what others have just written (ext4, data=ordered;
    Documentation/filesystems/ext4), which behind a busy LUN takes four times as long, and a claim, in a
    guest's blackout, waits for it.
    """

    def __init__(self, path: Path) -> None:
        """What is kept in `path`; nothing where there is no such file. OSError; ValueError for another
        file."""
        self._path = path
        self._descriptor = -1
        self._serial, self.text = 0, ""
        if path.exists():
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            slots = [os.pread(self._descriptor, SLOT_BYTES, slot * SLOT_BYTES) for slot in range(_SLOTS)]
            found = [text for text in map(_parse, slots) if text is not None]
            if not found:
                self.close()
                raise ValueError("no slot of it is whole")
            self._serial, self.text = max(found)

    def replace(self, text: str) -> None:
        """Keep `text` instead, on stable storage when this returns. OSError: EFBIG if it is longer than a
        slot; the old one is then kept, or, where the disk has failed, may be at the next opening."""
        serial = self._serial + 1
        line = f"{serial} {_digest(serial, text)} {text}\n".encode()
        if len(line) > SLOT_BYTES:
            raise OSError(errno.EFBIG, f"{len(line)} bytes, of at most {SLOT_BYTES}")
        if self._descriptor < 0:
            self._create(line)
        else:
            _write(self._descriptor, line, serial % _SLOTS * SLOT_BYTES)
            os.fdatasync(self._descriptor)
        self._serial, self.text = serial, text

    def close(self) -> None:
        """Closing twice is allowed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _create(self, line: bytes) -> None:
        """The first text has its file's name when it is on stable storage, and not before."""
        fresh = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _write(descriptor, bytes(_SLOTS * SLOT_BYTES), 0)
            _write(descriptor, line, SLOT_BYTES)  # serial 1
            os.fsync(descriptor)
            fresh.rename(self._path)
            _sync_folder(self._path.parent)
        except BaseException:
            os.close(descriptor)
            fresh.unlink(missing_ok=True)
            raise
        self._descriptor = descriptor


def _parse(slot: bytes) -> tuple[int, str] | None:
    """Serial number and text of a slot; None for one that was never written, or not to its end."""
    line, end, _ = slot.partition(b"\n")
    try:
        number, digest, text = line.decode().split(" ", 2)
        whole = bool(end) and digest == _digest(int(number), text)
        return (int(number), text) if whole else None
    except ValueError:
        return None


def _digest(serial: int, text: str) -> str:
    return xxhash.xxh3_64_hexdigest(f"{serial} {text}".encode())


def _write(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
