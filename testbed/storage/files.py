"""A disk in a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from testbed.kernel.fallocate import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
)

_ZEROES = bytes(1 << 20)


class BackingFile:
    """A regular file as a disk. All its connections share one descriptor, and the page cache with it, so a
    sync covers the writes of all of them. Each method raises OSError; offsets have been checked by the
    caller."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._descriptor).st_size

    @classmethod
    def create(cls, path: Path, size_bytes: int) -> BackingFile:
        """A file of zeroes that takes up no space yet. FileExistsError. After a failure there is none."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(descriptor, size_bytes)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        return cls(path)

    def read_into(self, offset: int, view: memoryview) -> None:
        while view:
            got = os.preadv(self._descriptor, [view], offset)
            if not got:
                raise OSError(errno.EIO, "the file has become shorter")
            offset, view = offset + got, view[got:]

    def write(self, offset: int, view: memoryview) -> None:
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            offset, view = offset + written, view[written:]

    def trim(self, offset: int, length: int) -> None:
        """A hint: where the file system makes no holes, nothing happens."""
        if length:
            self._punch(offset, length)

    def write_zeroes(self, offset: int, length: int, no_hole: bool) -> None:
        """Zeroes, with `no_hole` such as take up space."""
        if not length or (not no_hole and self._punch(offset, length)):
            return
        if not self._try(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length):
            for start in range(0, length, len(_ZEROES)):
                self.write(offset + start, memoryview(_ZEROES)[: length - start])

    def sync(self) -> None:
        """All that has been written is on stable storage when this returns."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """A thread that comes too late gets EBADF, and never another file that has the same number by
        then."""
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _punch(self, offset: int, length: int) -> bool:
        return self._try(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def _try(self, mode: int, offset: int, length: int) -> bool:
        """Whether the file system has this mode of fallocate, and has done it."""
        try:
            fallocate(self._descriptor, mode, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False
        return True
