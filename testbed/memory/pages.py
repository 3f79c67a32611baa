"""Sets of guest pages, held as runs.

A migration handles pages by the hundred thousand and nearly always in stretches: the RAM that was ever
touched, what a round has dirtied, what is all zero. A :class:`PageSet` keeps the stretches, so its cost
follows the number of runs and not the number of pages, and every operation is a handful of numpy calls.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

PAGE_BYTES = 4096
"""Size of a page of guest RAM in bytes: the granularity of tracking, of digests and of the wire."""

PAGE_LIMIT = 1 << 48
"""Page numbers are below this (2**60 bytes of RAM), which keeps all arithmetic on them far from overflow."""

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class PageSet:
    """An immutable set of page numbers.

    `runs` is an int64 array of shape (n, 2), read-only, each row (start, count). Rows are sorted, disjoint
    and not adjacent, and no count is below 1, so that two equal sets have equal runs.

    Made by the class methods; ``PageSet()`` is the empty set.
    """

    __slots__ = ("_pages", "runs")

    runs: Integers

    def __init__(self) -> None:
        self.runs = _NO_RUNS
        self._pages = 0

    @classmethod
    def _of(cls, starts: Integers, ends: Integers) -> PageSet:
        """The set of the half-open intervals [start, end), which are sorted, disjoint and not adjacent
        already.
        """
        result = cls()
        if len(starts):
            result.runs = np.stack((starts, ends - starts), axis=1)
            result.runs.flags.writeable = False
            result._pages = int(result.runs[:, 1].sum())
        return result

    @classmethod
    def empty(cls) -> PageSet:
        """The set without pages."""
        return cls()

    @classmethod
    def all(cls, pages: int) -> PageSet:
        """Pages 0 to `pages` - 1."""
        return cls.from_runs([(0, pages)]) if pages else cls()

    @classmethod
    def from_runs(cls, runs: npt.ArrayLike | Iterable[tuple[int, int]]) -> PageSet:
        """The union of `runs`, rows of (start, count), in any order, overlapping or not.

        Raises ValueError where a start is negative, a count below 1, a page at or over PAGE_LIMIT, or the
        shape is not (n, 2): the rows may come from a peer.
        """
        table = np.asarray(runs if isinstance(runs, np.ndarray) else list(runs))  # type: ignore[arg-type]
        if table.size == 0:
            return cls()
        if table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind not in "iu":
            raise ValueError(f"runs are rows of two integers, not {table.dtype} of shape {table.shape}")
        # Checked in the dtype that came, by comparison alone, so that no value can wrap before it is refused.
        if (table < 0).any() or (table > PAGE_LIMIT).any() or (table[:, 1] < 1).any():
            raise ValueError(f"a run has a negative start, no pages, or a page over {PAGE_LIMIT}")
        starts, counts = table.astype(np.int64).T
        ends = starts + counts
        if (ends > PAGE_LIMIT).any():
            raise ValueError(f"a run goes on past page {PAGE_LIMIT}")
        if (starts[1:] > ends[:-1]).all():
            return cls._of(starts, ends)
        positions, depths = _sweep(np.concatenate((starts, ends)), _steps(len(starts)))
        return cls._of(*_intervals(positions, depths > 0))

    @classmethod
    def from_indices(cls, pages: npt.ArrayLike) -> PageSet:
        """The set of the page numbers in `pages`, in any order, repeated or not.

        Raises ValueError for a number that is negative or at PAGE_LIMIT and over.
        """
        numbers = np.unique(np.asarray(pages))
        if numbers.size == 0:
            return cls()
        if numbers.dtype.kind not in "iu" or numbers[0] < 0 or numbers[-1] >= PAGE_LIMIT:
            raise ValueError(f"page numbers are integers from 0 to {PAGE_LIMIT - 1}")
        numbers = numbers.astype(np.int64)
        gaps = np.flatnonzero(np.diff(numbers) != 1)
        starts = numbers[np.concatenate(([0], gaps + 1))]
        return cls._of(starts, numbers[np.concatenate((gaps, [-1]))] + 1)

    @classmethod
    def from_mask(cls, mask: Mask) -> PageSet:
        """The set of the pages whose element of the one-dimensional bool array `mask` is true."""
        if mask.dtype != np.bool_ or mask.ndim != 1:
            raise ValueError(f"a mask is one row of bools, not {mask.dtype} of shape {mask.shape}")
        edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
        return cls._of(edges[0::2], edges[1::2])

    def to_mask(self, size: int) -> Mask:
        """A bool array of `size` elements, true at the pages of the set. ValueError if a page is not below
        `size`.
        """
        if self.end > size:
            raise ValueError(f"page {self.end - 1} is outside of {size} pages")
        steps = np.zeros(size + 1, np.int8)
        steps[self.runs[:, 0]] = 1
        steps[self.runs.sum(axis=1)] = -1
        return np.cumsum(steps, dtype=np.int8)[:-1].view(np.bool_)

    def indices(self) -> Integers:
        """The page numbers in ascending order."""
        starts, counts = self.runs.T
        before = np.cumsum(counts) - counts
        return np.repeat(starts - before, counts) + np.arange(self._pages)

    def pieces(self, most: int) -> Integers:
        """The same pages as rows of (start, count), in ascending order, no count above `most`.

        What a sender goes through: a piece is one stretch of RAM that fits into one message.
        """
        if most < 1:
            raise ValueError(f"a piece has at least one page, not {most}")
        starts, counts = self.runs.T
        parts = -(-counts // most)
        first = np.cumsum(parts) - parts
        offsets = (np.arange(int(parts.sum())) - np.repeat(first, parts)) * most
        lengths = np.minimum(np.repeat(counts, parts) - offsets, most)
        return np.stack((np.repeat(starts, parts) + offsets, lengths), axis=1)

    @property
    def end(self) -> int:
        """One more than the last page; 0 for the empty set."""
        return int(self.runs[-1].sum()) if self._pages else 0

    def __len__(self) -> int:
        """How many pages the set has."""
        return self._pages

    def __contains__(self, page: int) -> bool:
        at = int(np.searchsorted(self.runs[:, 0], page, side="right")) - 1
        return at >= 0 and page < int(self.runs[at].sum())

    def __or__(self, other: PageSet) -> PageSet:
        """Pages of either set."""
        return _combine(self, other, np.logical_or)

    def __and__(self, other: PageSet) -> PageSet:
        """Pages of both sets."""
        return _combine(self, other, np.logical_and)

    def __sub__(self, other: PageSet) -> PageSet:
        """Pages of this set which are not in `other`."""
        return _combine(self, other, np.greater)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PageSet):
            return NotImplemented
        return np.array_equal(self.runs, other.runs)

    def __hash__(self) -> int:
        return hash(self.runs.tobytes())

    def __repr__(self) -> str:
        shown = ", ".join(f"{start}+{count}" for start, count in self.runs[:8])
        more = f", and {len(self.runs) - 8} runs more" if len(self.runs) > 8 else ""
        return f"<PageSet of {self._pages}: {shown}{more}>"


_NO_RUNS: Integers = np.empty((0, 2), np.int64)
_NO_RUNS.flags.writeable = False


def _combine(left: PageSet, right: PageSet, keep: Callable[[Mask, Mask], Mask]) -> PageSet:
    """The pages for which `keep(in left, in right)` is true; it must be false where both are false.

    The edges of both sets are walked in ascending order while two counters say which of the sets we are
    inside.
    """
    edges = np.concatenate((left.runs[:, 0], left.runs.sum(axis=1), right.runs[:, 0], right.runs.sum(axis=1)))
    steps = np.zeros((len(edges), 2), np.int64)
    steps[: 2 * len(left.runs), 0] = _steps(len(left.runs))
    steps[2 * len(left.runs) :, 1] = _steps(len(right.runs))
    positions, depths = _sweep(edges, steps)
    inside = depths > 0
    return PageSet._of(*_intervals(positions, keep(inside[:, 0], inside[:, 1])))


def _steps(runs: int) -> Integers:
    """What the edges of `runs` runs, all starts and then all ends, add to the depth."""
    return np.repeat(np.array([1, -1]), runs)


def _sweep(edges: Integers, steps: Integers) -> tuple[Integers, Integers]:
    """The distinct edges in ascending order, and how deep we are inside runs from each of them to the next.
    """
    order = np.argsort(edges, kind="stable")
    edges = edges[order]
    depths = np.cumsum(steps[order], axis=0)
    last = np.append(edges[1:] != edges[:-1], True)[: len(edges)]
    return edges[last], depths[last]


def _intervals(positions: Integers, inside: Mask) -> tuple[Integers, Integers]:
    """Starts and ends of the stretches where `inside`, which holds from its position to the next, is true."""
    before = np.append(False, inside[:-1])[: len(inside)]
    return positions[inside & ~before], positions[before & ~inside]
