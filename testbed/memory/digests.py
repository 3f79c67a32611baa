"""One digest per page of guest RAM, to prove that two copies of it are equal.

The table is kept up while the guest still runs: a page that stays clean is digested once, outside the
blackout, and the blackout pays for the pages of the last round only. Two tables are compared by their roots,
16 bytes each; where the roots differ the tables themselves say which pages do.

The digest is XXH3 with 64 bits. It finds damage and mistakes, whatever bit they flip, with an error of 2**-64
a page; it is no protection against somebody who can choose the contents of a page.
"""

from __future__ import annotations

import sys
from itertools import chain

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from testbed.memory.pages import PAGE_BYTES, PageSet
from testbed.memory.region import Region

Table = npt.NDArray[np.uint64]

ZERO_PAGE_DIGEST: int = xxh3_64_intdigest(bytes(PAGE_BYTES))


class PageDigests:
    """The digest of each page of a RAM of `pages` pages, in :attr:`table`, a uint64 array.

    New RAM is zero, and so the table starts with the digest of the zero page everywhere: a page that was
    never touched needs no :meth:`update`, which by reading it would give it memory (see
    :class:`~testbed.memory.region.Region`).
    """

    def __init__(self, pages: int) -> None:
        self.table: Table = np.full(pages, ZERO_PAGE_DIGEST, np.uint64)

    def update(self, region: Region, pages: PageSet) -> None:
        """Digest `pages` as they are in `region` now.

        A page that is written meanwhile gets the digest of neither of its contents; its tracker reports it,
        so it will come again. Raises ValueError where the region has another number of pages than the table,
        or `pages` goes past its end; nothing is changed then.
        """
        if region.pages != len(self.table) or pages.end > region.pages:
            raise ValueError(
                f"{len(self.table)} digests for {region.pages} pages of RAM, asked up to page {pages.end}"
            )
        starts, ends = pages.runs[:, 0].tolist(), pages.runs.sum(axis=1).tolist()
        rows = chain.from_iterable(map(region.array.__getitem__, map(slice, starts, ends)))
        # One pass for all runs: what a round dirtied is often thousands of runs of one page.
        self.table[pages.indices()] = np.fromiter(map(xxh3_64_intdigest, rows), np.uint64, len(pages))

    def root(self) -> bytes:
        """The digest of the table: 16 bytes, equal exactly where the tables are equal, on every architecture.
        """
        table = self.table if sys.byteorder == "little" else self.table.byteswap()
        return bytes(xxh3_128_digest(table.data))

    def differing(self, other: PageDigests | Table) -> PageSet:
        """The pages whose digests differ between this table and `other`, which has as many pages (else
        ValueError).
        """
        table = other.table if isinstance(other, PageDigests) else other
        if table.shape != self.table.shape:
            raise ValueError(f"{table.size} digests cannot be compared with {self.table.size}")
        return PageSet.from_mask(self.table != table)
