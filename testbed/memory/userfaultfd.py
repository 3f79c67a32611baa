"""Dirty tracking by write protection: userfaultfd in asynchronous mode, read by PAGEMAP_SCAN.

Every page of the guest's mapping is write-protected. The first write to a page faults, and the kernel itself
lifts the protection and lets the write go on: that costs the guest a few microseconds, and nobody has to be
waited for. A page that is not protected any more was written. A scan finds those pages and protects each
again *in the same step*, so a write comes either before the scan looks at its page, and is reported now, or
after, and is reported next time.

The protection sits in the page table of one process. What the guest writes, and what the kernel writes for it
(recv into RAM), is seen; what another process writes through a mapping of its own is not.

Needs Linux 6.7. Ordinary users get a descriptor for faults from user mode only; in asynchronous mode the
kernel's own writes are tracked with it too.
"""

from __future__ import annotations

import errno
import os

import numpy as np

from testbed.kernel import pagemap
from testbed.kernel import userfaultfd as uffd
from testbed.memory.pages import PAGE_BYTES, PageSet

FEATURES = (
    uffd.UFFD_FEATURE_WP_ASYNC | uffd.UFFD_FEATURE_WP_UNPOPULATED | uffd.UFFD_FEATURE_WP_HUGETLBFS_SHMEM
)

REGIONS = 16384
"""Stretches of pages that one scan returns at most: 384 KiB of results, and one call where RAM is not torn to
bits.
"""


def open_for_tracking(address: int, size: int) -> int:
    """In the guest: have `size` bytes from `address` on, a mapping of this process, tracked; returns the
    userfaultfd.

    The guest hands the descriptor to its agent, where it becomes a :class:`UserfaultfdTracker`. Nothing is
    protected yet, and nothing is slower. Raises OSError where the kernel does not have it or does not allow
    it; nothing is left open then.
    """
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = uffd.userfaultfd(flags)
    except PermissionError:
        fd = uffd.userfaultfd(flags | uffd.UFFD_USER_MODE_ONLY)
    try:
        uffd.api(fd, FEATURES)
        uffd.register(fd, address, size, uffd.UFFDIO_REGISTER_MODE_WP)
    except BaseException:
        os.close(fd)
        raise
    return fd


class UserfaultfdTracker:
    """Tracks the `size` bytes that process `pid` has mapped at `address`, through the userfaultfd `fd` of
    that process.

    The descriptor belongs to the tracker from here on. After :meth:`stop` the guest writes at full speed
    again.
    """

    name = "userfaultfd"
    exact = True

    def __init__(self, fd: int, pid: int, address: int, size: int) -> None:
        """Raises OSError without the right to trace `pid`; the descriptor is then still the caller's."""
        self._pagemap = pagemap.open_pagemap(pid)
        self._uffd = fd
        self._address = address
        self._size = size
        self._regions = np.empty((REGIONS, pagemap.PAGE_REGION_WORDS), np.uint64)
        self._tracking = False

    def start(self) -> None:
        uffd.writeprotect(self._uffd, self._address, self._size, uffd.UFFDIO_WRITEPROTECT_MODE_WP)
        self._tracking = True

    def collect(self) -> PageSet:
        if not self._tracking:
            raise RuntimeError("the tracker was not started")
        parts: list[np.ndarray[tuple[int, int], np.dtype[np.uint64]]] = []
        at, end = self._address, self._address + self._size
        while at < end:
            filled, at = pagemap.scan(
                self._pagemap,
                at,
                end,
                self._regions,
                flags=pagemap.PM_SCAN_WP_MATCHING | pagemap.PM_SCAN_CHECK_WPASYNC,
                category_mask=pagemap.PAGE_IS_WRITTEN,
                return_mask=pagemap.PAGE_IS_WRITTEN,
            )
            parts.append(self._regions[:filled, :2].copy())
        self._require_life()
        found = (np.concatenate(parts) - np.uint64(self._address)) // np.uint64(PAGE_BYTES)
        found[:, 1] -= found[:, 0]
        return PageSet.from_runs(found)

    def _require_life(self) -> None:
        """Raises ProcessLookupError if the guest has ended, also if it did while it was scanned.

        PAGEMAP_SCAN itself is no witness: up to Linux 6.12 at least, it finds the memory of the dead clean.
        An entry can only be read while the memory is in use, and what was torn down does not come back: if
        that holds after a scan, it held throughout.
        """
        pagemap.read_entries(self._pagemap, self._address, 1)

    def stop(self) -> None:
        if self._tracking:
            self._tracking = False
            try:
                uffd.writeprotect(self._uffd, self._address, self._size, 0)
            except OSError as error:
                if error.errno != errno.ESRCH:  # a guest that is gone has nothing left to unprotect
                    raise

    def close(self) -> None:
        """Stop, and close both descriptors. Once only."""
        try:
            self.stop()
        finally:
            os.close(self._uffd)
            os.close(self._pagemap)
