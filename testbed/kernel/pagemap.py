"""/proc/PID/pagemap and /proc/PID/clear_refs: what the kernel knows of each page of a process.

Transcription only. Names are those of ``linux/fs.h`` (PAGEMAP_SCAN, since Linux 6.7) and of
Documentation/admin-guide/mm/pagemap.rst (the bits of an entry).
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from testbed.kernel import checked

Words = npt.NDArray[np.uint64]

# linux/fs.h
PAGEMAP_SCAN = 0xC0606610

PM_SCAN_WP_MATCHING = 1 << 0
PM_SCAN_CHECK_WPASYNC = 1 << 1

PAGE_IS_WPALLOWED = 1 << 0
PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5
PAGE_IS_HUGE = 1 << 6
PAGE_IS_SOFT_DIRTY = 1 << 7

# struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages,
#                     category_inverted, category_mask, category_anyof_mask, return_mask
PM_SCAN_ARG = struct.Struct("=12Q")
WALK_END = 4  # its place among them
# struct page_region: start, end, categories
PAGE_REGION_WORDS = 3

# Documentation/admin-guide/mm/pagemap.rst
PAGEMAP_ENTRY_BYTES = 8
PM_SOFT_DIRTY = 1 << 55
PM_UFFD_WP = 1 << 57
PM_FILE = 1 << 61
PM_SWAP = 1 << 62
PM_PRESENT = 1 << 63

# Documentation/filesystems/proc.rst, "clear_refs"
CLEAR_REFS_SOFT_DIRTY = "4"


def open_pagemap(pid: int) -> int:
    """The pagemap of process `pid`. OSError: EACCES or EPERM without the right to trace it, ENOENT if there
    is none.
    """
    return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)


def scan(
    fd: int, start: int, end: int, regions: Words, *, flags: int, category_mask: int, return_mask: int
) -> tuple[int, int]:
    """PAGEMAP_SCAN: walk the addresses from `start` to `end`, whole pages, and note the pages in all of
    `category_mask`.

    Fills the rows of `regions`, a uint64 array of shape (n, 3), with (start, end, categories), each a stretch
    of neighbouring pages with equal categories out of `return_mask`. With PM_SCAN_WP_MATCHING each page that
    is noted is write-protected in the same step. Returns how many rows were filled and where the walk ended:
    before `end` where the rows did not suffice, and the next call goes on from there.

    Raises OSError: ENOTTY before Linux 6.7; EPERM with PM_SCAN_CHECK_WPASYNC where part of the range is not
    tracked by a userfaultfd in asynchronous mode, or is no longer. Of a process that is gone it raises ESRCH
    (Linux 6.18) or finds no page in any category (6.12), so ask :func:`read_entries` afterwards.
    """
    vector = regions.ctypes.data
    fields = (flags, start, end, 0, vector, len(regions), 0, 0, category_mask, 0, return_mask)
    argument = bytearray(PM_SCAN_ARG.pack(PM_SCAN_ARG.size, *fields))
    filled = checked.ioctl(fd, PAGEMAP_SCAN, argument, "PAGEMAP_SCAN")
    return filled, int(PM_SCAN_ARG.unpack(argument)[WALK_END])


def read_entries(fd: int, address: int, pages: int) -> Words:
    """The entries of `pages` pages from `address` on, one uint64 of PM_ bits each.

    Raises ProcessLookupError once the process is gone (the kernel then answers with no bytes).
    """
    wanted = pages * PAGEMAP_ENTRY_BYTES
    offset = address // os.sysconf("SC_PAGE_SIZE") * PAGEMAP_ENTRY_BYTES
    parts: list[bytes] = []
    while wanted:
        part = os.pread(fd, wanted, offset)
        if not part:
            raise ProcessLookupError(errno.ESRCH, f"pagemap ends {wanted} bytes early: no such process")
        parts.append(part)
        wanted -= len(part)
        offset += len(part)
    return np.frombuffer(b"".join(parts), np.uint64)


def clear_refs(pid: int, what: str) -> None:
    """Write `what` to /proc/`pid`/clear_refs: CLEAR_REFS_SOFT_DIRTY forgets which pages were written.

    A kernel built without CONFIG_MEM_SOFT_DIRTY accepts it all the same, and does nothing.
    """
    Path(f"/proc/{pid}/clear_refs").write_text(what)
