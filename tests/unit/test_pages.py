"""PageSet against Python's own set, which is slow and certainly right."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from testbed.memory.pages import PAGE_LIMIT, PageSet

# Runs close together, so that they overlap, touch and lie a page apart all the time.
some_runs = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=12)
some_pages = st.sets(st.integers(0, 80))


def model(runs: list[tuple[int, int]]) -> set[int]:
    return {page for start, count in runs for page in range(start, start + count)}


def check_shape(pages: PageSet) -> None:
    """What every PageSet promises of its runs."""
    runs = pages.runs
    assert runs.dtype == np.int64
    assert runs.shape == (len(runs), 2)
    assert not runs.flags.writeable
    assert (runs[:, 1] >= 1).all()
    assert (runs[1:, 0] > runs[:-1].sum(axis=1)).all(), "unsorted, overlapping or adjacent"


@given(some_runs)
@example([(0, 2), (2, 3)])
@example([(0, 2), (3, 3)])
def test_from_runs(runs: list[tuple[int, int]]) -> None:
    pages = PageSet.from_runs(runs)
    check_shape(pages)
    assert pages.indices().tolist() == sorted(model(runs))
    assert len(pages) == len(model(runs))
    assert pages.end == max(model(runs), default=-1) + 1
    assert PageSet.from_runs(pages.runs) == pages


@given(some_pages)
def test_every_form_says_the_same(numbers: set[int]) -> None:
    pages = PageSet.from_indices(np.array(list(numbers), np.int64))
    check_shape(pages)
    assert set(pages.indices().tolist()) == numbers
    mask = pages.to_mask(100)
    assert mask.dtype == np.bool_
    assert set(np.flatnonzero(mask).tolist()) == numbers
    again = PageSet.from_mask(mask)
    check_shape(again)
    assert again == pages
    assert hash(again) == hash(pages)
    assert [page for page in range(-1, 100) if page in pages] == sorted(numbers)


@given(some_pages, some_pages)
@pytest.mark.parametrize("operation", [operator.or_, operator.and_, operator.sub])
def test_operations(operation, left: set[int], right: set[int]) -> None:  # type: ignore[no-untyped-def]
    result = operation(PageSet.from_indices(list(left)), PageSet.from_indices(list(right)))
    check_shape(result)
    assert set(result.indices().tolist()) == operation(left, right)
    assert bool(result) is bool(operation(left, right))


@given(some_runs, st.integers(1, 9))
def test_pieces(runs: list[tuple[int, int]], most: int) -> None:
    pages = PageSet.from_runs(runs)
    pieces = pages.pieces(most)
    covered = [page for start, count in pieces for page in range(start, start + count)]
    assert covered == pages.indices().tolist()
    assert all(1 <= count <= most for _, count in pieces)
    assert len(pieces) == sum(-(-count // most) for _, count in pages.runs.tolist())


def test_empty_and_all() -> None:
    assert len(PageSet.empty()) == 0
    assert not PageSet.empty()
    assert PageSet.empty() == PageSet() == PageSet.all(0) == PageSet.from_indices([]) == PageSet.from_runs([])
    assert PageSet.all(7).runs.tolist() == [[0, 7]]
    assert PageSet.all(7) != PageSet.all(8)
    assert PageSet.empty().pieces(4).shape == (0, 2)
    assert PageSet.empty().to_mask(3).tolist() == [False] * 3


@pytest.mark.parametrize(
    "runs",
    [
        [(-1, 2)],
        [(3, 0)],
        [(3, -1)],
        [(0, 1), (PAGE_LIMIT, 1)],
        [(PAGE_LIMIT - 1, 2)],
        np.array([[2**63 - 1, 2**63 - 1]]),
        np.array([[2**64 - 1, 2]], np.uint64),
        np.array([[0.5, 1]]),
        np.array([[1, 2, 3]]),
        np.array([1, 2]),
    ],
)
def test_runs_that_are_refused(runs: object) -> None:
    with pytest.raises(ValueError, match="run"):
        PageSet.from_runs(runs)  # type: ignore[arg-type]


@pytest.mark.parametrize("numbers", [[-1], [PAGE_LIMIT], [0.5]])
def test_numbers_that_are_refused(numbers: list[float]) -> None:
    with pytest.raises(ValueError, match="page numbers"):
        PageSet.from_indices(numbers)


def test_a_mask_is_never_cut_short() -> None:
    with pytest.raises(ValueError, match="page 7 is outside"):
        PageSet.all(8).to_mask(7)
    with pytest.raises(ValueError, match="row of bools"):
        PageSet.from_mask(np.zeros(3, np.uint8))


def test_runs_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        PageSet.all(3).runs[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        PageSet.all(3).runs += 1
