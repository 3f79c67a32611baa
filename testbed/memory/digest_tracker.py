"""Dirty tracking by comparison: a page whose digest is another than at the last collection was written.

Works on every kernel and without any privilege, needs nothing of the guest, and sees a write from whatever
side. It costs a pass over all touched RAM for each collection (about 10 GB a second), and one thing it cannot
see: a page that was written and then got its old bytes back between two collections. Who copied such a page
in between holds bytes that are nowhere in the guest any more, while this tracker says that the page is clean.
So it is not `exact`: a migration with it must compare the digests of all pages before it commits, and send
those that differ.
"""

from __future__ import annotations

from testbed.memory.digests import PageDigests
from testbed.memory.pages import PageSet
from testbed.memory.region import Region


class DigestTracker:
    """Tracks all of `region`, which stays the caller's, by 8 bytes a page."""

    name = "digest"
    exact = False

    def __init__(self, region: Region) -> None:
        self._region = region
        self._digests: PageDigests | None = None

    def start(self) -> None:
        self._digests = self._digest()

    def collect(self) -> PageSet:
        if self._digests is None:
            raise RuntimeError("the tracker was not started")
        before, self._digests = self._digests, self._digest()
        return self._digests.differing(before)

    def stop(self) -> None:
        self._digests = None

    def close(self) -> None:
        self.stop()

    def _digest(self) -> PageDigests:
        # A page never touched is zero, as the table says already; to read it would cost a page of memory.
        digests = PageDigests(self._region.pages)
        digests.update(self._region, self._region.touched())
        return digests
