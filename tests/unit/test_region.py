"""Guest RAM: what it refuses, what counts as touched, what counts as zero."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Iterator

import numpy as np
import pytest

from testbed.memory.pages import PAGE_BYTES, PageSet
from testbed.memory.region import Region

PAGES = 600


@pytest.fixture
def region() -> Iterator[Region]:
    with Region.create(PAGES * PAGE_BYTES) as region:
        yield region


@pytest.mark.parametrize("size", [0, -PAGE_BYTES, 1, PAGE_BYTES + 1])
def test_size_is_whole_pages(size: int) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        Region.create(size)


def test_two_mappings_are_one_ram(region: Region) -> None:
    with Region.from_fd(os.dup(region.fd)) as other:
        assert (other.size, other.pages) == (region.size, region.pages)
        assert other.address != region.address
        region.array[3, 5] = 77
        assert other.view[3 * PAGE_BYTES + 5] == 77


def test_a_descriptor_of_another_size_is_refused_and_stays_open() -> None:
    fd = os.memfd_create("short")
    os.ftruncate(fd, 100)
    with pytest.raises(ValueError, match="not guest RAM"):
        Region.from_fd(fd)
    os.close(fd)


@pytest.mark.parametrize("size", [0, (PAGES - 1) * PAGE_BYTES, (PAGES + 1) * PAGE_BYTES])
def test_the_size_is_sealed(region: Region, size: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(region.fd, size)


def test_touched(region: Region) -> None:
    assert region.touched() == PageSet.empty()
    written = PageSet.from_runs([(0, 1), (5, 3), (PAGES - 1, 1)])
    for page in written.indices():
        region.array[page, 9] = 1
    assert region.touched() == written
    _ = int(region.array[100, 0])
    assert 100 in region.touched(), "reading through the mapping gives a page memory, as the docstring warns"


def test_populate_keeps_what_is_there(region: Region) -> None:
    region.view[12345] = 99
    region.populate()
    assert region.touched() == PageSet.all(PAGES)
    assert region.view[12345] == 99
    assert not region.view[12346]


def test_zero_looks_at_every_byte(region: Region) -> None:
    """A page with one byte set is not zero, whatever byte it is: those that are sampled, and all between."""
    for byte in range(PAGE_BYTES):
        page = byte % PAGES
        region.array[page, byte] = 1
        assert region.zero(PageSet.from_runs([(page, 1)])) == PageSet.empty(), byte
        region.array[page, byte] = 0
    assert region.zero(PageSet.all(PAGES)) == PageSet.all(PAGES)


def test_zero_answers_for_the_pages_asked(region: Region) -> None:
    generator = np.random.default_rng(7)
    nonzero = np.flatnonzero(generator.integers(0, 2, PAGES))
    region.array[nonzero, generator.integers(0, PAGE_BYTES, len(nonzero))] = 255
    asked = PageSet.from_runs([(3, 290), (400, 1), (450, 100)])
    assert region.zero(asked) == asked - PageSet.from_indices(nonzero)
    assert region.zero(PageSet.empty()) == PageSet.empty()


def test_close_leaves_no_descriptor_and_no_mapping() -> None:
    def held() -> tuple[int, bool]:
        with open("/proc/self/maps") as maps:  # noqa: PTH123 - a file of the kernel
            mapped = "guest-ram" in maps.read()
        return len(os.listdir("/proc/self/fd")), mapped  # noqa: PTH208 - the same

    gc.collect()  # other tests' descriptors go now, or never
    before = held()
    region = Region.create(PAGE_BYTES)
    assert held() == (before[0] + 2, True)
    region.close()
    region.close()
    assert held() == before
    with pytest.raises(ValueError, match="closed"):
        _ = region.fd


def test_a_slice_outlives_its_region() -> None:
    region = Region.create(PAGE_BYTES)
    slice_ = region.array[0, 10:20]
    region.close()
    slice_[:] = 5
    assert slice_.sum() == 50


def test_never_pickled(region: Region) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(region)


def test_mapping_in_gives_no_page_memory_that_had_none_else() -> None:
    with Region.create(64 * PAGE_BYTES) as region:
        region.array[3:5] = 1
        with Region.from_fd(os.dup(region.fd)) as other:
            other.map_in(region.touched())
            assert other.array[3:5].all()
        assert region.touched() == PageSet.from_runs([(3, 2)])
