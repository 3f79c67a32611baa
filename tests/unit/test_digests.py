"""Page digests: one flipped bit in any page is found, and only that page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.memory.digests import PageDigests
from testbed.memory.pages import PAGE_BYTES, PageSet
from testbed.memory.region import Region

PAGES = 64


@pytest.fixture(scope="module")
def region() -> Iterator[Region]:
    with Region.create(PAGES * PAGE_BYTES) as region:
        region.array[:] = np.random.default_rng(3).integers(0, 256, region.array.shape, np.uint8)
        region.array[10:20] = 0
        yield region


def digests_of(region: Region) -> PageDigests:
    digests = PageDigests(region.pages)
    digests.update(region, PageSet.all(region.pages))
    return digests


@given(st.integers(0, PAGES * PAGE_BYTES * 8 - 1))
def test_a_flipped_bit_is_found(region: Region, bit: int) -> None:
    before = digests_of(region)
    page = bit // 8 // PAGE_BYTES
    region.view[bit // 8] ^= 1 << bit % 8
    try:
        after = digests_of(region)
    finally:
        region.view[bit // 8] ^= 1 << bit % 8
    assert after.root() != before.root()
    assert after.differing(before) == PageSet.from_indices([page])
    assert after.differing(before.table) == PageSet.from_indices([page])
    assert digests_of(region).root() == before.root()


def test_pages_that_changed_places_are_found(region: Region) -> None:
    before = digests_of(region)
    region.array[[1, 2]] = region.array[[2, 1]]
    assert digests_of(region).differing(before) == PageSet.from_indices([1, 2])
    region.array[[1, 2]] = region.array[[2, 1]]


def test_update_touches_only_what_it_is_told(region: Region) -> None:
    whole = digests_of(region)
    part = PageDigests(PAGES)
    part.update(region, PageSet.from_runs([(0, 5), (9, 3)]))
    assert part.differing(whole) == PageSet.all(PAGES) - PageSet.from_runs([(0, 5), (9, 11)])
    part.update(region, PageSet.all(PAGES) - PageSet.from_runs([(0, 5), (9, 11)]))
    assert part.root() == whole.root(), "zero pages need no update"


def test_new_ram_needs_no_update() -> None:
    with Region.create(PAGES * PAGE_BYTES) as fresh:
        assert digests_of(fresh).root() == PageDigests(PAGES).root()


def test_the_root_is_bytes_that_stay() -> None:
    """Both hosts must come to the same root, so the definition of a root may not drift: this one is written
    down.
    """
    assert PageDigests(3).root().hex() == ROOT_OF_THREE_ZERO_PAGES
    assert PageDigests(4).root() != PageDigests(3).root()


ROOT_OF_THREE_ZERO_PAGES = "4bbf4fac6b8b67433f0f923ee1e6805e"


def test_sizes_that_do_not_fit(region: Region) -> None:
    with pytest.raises(ValueError, match="63 digests for 64 pages"):
        PageDigests(PAGES - 1).update(region, PageSet.empty())
    with pytest.raises(ValueError, match="asked up to page 65"):
        PageDigests(PAGES).update(region, PageSet.from_runs([(60, 5)]))
    with pytest.raises(ValueError, match="cannot be compared"):
        PageDigests(PAGES).differing(PageDigests(PAGES + 1))
