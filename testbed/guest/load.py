"""The memory load: a guest that dirties pages at a set rate beside its program.

Write number n goes to a page that is a pure function of n, the seed and the pattern, so the only state is
n, in RAM: the load goes on after a migration where it was. A write is one word, n + 1, at a place of its
own in the page.

- uniform: every page of the working set is as likely as any other.
- hot-cold: nine writes of ten go to the first tenth of the pages, the others to the rest.
- sequential: one page after the other, round and round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.guest.memory import Memory

PAGE_BYTES = 4096
PATTERNS = ("uniform", "hot-cold", "sequential")
BURST_PAGES = 64
"""Written in one go: with every page protected by a dirty tracker that is about half a millisecond."""
PERIOD_NS = 1_000_000
BACKLOG_NS = 50_000_000
"""A guest which falls further behind than this gives the rest up: it is a rate, not a debt."""

Pages = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LoadSpec:
    """What to write: pages per second, over how many bytes, in which pattern. Rate 0: nothing."""

    rate_pages_per_s: float = 0.0
    working_set_bytes: int = 0
    pattern: str = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rate_pages_per_s < 0:
            raise ValueError(f"a dirty rate of {self.rate_pages_per_s} pages/s is negative")
        size = self.working_set_bytes
        if self.rate_pages_per_s and (size < PAGE_BYTES or size % PAGE_BYTES):
            raise ValueError(f"a working set of {size} bytes is not whole pages, one or more")
        if self.pattern not in PATTERNS:
            raise ValueError(f"no load pattern {self.pattern!r}: one of {', '.join(PATTERNS)}")


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Each number well mixed: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def pages_of(spec: LoadSpec, first: int, count: int) -> Pages:
    """The pages, relative to the working set, of writes `first` to `first + count - 1`. Pure."""
    pages = spec.working_set_bytes // PAGE_BYTES
    numbers = np.arange(first, first + count, dtype=np.uint64)
    if spec.pattern == "sequential":
        return (numbers % np.uint64(pages)).astype(np.int64)
    mixed = _mixed(numbers + np.uint64(spec.seed & 0xFFFF_FFFF))
    if spec.pattern == "uniform":
        return (mixed % np.uint64(pages)).astype(np.int64)
    hot = max(1, pages // 10)
    draw = mixed >> np.uint64(8)
    in_hot = draw % np.uint64(hot)
    in_cold = np.uint64(hot) + draw % np.uint64(pages - hot) if pages > hot else in_hot
    return np.where((mixed & np.uint64(0xFF)) < 230, in_hot, in_cold).astype(np.int64)  # 230/256: nine of ten


class Load:
    """Writes by `spec` into a working set of its own in `memory`. `run` is to be called about every
    millisecond.
    """

    def __init__(self, memory: Memory, spec: LoadSpec) -> None:
        self.spec = spec
        size = spec.working_set_bytes if spec.rate_pages_per_s else 0
        self.active = size > 0
        self._position = memory.words("load.position", 2)  # writes done, writes given up
        if self.active:
            # Not zeroed: what it holds will do, and touching all of it would be a load of its own.
            working_set = memory.bytes("load.working-set", size, align=PAGE_BYTES, zero=False)
            self._pages = np.frombuffer(working_set, np.uint64).reshape(-1, PAGE_BYTES // 8)
        self._asked_ns = 0
        self._anchor_ns = 0
        self._anchor_writes = 0

    def resume(self, now_ns: int) -> None:
        """The guest runs from `now_ns` on: nothing is owed for the time before."""
        self._anchor_ns, self._anchor_writes, self._asked_ns = now_ns, self.written, now_ns

    def run(self, now_ns: int) -> int:
        """Write up to one burst of what is due at `now_ns`; returns how much is still due."""
        self._asked_ns = now_ns
        rate = self.spec.rate_pages_per_s
        due = int((now_ns - self._anchor_ns) * rate / 1e9) - (self.written - self._anchor_writes)
        if due <= 0:
            return 0
        backlog = int(rate * BACKLOG_NS / 1e9) + 1
        if due > backlog:
            self._position[1] += due - backlog
            self._anchor_writes -= due - backlog
            due = backlog
        count = min(due, BURST_PAGES)
        self.write(count)
        return due - count

    def write(self, count: int) -> None:
        """The next `count` writes, whatever is due."""
        first = self.written
        pages = pages_of(self.spec, first, count)
        numbers = np.arange(first, first + count, dtype=np.uint64)
        self._pages[pages, numbers % np.uint64(PAGE_BYTES // 8)] = numbers + np.uint64(1)
        self._position[0] = first + count

    def wait_ns(self, now_ns: int) -> int:
        """How long `run` need not be called: until a page is due, and a period at least."""
        rate = self.spec.rate_pages_per_s
        next_ns = self._anchor_ns + int((self.written - self._anchor_writes + 1) * 1e9 / rate) + 1
        return max(next_ns, self._asked_ns + PERIOD_NS) - now_ns

    @property
    def written(self) -> int:
        """Pages written in the life of the guest."""
        return int(self._position[0])

    @property
    def given_up(self) -> int:
        """Pages that were due and not written because the guest was too slow."""
        return int(self._position[1])

    def stats(self, ran_ns: int) -> dict[str, Any]:
        """`achieved_pages_per_s` is over `ran_ns`, the time that the guest has run in all."""
        return {
            "asked_pages_per_s": self.spec.rate_pages_per_s,
            "achieved_pages_per_s": round(self.written * 1e9 / ran_ns, 1) if ran_ns else 0.0,
            "written_pages": self.written,
            "given_up_pages": self.given_up,
            "working_set_bytes": self.spec.working_set_bytes,
            "pattern": self.spec.pattern,
        }


def fill(memory: Memory, fraction: float, seed: int) -> int:
    """Put incompressible bytes into `fraction` of RAM, at most into what is free, and return how many.

    Nothing is allocated: it is what memory holds that was used before. For RAM fresh from :class:`Memory`.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fill of {fraction} is not between 0 and 1")
    offset, room = memory.heap.largest_free()
    size = min(room, int(len(memory.view) * fraction)) & ~7
    target = np.frombuffer(memory.view[offset : offset + size], np.uint64)
    generator = np.random.SFC64(seed)
    piece = 1 << 17  # words: 1 MiB, which stays in the cache
    for start in range(0, len(target), piece):
        part = target[start : start + piece]
        part[:] = generator.random_raw(len(part))
    return size
