"""Maps of pages: what the runs say, whatever the sizes; nothing that is there vanishes."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.memory.page_map import FULL, MOST_CELLS, cell_pages, decode, encode, shares
from testbed.memory.pages import PageSet


@given(st.integers(1, 20_000), st.lists(st.integers(0, 19_999), max_size=200))
def test_shares_are_those_of_the_mask(ram_pages: int, numbers: list[int]) -> None:
    pages = PageSet.from_indices([one for one in numbers if one < ram_pages])
    mask, size = pages.to_mask(ram_pages), cell_pages(ram_pages)
    cells = shares(pages, ram_pages)
    assert len(cells) == -(-ram_pages // size) <= MOST_CELLS
    for number, value in enumerate(cells.tolist()):
        cell = mask[number * size : (number + 1) * size]
        expected = int(cell.sum()) * FULL // len(cell)
        assert value == (max(expected, 1) if cell.any() else 0)
        assert (value == FULL) == bool(cell.all())


def test_one_page_of_many_gibibytes_shows() -> None:
    ram_pages = 1 << 24
    cells = shares(PageSet.from_indices([12_345_678]), ram_pages)
    assert np.flatnonzero(cells).tolist() == [12_345_678 // cell_pages(ram_pages)]


def test_there_and_back() -> None:
    pages = PageSet.from_runs([(0, 100), (5000, 3)])
    assert np.array_equal(decode(encode(pages, 65536)), shares(pages, 65536))
    assert len(encode(PageSet.all(65536), 65536)) < 100


@pytest.mark.parametrize(
    "text",
    [
        "no base64!",
        base64.b64encode(b"no zlib").decode(),
        base64.b64encode(zlib.compress(bytes(MOST_CELLS + 1))).decode(),
        base64.b64encode(zlib.compress(bytes(64))[:-6]).decode(),
    ],
)
def test_what_is_no_map_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="map of pages"):
        decode(text)


def test_a_page_outside_of_ram_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        shares(PageSet.from_indices([64]), 64)
