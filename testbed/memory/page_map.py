"""Where in RAM the pages of a set lie, small enough for an event: RAM reduced to at most 4096 cells, each
with the share of its pages that are in the set.

Made for pictures. A set of one page among a million still shows: its cell is not 0. Pure.
"""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np
import numpy.typing as npt

from testbed.memory.pages import PageSet

MOST_CELLS = 4096
FULL = 255
"""The value of a cell all of whose pages are in the set."""

Cells = npt.NDArray[np.uint8]


def cell_pages(ram_pages: int) -> int:
    """How many pages a cell stands for; the last one may stand for fewer."""
    return max(1, -(-ram_pages // MOST_CELLS))


def shares(pages: PageSet, ram_pages: int) -> Cells:
    """One value a cell: 0 where it has none of `pages`, 255 where it has all, in between in proportion, but
    at least 1 where there is one and at most 254 where one is missing. ValueError for a page outside of RAM.
    """
    if pages.end > ram_pages:
        raise ValueError(f"page {pages.end - 1} is outside of {ram_pages} pages")
    size = cell_pages(ram_pages)
    edges = np.minimum(np.arange(0, ram_pages + size, size), ram_pages)
    inside = np.diff(_pages_before(pages, edges))
    of = np.diff(edges)
    values = inside * FULL // of
    values = np.where(inside > 0, np.maximum(values, 1), 0)
    return values.astype(np.uint8)


def _pages_before(pages: PageSet, edges: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each edge, how many pages of the set lie below it: a search among the runs, whatever the size of
    RAM."""
    if not len(pages):
        return np.zeros(len(edges), np.int64)
    starts, counts = pages.runs.T
    whole = np.concatenate(([0], np.cumsum(counts)))
    runs_begun = np.searchsorted(starts, edges, side="left")
    last = np.maximum(runs_begun - 1, 0)
    beyond = np.where(runs_begun > 0, np.maximum(starts[last] + counts[last] - edges, 0), 0)
    return np.asarray(whole[runs_begun] - beyond, dtype=np.int64)


def encode(pages: PageSet, ram_pages: int) -> str:
    """The cells of `pages` as text: their bytes, compressed (zlib), in base64."""
    return base64.b64encode(zlib.compress(shares(pages, ram_pages).tobytes(), 1)).decode()


def decode(text: str) -> Cells:
    """The cells again. ValueError where `text` is no such thing, or more than MOST_CELLS."""
    try:
        inflate = zlib.decompressobj()
        cells = inflate.decompress(base64.b64decode(text, validate=True), MOST_CELLS + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"no map of pages: {error}") from error
    if len(cells) > MOST_CELLS or not inflate.eof:
        raise ValueError(f"a map of pages has at most {MOST_CELLS} cells, and an end")
    return np.frombuffer(cells, np.uint8)
