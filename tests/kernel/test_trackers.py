"""The contract of dirty trackers. Each tracker follows another process, as it does in a migration.

The suite is run by every tracker that works here; TESTBED_REQUIRE says which ones must. At the end stand
trackers that are wrong on purpose: the suite is worth something only if it finds them out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, nullcontext

import numpy as np
import pytest

from testbed.kernel import pagemap
from testbed.kernel import userfaultfd as uffd
from testbed.memory import soft_dirty
from testbed.memory.pages import PAGE_BYTES, PageSet
from testbed.memory.region import Region
from testbed.memory.tracking import NAMES, DirtyTracker
from testbed.memory.userfaultfd import REGIONS, UserfaultfdTracker
from tests.kernel.features import require_tracker
from tests.kernel.guest_process import SCRIBBLED_WORD, GuestProcess, guest_process

PAGES = 4096

@pytest.fixture
def guest() -> Iterator[GuestProcess]:
    with Region.create(PAGES * PAGE_BYTES) as region, guest_process(region) as guest:
        yield guest


@pytest.fixture(params=NAMES)
def tracker(request: pytest.FixtureRequest, guest: GuestProcess) -> Iterator[DirtyTracker]:
    name = request.param
    require_tracker(name)
    with closing(guest.tracker(name)) as tracker:
        assert tracker.name == name
        yield tracker


@pytest.fixture
def userfaultfd(guest: GuestProcess) -> Iterator[DirtyTracker]:
    require_tracker("userfaultfd")
    with closing(guest.tracker("userfaultfd")) as tracker:
        yield tracker


def pages(*numbers: int) -> PageSet:
    return PageSet.from_indices(list(numbers))


def test_the_guest_is_another_mapping(guest: GuestProcess) -> None:
    """Else a tracker that watches the collecting process by mistake would pass all that follows."""
    assert guest.pid != os.getpid()
    assert guest.subject.address != guest.subject.region.address


def test_what_is_written_is_seen_and_nothing_else(tracker: DirtyTracker, guest: GuestProcess) -> None:
    guest.write(range(100, 200))
    tracker.start()
    # touched before and not, at both ends, alone and in a row
    guest.write([0, 101, 102, 103, 3000, PAGES - 1], 2)
    assert tracker.collect() == pages(0, 101, 102, 103, 3000, PAGES - 1)
    assert tracker.collect() == PageSet.empty()


def test_reading_is_not_writing(tracker: DirtyTracker, guest: GuestProcess) -> None:
    guest.write(range(50))
    tracker.start()
    guest.read(range(100))
    assert tracker.collect() == PageSet.empty()
    guest.write([20, 80], 2)
    assert tracker.collect() == pages(20, 80)


def test_every_collection_tells_of_its_own_time(tracker: DirtyTracker, guest: GuestProcess) -> None:
    tracker.start()
    for value in range(1, 6):
        guest.write([7, 100 + value], value)
        assert tracker.collect() == pages(7, 100 + value)
    assert tracker.collect() == PageSet.empty()


def test_what_the_kernel_writes_is_seen(tracker: DirtyTracker, guest: GuestProcess) -> None:
    guest.write(range(20))
    tracker.start()
    guest.receive(5 * PAGE_BYTES + 4000, 200)
    guest.receive(3000 * PAGE_BYTES, 3 * PAGE_BYTES)
    assert tracker.collect() == pages(5, 6, 3000, 3001, 3002)
    guest.receive(9 * PAGE_BYTES - 1, 2)
    assert tracker.collect() == pages(8, 9)


def test_old_bytes_again_are_a_write_to_an_exact_tracker(tracker: DirtyTracker, guest: GuestProcess) -> None:
    """The digest tracker cannot see it, and says so by `exact`: who uses it must know."""
    guest.write([30], 1)
    tracker.start()
    guest.write([30], 2)
    guest.write([30], 1)
    assert tracker.collect() == (pages(30) if tracker.exact else PageSet.empty())
    assert tracker.exact == (tracker.name != "digest")


def test_stopping_and_starting_again(tracker: DirtyTracker, guest: GuestProcess) -> None:
    """A migration was rolled back, the guest ran on, and the next one begins."""
    tracker.start()
    guest.write([1, 2], 1)
    tracker.stop()
    guest.write([2, 3], 2)
    tracker.start()
    guest.write([3, 4], 3)
    assert tracker.collect() == pages(3, 4)
    tracker.start()
    assert tracker.collect() == PageSet.empty()


def test_it_is_not_silent_about_not_being_started(tracker: DirtyTracker, guest: GuestProcess) -> None:
    tracker.stop()
    with pytest.raises(RuntimeError, match="not started"):
        tracker.collect()
    tracker.start()
    guest.write([1])
    tracker.stop()
    with pytest.raises(RuntimeError, match="not started"):
        tracker.collect()


def test_tracking_takes_no_memory_of_pages_never_touched(tracker: DirtyTracker, guest: GuestProcess) -> None:
    """A guest of many GiB that uses few must not come to cost them all because it is tracked."""
    guest.write(range(50))
    tracker.start()
    guest.write(range(40, 60), 2)
    tracker.collect()
    tracker.stop()
    assert guest.subject.region.touched() == PageSet.all(60)


def test_every_other_page(tracker: DirtyTracker, guest: GuestProcess) -> None:
    tracker.start()
    guest.write(range(1, PAGES, 2))
    assert tracker.collect() == PageSet.from_indices(np.arange(1, PAGES, 2))


def test_nothing_is_missed_while_the_guest_writes_on(tracker: DirtyTracker, guest: GuestProcess) -> None:
    stale, collections = copy_while_it_is_written(tracker, guest)
    assert stale == PageSet.empty()
    assert collections > 0, "nothing was collected while the guest wrote: this was no test"


ROUNDS = 10


def copy_while_it_is_written(tracker: DirtyTracker, guest: GuestProcess) -> tuple[PageSet, int]:
    """What a migration does, ROUNDS times: copy all, then what was written, while it is being written.

    In the guest's last pass over its pages each is written once, so a page that was missed stays missed.
    Returns the pages whose copy ever was another than the original in the end, and how many collections met a
    running guest.
    """
    words = guest.subject.region.array.view(np.uint64)[:, SCRIBBLED_WORD]
    stale, collections = PageSet.empty(), 0
    for seed in range(ROUNDS):
        tracker.start()
        copy = words.copy()
        guest.scribble(PAGES, passes=5, seed=seed)
        done = False
        while not done:
            done = guest.has_answered()  # what was written before it answered is seen by the collection after
            dirty = tracker.collect().indices()
            copy[dirty] = words[dirty]
            collections += not done
        stale |= PageSet.from_mask(copy != words)
    return stale, collections


def test_a_dead_guest_is_not_one_that_writes_nothing(tracker: DirtyTracker, guest: GuestProcess) -> None:
    if tracker.name == "digest":
        pytest.skip("compares RAM, which outlives the guest")
    tracker.start()
    guest.write([5])
    guest.die()
    with pytest.raises(ProcessLookupError):
        tracker.collect()
    tracker.stop()


def test_a_scan_that_finds_the_dead_clean_is_not_believed(
    userfaultfd: DirtyTracker, guest: GuestProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 6.12 scans so of itself, 6.18 does not."""
    userfaultfd.start()
    monkeypatch.setattr(pagemap, "scan", lambda _fd, _start, end, *_, **__: (0, end))
    assert userfaultfd.collect() == PageSet.empty()
    guest.die()
    with pytest.raises(ProcessLookupError):
        userfaultfd.collect()


