"""What the kernel itself offers to trackers, found without them: else a broken tracker would pass for a
missing feature.
"""

from __future__ import annotations

import mmap
import os

import numpy as np

from testbed.kernel import pagemap
from testbed.kernel import userfaultfd as uffd
from testbed.memory.pages import PAGE_BYTES
from tests.conftest import require

NAMES = {"userfaultfd": "userfaultfd-wp-async", "soft-dirty": "soft-dirty", "digest": "digest"}
"""What a machine must have for each tracker, in the words of TESTBED_REQUIRE."""


def require_tracker(name: str) -> None:
    """Skip the test where the kernel does not have what tracker `name` is made of."""
    require(NAMES[name], lambda: has(name))


def has(name: str) -> bool:
    """Whether the kernel has it; an OSError, which says what was refused, counts as no."""
    match name:
        case "userfaultfd":
            return _has_write_tracking()
        case "soft-dirty":
            return _has_soft_dirty()
        case "digest":
            return True
    raise ValueError(name)


def _has_write_tracking() -> bool:
    own = uffd.userfaultfd(os.O_CLOEXEC | uffd.UFFD_USER_MODE_ONLY)
    try:
        uffd.api(own, uffd.UFFD_FEATURE_WP_ASYNC)
    finally:
        os.close(own)
    own = pagemap.open_pagemap(os.getpid())
    nothing = np.empty((1, pagemap.PAGE_REGION_WORDS), np.uint64)
    try:
        pagemap.scan(own, 0, PAGE_BYTES, nothing, flags=0, category_mask=0, return_mask=0)
    finally:
        os.close(own)
    return True


def _has_soft_dirty() -> bool:
    own = pagemap.open_pagemap(os.getpid())
    try:
        with mmap.mmap(-1, PAGE_BYTES) as memory:
            page = np.frombuffer(memory, np.uint8)
            address = page.ctypes.data
            page[0] = 1
            pagemap.clear_refs(os.getpid(), pagemap.CLEAR_REFS_SOFT_DIRTY)
            clean = int(pagemap.read_entries(own, address, 1)[0]) & pagemap.PM_SOFT_DIRTY
            page[0] = 2
            dirty = int(pagemap.read_entries(own, address, 1)[0]) & pagemap.PM_SOFT_DIRTY
            del page
    finally:
        os.close(own)
    return not clean and bool(dirty)
