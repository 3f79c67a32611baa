"""Continuity: from the times at which a probe sent and received to how long it was left waiting.

Whatever kind of probe took the samples, they become :class:`Waits`: intervals on the shared clock during
which one connection was kept waiting, each with its length. All further figures are made from those.

- Closed loop (:func:`closed_loop`): one wait a request, from the moment before it was sent to the moment at
  which its whole reply had been read. The round trip is inside, so the figure is what a caller of the
  service feels.
- Open loop (:func:`open_loop`): one wait for each pair of consecutive deliveries: the time between them
  less the time between the sending of them, where the latter counts for at least the nominal sending
  interval. Zero on a network that delays every message alike; never negative.
- Numbered packets, of which some may be lost or overtake others (:func:`packets`): as an open loop, but in
  the order of arrival, and what was lost is silence.

The *longest wait* of a connection is its service gap. The *noise floor* beside it is the longest wait of
the same connection while nothing was being migrated: :func:`split` parts the waits by migration windows
into those which overlap a window (*during*) and the quiet ones before, between and after. A wait that
merely touches a window from outside is quiet; one that overlaps two windows belongs to both; each quiet
wait belongs to exactly one quiet span.

A wait which nobody ended (the reply never came) ends when the probe stopped waiting: the figure says *at
least*. All times are CLOCK_MONOTONIC nanoseconds in int64 arrays. Percentiles are nearest-rank: values that
occurred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Times = NDArray[np.int64]


@dataclass(frozen=True)
class Waits:
    """Parallel arrays, one entry a wait: when it began and ended, how long it counts, on which connection."""

    begin_ns: Times
    end_ns: Times
    length_ns: Times
    connection: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.begin_ns)

    def where(self, chosen: NDArray[np.bool_] | Times) -> Waits:
        """Those that `chosen` selects (a mask or indices)."""
        return Waits(
            self.begin_ns[chosen], self.end_ns[chosen], self.length_ns[chosen], self.connection[chosen]
        )

    def by_connection(self) -> dict[int, Waits]:
        """Each connection's own, in ascending order of connection, the order of waits within it kept."""
        order = np.argsort(self.connection, kind="stable")
        numbers, starts = np.unique(self.connection[order], return_index=True)
        parts = np.split(order, starts[1:])  # of nothing, one empty part: hence not strict
        return {int(number): self.where(part) for number, part in zip(numbers, parts, strict=False)}


@dataclass(frozen=True)
class Figures:
    """What there is to say about a set of waits. Of an empty set every time is None."""

    count: int
    longest_ns: int | None
    """The longest wait."""
    longest_at_ns: int | None
    """When it began; of several equally long ones, the first."""
    p50_ns: int | None
    p99_ns: int | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Window:
    """One migration on the shared clock: [begin, end). ValueError if it ends before it begins."""

    begin_ns: int
    end_ns: int

    def __post_init__(self) -> None:
        if self.end_ns < self.begin_ns:
            raise ValueError(f"a window cannot end ({self.end_ns}) before it begins ({self.begin_ns})")


@dataclass(frozen=True)
class Split:
    """Waits parted by n windows: n times *during*, and n + 1 times *quiet* (before, between, after)."""

    during: tuple[Waits, ...]
    quiet: tuple[Waits, ...]


def closed_loop(sent_ns: ArrayLike, received_ns: ArrayLike, connection: ArrayLike) -> Waits:
    """One wait a request. ValueError if the lengths differ or a reply precedes its request."""
    sent, received, numbers = _checked(sent_ns, received_ns, connection)
    if np.any(received < sent):
        raise ValueError("a reply cannot be received before its request was sent")
    return Waits(sent, received, received - sent, numbers)


def open_loop(sent_ns: ArrayLike, received_ns: ArrayLike, connection: ArrayLike, interval_ns: int) -> Waits:
    """One wait for each pair of messages that follow one another on a connection.

    Message k is sent at s_k, delivered at r_k; the nominal interval is I. The wait from r_k to r_k+1 has
    the length max(0, (r_k+1 - r_k) - max(I, s_k+1 - s_k)): a sender that was itself late is not counted
    against the service. Each connection's messages must stand in the order of their sending. ValueError if
    the lengths differ, the interval is not positive, or messages of a connection are out of order.
    """
    if interval_ns <= 0:
        raise ValueError(f"the sending interval must be positive, not {interval_ns} ns")
    sent, received, numbers = _checked(sent_ns, received_ns, connection)
    order = np.argsort(numbers, kind="stable")
    sent, received, numbers = sent[order], received[order], numbers[order]
    same = numbers[1:] == numbers[:-1]
    apart_sent, apart_received = np.diff(sent)[same], np.diff(received)[same]
    if np.any(apart_sent < 0) or np.any(apart_received < 0):
        raise ValueError("the messages of a connection must stand in the order of sending and of delivery")
    lengths = np.maximum(0, apart_received - np.maximum(interval_ns, apart_sent))
    return Waits(received[:-1][same], received[1:][same], lengths, numbers[1:][same])


