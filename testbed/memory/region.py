"""Guest RAM: pages of a memfd, mapped shared.

The guest and its host's agent each map the same memfd, so the agent copies RAM without asking the guest's
process, and RAM outlives a guest which dies. A region never travels: the other host has one of its own.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from types import TracebackType
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from testbed.memory.pages import PAGE_BYTES, PageSet

MADV_POPULATE_READ = 22
MADV_POPULATE_WRITE = 23
"""<asm-generic/mman-common.h>, since Linux 5.14; Python 3.11's mmap module does not name it."""

WORDS = PAGE_BYTES // 8

SAMPLES = (0, WORDS - 1, WORDS // 2)
"""The words of a page at which :meth:`Region.zero` looks before it reads the whole page."""

BLOCK_PAGES = 256
"""Pages read at once where a whole page must be looked at: 1 MiB, which stays in the cache."""


class Region:
    """A guest's RAM, mapped into this process.

    A page is given memory when it is first touched, and *reading* through the mapping is a touch too: the
    kernel puts a zero page of its own into a shared mapping. So whoever goes through RAM asks :meth:`touched`
    first, else a guest of 1 GiB that uses 10 MiB comes to cost 1 GiB.

    The size is sealed: no process that holds the descriptor can shrink RAM under the feet of another.
    """

    def __init__(self, fd: int, size: int) -> None:
        """Map `size` bytes of `fd`, which belongs to the region from here on. Use :meth:`create` or
        :meth:`from_fd`.
        """
        self._fd = fd
        self._mapping: mmap.mmap | None = mmap.mmap(fd, size)
        self.size = size
        """Bytes of RAM."""
        self.pages = size // PAGE_BYTES
        """Pages of RAM."""
        self.view = memoryview(self._mapping)
        """All of RAM, writable, as bytes."""
        pages = np.frombuffer(self._mapping, np.uint8).reshape(self.pages, PAGE_BYTES)
        self.array: npt.NDArray[np.uint8] = pages
        """All of RAM, writable, shape (pages, 4096)."""
        self.address: int = self.array.ctypes.data
        """Where RAM is mapped in this process."""
        self._words: npt.NDArray[np.uint64] = self.array.view(np.uint64)

    @classmethod
    def create(cls, size_bytes: int) -> Region:
        """New RAM of `size_bytes`, all zero, none of it touched.

        Raises ValueError for a size that is not a whole number of pages or is below one page; OSError where
        the kernel refuses. After a failure nothing is left.
        """
        if size_bytes < PAGE_BYTES or size_bytes % PAGE_BYTES:
            raise ValueError(f"RAM is whole pages of {PAGE_BYTES} bytes, one or more, not {size_bytes} bytes")
        fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls(fd, size_bytes)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def from_fd(cls, fd: int) -> Region:
        """The RAM behind `fd`, a memfd that came from another process.

        The descriptor belongs to the region from here on and is closed with it; after a failure it is still
        the caller's. Raises ValueError where its size is not whole pages.
        """
        size = os.fstat(fd).st_size
        if size < PAGE_BYTES or size % PAGE_BYTES:
            raise ValueError(f"descriptor {fd} is not guest RAM: {size} bytes is not a whole number of pages")
        return cls(fd, size)

    @property
    def fd(self) -> int:
        """The memfd, to be passed to another process or given to sendfile."""
        if self._mapping is None:
            raise ValueError("the region is closed")
        return self._fd

    def populate(self) -> None:
        """Touch every page now, so that no later access has to wait for memory; what is there already is
        kept.

        Raises OSError where the kernel cannot give that much (ENOMEM, EFAULT) or is older than 5.14 (EINVAL).
        """
        if self._mapping is None:
            raise ValueError("the region is closed")
        self._mapping.madvise(MADV_POPULATE_WRITE)

    def map_in(self, pages: PageSet) -> None:
        """Enter `pages`, which have memory already, into this process's page table, so that reading them for
        the first time does not fault. A page without memory would get some. OSError where the kernel is older
        than 5.14 (EINVAL).
        """
        if self._mapping is None:
            raise ValueError("the region is closed")
        for start, count in pages.runs:
            self._mapping.madvise(MADV_POPULATE_READ, int(start) * PAGE_BYTES, int(count) * PAGE_BYTES)

    def touched(self) -> PageSet:
        """The pages that have memory behind them; all the others are zero, and always were.

        Pages are looked at one stretch after the other while the guest runs: one that is touched meanwhile
        may or may not be in the result, so a tracker must have been started before. Costs two calls for each
        stretch. Not for two threads, or two processes which share the descriptor, at once: they move one file
        offset.

        lseek(2), SEEK_DATA and SEEK_HOLE. On tmpfs a page that was swapped out counts as data, which is why
        this is not mincore(2).
        """
        fd = self.fd
        runs: list[tuple[int, int]] = []
        end = 0
        while end < self.size:
            try:
                start = os.lseek(fd, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end
                    break
                raise
            end = os.lseek(fd, start, os.SEEK_HOLE)
            # A large folio may hold data past the last page of a smaller file; RAM ends where RAM ends.
            first, past = start // PAGE_BYTES, min(-(-end // PAGE_BYTES), self.pages)
            runs.append((first, past - first))
        return PageSet.from_runs(runs)

    def zero(self, pages: PageSet) -> PageSet:
        """Those of `pages` which are zero from their first byte to their last.

        A few words of each page decide for nearly all pages that are not; only the rest is read in full.
        """
        candidates = pages.indices()
        for word in SAMPLES:
            candidates = candidates[self._words[candidates, word] == 0]
        blocks = (candidates[at : at + BLOCK_PAGES] for at in range(0, len(candidates), BLOCK_PAGES))
        found = [block[~self._words[block].any(axis=1)] for block in blocks]
        return PageSet.from_indices(np.concatenate(found)) if found else PageSet.empty()

    def close(self) -> None:
        """Close the memfd and give up the mapping. May be called twice.

        The mapping itself goes when the last slice that somebody took of `view` or `array` has gone: an
        access through such a slice never meets memory that is no longer there.
        """
        if self._mapping is None:
            return
        self._mapping = None
        del self.view, self.array, self._words
        os.close(self._fd)

    def __enter__(self) -> Region:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("guest RAM is not pickled: it crosses the network as pages")