def test_more_runs_than_one_scan_returns(guest: GuestProcess) -> None:
    """The walk goes on where the result was full. (The other trackers have no result that could be full.)"""
    require_tracker("userfaultfd")
    many = REGIONS * 5
    with Region.create(many * PAGE_BYTES) as region, guest_process(region) as guest:
        with closing(guest.tracker("userfaultfd")) as tracker:
            tracker.start()
            written = np.arange(0, many, 2)
            for part in np.array_split(written, 8):
                guest.write(part.tolist())
            assert len(written) > 2 * REGIONS
            assert tracker.collect() == PageSet.from_indices(written)
            assert tracker.collect() == PageSet.empty()


def test_stopping_gives_the_guest_its_speed_back(userfaultfd: DirtyTracker, guest: GuestProcess) -> None:
    guest.write(range(500))
    assert protected(guest) == PageSet.empty()
    userfaultfd.start()
    assert len(protected(guest)) >= 500
    guest.write(range(0, 500, 2))
    userfaultfd.collect()
    userfaultfd.stop()
    assert protected(guest) == PageSet.empty()


def test_no_protection_before_the_start(userfaultfd: DirtyTracker, guest: GuestProcess) -> None:
    """A guest that merely could be tracked pays nothing for it."""
    guest.write(range(500))
    faults_untracked = guest.write(range(500))
    userfaultfd.start()
    faults_tracked = guest.write(range(500))
    assert faults_untracked < 50, "a few may be of the interpreter's own"
    assert faults_tracked >= 500


