"""How many bytes came in each millisecond, and what there is to say about that. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.measure.continuity import Window

BUCKET_NS = 1_000_000
_MBIT_A_BYTE_A_BUCKET = 8 / 1000


class Throughput:
    """Bytes by the millisecond in which they came, from `begin_ns` (CLOCK_MONOTONIC) on. What came while
    nobody asked is counted too, but tells nothing of a rate: see :meth:`asking`.
    """

    def __init__(self) -> None:
        self.begin_ns = 0
        self.total = 0
        self.bytes = array("Q")
        self._spans: list[list[int]] = []

    def asking(self, t_ns: int) -> None:
        """From now on as much is wanted as comes."""
        if not self.begin_ns:
            self.begin_ns = t_ns
        self._spans.append([t_ns, 0])

    def rests(self, t_ns: int) -> None:
        """No more is wanted, for the time being."""
        if self._spans and not self._spans[-1][1]:
            self._spans[-1][1] = t_ns

    def add(self, t_ns: int, count: int) -> None:
        """`count` bytes came at `t_ns`, which never goes back."""
        self.total += count
        place = max(0, (t_ns - self.begin_ns) // BUCKET_NS)
        missing = place + 1 - len(self.bytes)
        if missing > 0:
            self.bytes.frombytes(bytes(8 * missing))
        self.bytes[place] += count

    def rates_mbit(self, windows: Sequence[Window]) -> dict[str, float | None]:
        """Bytes by time, of whole milliseconds in which bytes were wanted: `before` the first of `windows`,
        `during` any of them, and `after` the last; None where there was no such millisecond. `median` is that
        of all of them, one by one.
        """
        starts = self.begin_ns + BUCKET_NS * np.arange(len(self.bytes), dtype=np.int64)
        wanted = np.zeros(len(starts), dtype=np.bool_)
        for begin_ns, end_ns in self._spans:
            wanted |= (starts >= begin_ns) & ((starts + BUCKET_NS <= end_ns) | (end_ns == 0))
        during = np.zeros(len(starts), dtype=np.bool_)
        for window in windows:
            during |= (starts < window.end_ns) & (starts + BUCKET_NS > window.begin_ns)
        first = windows[0].begin_ns if windows else np.iinfo(np.int64).max
        last = windows[-1].end_ns if windows else np.iinfo(np.int64).max
        return {
            "before": self._rate(wanted & ~during & (starts < first)),
            "during": self._rate(wanted & during),
            "after": self._rate(wanted & ~during & (starts >= last)),
            "median": self._rate(wanted, np.median),
        }

    def _rate(self, chosen: NDArray[np.bool_], of: Callable[..., Any] = np.mean) -> float | None:
        if not chosen.any():
            return None
        counts = np.frombuffer(self.bytes, dtype=np.uint64)[chosen]
        return round(float(of(counts)) * _MBIT_A_BYTE_A_BUCKET, 3)

    def arrays(self) -> dict[str, Any]:
        """What is saved: `bytes_per_ms`, and `bytes_per_ms_begin_ns`."""
        return {
            "bytes_per_ms": np.array(self.bytes, dtype=np.uint64),
            "bytes_per_ms_begin_ns": np.int64(self.begin_ns),
        }

    def forget(self) -> None:
        """Let go of what is past; the total goes on, and so does the grid of milliseconds."""
        self.begin_ns += BUCKET_NS * len(self.bytes)
        self.bytes = array("Q")
        self._spans = [span for span in self._spans if not span[1]]