def packets(
    sent_ns: ArrayLike, received_ns: ArrayLike, answered: ArrayLike, connection: ArrayLike, interval_ns: int
) -> Waits:
    """One wait for each two consecutive arrivals on a connection, and one for what is lost at an end of it.

    Each connection's packets must stand in the order of sending; `received_ns` counts where `answered`. The
    wait between the arrivals of packets a and b is the time between them less the nominal interval, and less
    what the sender itself had lost between sending them. What came before the first arrival, or after the
    last, is measured by the times of sending: it is *at least* so long. ValueError as for :func:`open_loop`.
    """
    if interval_ns <= 0:
        raise ValueError(f"the sending interval must be positive, not {interval_ns} ns")
    sent, received, numbers = _checked(sent_ns, received_ns, connection)
    came = np.asarray(answered, dtype=np.bool_)
    if came.shape != sent.shape:
        raise ValueError(f"arrays of one length wanted, not {sent.shape} and {came.shape}")
    parts = [
        _packets_of(sent[mine], received[mine], came[mine], int(number), interval_ns)
        for number in np.unique(numbers)
        for mine in (np.flatnonzero(numbers == number),)
    ]
    columns = [np.concatenate([part[column] for part in parts]) for column in range(4)] if parts else []
    if not columns:
        return closed_loop([], [], [])
    return Waits(columns[0], columns[1], columns[2], columns[3].astype(np.int32))


def _packets_of(
    sent: Times, received: Times, came: NDArray[np.bool_], number: int, interval_ns: int
) -> tuple[Times, Times, Times, Times]:
    """Begin, end, length and connection of the waits of one connection, which has sent at least once."""
    if np.any(np.diff(sent) < 0):
        raise ValueError("the packets of a connection must stand in the order of sending")
    arrived = np.flatnonzero(came)
    arrived = arrived[np.argsort(received[arrived], kind="stable")]
    at = received[arrived]
    held_up = np.maximum(0, np.diff(sent[arrived]) - np.diff(arrived) * interval_ns)
    begin, end = at[:-1], at[1:]
    length = np.maximum(0, end - begin - interval_ns - held_up)
    first = int(arrived[0]) if len(arrived) else len(sent) - 1
    last = int(arrived.max()) if len(arrived) else len(sent) - 1
    for a, b, from_ns, to_ns in (
        (0, first, sent[0], at[0] if len(at) else sent[-1]),
        (last, len(sent) - 1, at[-1] if len(at) else sent[-1], sent[-1]),
    ):
        if b > a:
            silent_ns = min(int(sent[b] - sent[a]), (b - a) * interval_ns)
            begin, end = np.append(begin, from_ns), np.append(end, max(from_ns, to_ns))
            length = np.append(length, silent_ns)
    return begin, end, length, np.full(len(begin), number, dtype=np.int64)


def figures(waits: Waits) -> Figures:
    """The longest wait, when it began, the median and the 99th percentile (nearest rank)."""
    if not len(waits):
        return Figures(0, None, None, None, None)
    longest = int(np.argmax(waits.length_ns))
    p50, p99 = _nearest_rank(waits.length_ns, (0.5, 0.99))
    return Figures(len(waits), int(waits.length_ns[longest]), int(waits.begin_ns[longest]), p50, p99)


def split(waits: Waits, windows: Sequence[Window]) -> Split:
    """Part `waits` by `windows`, which must be disjoint and ascending (ValueError).

    A wait [b, e] overlaps a window [B, E) when b < E and e > B. A quiet wait lies in the span in which it
    ends.
    """
    for earlier, later in pairwise(windows):
        if later.begin_ns < earlier.end_ns:
            raise ValueError(f"windows must be disjoint and ascending: {earlier} and {later}")
    quiet = np.ones(len(waits), dtype=np.bool_)
    during = []
    for window in windows:
        overlaps = (waits.begin_ns < window.end_ns) & (waits.end_ns > window.begin_ns)
        during.append(waits.where(overlaps))
        quiet &= ~overlaps
    span = np.searchsorted(np.array([w.begin_ns for w in windows], dtype=np.int64), waits.end_ns, side="left")
    return Split(tuple(during), tuple(waits.where(quiet & (span == i)) for i in range(len(windows) + 1)))


def distribution(longest_ns: Sequence[int]) -> dict[str, int | None]:
    """Over connections: `p50`, `p99` and `max` of their longest waits (nearest rank); None for none."""
    if not longest_ns:
        return {"p50": None, "p99": None, "max": None}
    p50, p99, most = _nearest_rank(np.array(longest_ns, dtype=np.int64), (0.5, 0.99, 1.0))
    return {"p50": p50, "p99": p99, "max": most}


def _nearest_rank(values: Times, fractions: Sequence[float]) -> list[int]:
    return [int(value) for value in np.quantile(values, fractions, method="inverted_cdf")]


def _checked(
    sent_ns: ArrayLike, received_ns: ArrayLike, connection: ArrayLike
) -> tuple[Times, Times, NDArray[np.int32]]:
    sent, received = np.asarray(sent_ns, dtype=np.int64), np.asarray(received_ns, dtype=np.int64)
    numbers = np.asarray(connection, dtype=np.int32)
    if not sent.shape == received.shape == numbers.shape or sent.ndim != 1:
        raise ValueError(f"arrays of one length wanted, not {sent.shape}, {received.shape}, {numbers.shape}")
    return sent, received, numbers