def protected(guest: GuestProcess) -> PageSet:
    fd = pagemap.open_pagemap(guest.pid)
    try:
        entries = pagemap.read_entries(fd, guest.subject.address, guest.subject.region.pages)
    finally:
        os.close(fd)
    return PageSet.from_mask((entries & np.uint64(pagemap.PM_UFFD_WP)) != 0)


def test_a_tracker_that_lost_its_userfaultfd_says_so(guest: GuestProcess) -> None:
    """Tracking ends with the last copy of the descriptor: the scan must not find all of RAM clean then."""
    require_tracker("userfaultfd")
    with closing(guest.tracker("userfaultfd")) as tracker:
        assert isinstance(tracker, UserfaultfdTracker)
        tracker.start()
        guest.write([3])
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, tracker._uffd)
        os.close(null)
        with pytest.raises(PermissionError):
            tracker.collect()
        tracker._tracking = False  # so that closing does not want to unprotect through /dev/null


def test_no_descriptor_stays(tracker: DirtyTracker) -> None:
    name = tracker.name
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a folder of the kernel
    with Region.create(PAGE_BYTES) as region, guest_process(region) as guest, closing(guest.tracker(name)):
        pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - the same


# Trackers that are wrong on purpose. What makes a tracker right is taken out, and the suite must notice.


def is_found_out(tracker: DirtyTracker, guest: GuestProcess) -> bool:
    """Whether a page is missed; on a loaded machine the two may have to meet more than once for that."""
    return any(copy_while_it_is_written(tracker, guest)[0] for _ in range(20))


class ScanThenProtect(UserfaultfdTracker):
    """Reads and protects in two steps instead of one: a write between them is lost."""

    def collect(self) -> PageSet:
        filled, _ = pagemap.scan(
            self._pagemap,
            self._address,
            self._address + self._size,
            self._regions,
            flags=pagemap.PM_SCAN_CHECK_WPASYNC,
            category_mask=pagemap.PAGE_IS_WRITTEN,
            return_mask=pagemap.PAGE_IS_WRITTEN,
        )
        found = (self._regions[:filled, :2] - np.uint64(self._address)) // np.uint64(PAGE_BYTES)
        found[:, 1] -= found[:, 0]
        uffd.writeprotect(self._uffd, self._address, self._size, uffd.UFFDIO_WRITEPROTECT_MODE_WP)
        return PageSet.from_runs(found)


def test_control_two_steps_miss_writes(guest: GuestProcess) -> None:
    require_tracker("userfaultfd")
    with closing(ScanThenProtect(*guest.take_userfaultfd())) as tracker:
        tracker.start()
        guest.write([1, 2])
        assert tracker.collect() == pages(1, 2), "at rest it is right"
        assert is_found_out(tracker, guest)


def test_control_soft_dirty_without_stopping_misses_writes(
    guest: GuestProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_tracker("soft-dirty")
    monkeypatch.setattr(soft_dirty, "stopped", lambda _: nullcontext())
    with closing(guest.tracker("soft-dirty")) as tracker:
        assert is_found_out(tracker, guest)
