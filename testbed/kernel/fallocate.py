"""fallocate(2) with its modes: holes and zeroes in a file.

Transcription only. Names are those of ``linux/falloc.h``.
"""

from __future__ import annotations

import ctypes

from testbed.kernel.checked import check

# linux/falloc.h
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError: EOPNOTSUPP where the file system lacks the mode, ENOSPC, EINVAL for a
    length of 0."""
    check(_fallocate(fd, mode, offset, length), "fallocate")
