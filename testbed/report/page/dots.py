"""Requests as dots: when each began, how long it waited. Pure.

Up to MOST_DOTS of a run are all told. Beyond that some are told one by one, and all others as counts in a
grid of time and length. Told one by one are, in this order: in each column of time the longest and the
shortest wait of each client; those that no answer ended; those near a blackout; then the longest. So no
extreme is ever only a count, and dots and counts together are all requests, each once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.measure.continuity import Waits, closed_loop, open_loop, packets

MOST_DOTS = 60_000
COLUMNS = 1000
EXTREME_COLUMNS = 400
ROWS_PER_DECADE = 8
SHORTEST_MS = 0.001
"""Rows begin here; what is shorter lies in the first one."""
ROWS = 8 * ROWS_PER_DECADE
NEAR_NS = 60_000_000
"""How far around a pause and a resume requests are told one by one."""

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


PACKETS = ("udp", "icmp")
"""Kinds of probe whose messages may be lost: one waits from arrival to arrival."""


@dataclass(frozen=True)
class Requests:
    """Parallel arrays, one entry a wait of some client: its begin, end and length, who waited (`client`
    numbers the names, `probe` and `connection` are that client's), and whether an answer ended it."""

    names: tuple[str, ...]
    kinds: tuple[tuple[str, ...], ...]
    """For each client the kind of each of its probes."""
    begin_ns: Integers
    end_ns: Integers
    length_ns: Integers
    client: NDArray[np.uint16]
    probe: NDArray[np.uint16]
    connection: NDArray[np.uint32]
    answered: Mask

    def __len__(self) -> int:
        return len(self.begin_ns)


@dataclass(frozen=True)
class Density:
    """How many requests that are no dots lie in each cell that has any: `column` of COLUMNS over the run's
    time, `row` of ROWS over the length (ROWS_PER_DECADE from SHORTEST_MS on), `client`."""

    column: NDArray[np.uint16]
    row: NDArray[np.uint8]
    client: NDArray[np.uint16]
    count: NDArray[np.uint32]


def of_client(arrays: dict[str, Any], kinds: Sequence[str]) -> tuple[list[Waits], list[Mask], list[int]]:
    """The waits of each probe of one client, as its kind counts them; which were answered; the probe's
    number. A probe that sends at intervals (open-loop) waits between deliveries, each other one for its
    answer.
    """
    numbers = arrays.get("probe", np.zeros(len(arrays["sent_ns"]), np.int64))
    told = arrays.get("answered", np.ones(len(numbers), np.bool_))
    intervals = arrays.get("intervals_ns", np.zeros(0, np.int64))
    waits, answered, probes = [], [], []
    for number in np.unique(numbers).tolist():
        chosen = numbers == number
        sent, received = arrays["sent_ns"][chosen], arrays["received_ns"][chosen]
        connection, here = arrays["connection"][chosen], told[chosen]
        kind = kinds[number] if number < len(kinds) else ""
        interval_ns = int(intervals[number]) if number < len(intervals) else _interval(sent, connection)
        if kind in PACKETS:
            found = packets(sent, received, here, connection, max(interval_ns, 1))
            here = np.ones(len(found), np.bool_)  # what was lost is a longer wait
        elif kind == "open-loop":
            found = open_loop(sent, received, connection, max(interval_ns, 1))
            order = np.argsort(connection, kind="stable")
            same = connection[order][1:] == connection[order][:-1]
            here = here[order][1:][same]
        else:
            found = closed_loop(sent, received, connection)
        waits.append(found)
        answered.append(here)
        probes.append(number)
    return waits, answered, probes


def _interval(sent_ns: Integers, connection: NDArray[Any]) -> int:
    """How often a probe of an old run sent: the median distance on its connections."""
    apart = np.diff(sent_ns)[connection[1:] == connection[:-1]]
    return int(np.median(apart)) if len(apart) else 1


def gather(samples: dict[str, dict[str, Any]], kinds: Mapping[str, Sequence[str]]) -> Requests:
    """All requests of all clients, in the order of their begin."""
    names = tuple(sorted(samples, key=natural))
    parts: list[tuple[Waits, Mask, int, int]] = []
    for client, name in enumerate(names):
        found = of_client(samples[name], kinds.get(name, ()))
        parts += [(waits, here, client, probe) for waits, here, probe in zip(*found, strict=True)]
    sizes = [len(waits) for waits, *_ in parts]

    def joined(column: Sequence[Any], kind: type) -> NDArray[Any]:
        return np.concatenate([np.asarray(one, kind) for one in column]) if column else np.zeros(0, kind)

    begin = joined([waits.begin_ns for waits, *_ in parts], np.int64)
    order = np.argsort(begin, kind="stable")
    return Requests(
        names,
        tuple(tuple(kinds.get(name, ())) for name in names),
        begin[order],
        joined([waits.end_ns for waits, *_ in parts], np.int64)[order],
        joined([waits.length_ns for waits, *_ in parts], np.int64)[order],
        np.repeat(np.array([part[2] for part in parts], np.uint16), sizes)[order],
        np.repeat(np.array([part[3] for part in parts], np.uint16), sizes)[order],
        joined([waits.connection for waits, *_ in parts], np.uint32)[order],
        joined([here for _, here, *_ in parts], np.bool_)[order],
    )


def natural(name: str) -> tuple[str, int]:
    """client2 before client10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1)


def sort_out(
    requests: Requests, blackouts: Sequence[tuple[int, int]], span: tuple[int, int], most: int = MOST_DOTS
) -> tuple[Integers, Density]:
    """Which requests are told one by one (indices, ascending), and the density of all others."""
    if len(requests) <= most:
        return np.arange(len(requests)), density(requests, np.zeros(len(requests), np.bool_), span)
    chosen = _extremes(requests, span, max(1, min(EXTREME_COLUMNS, most // (4 * len(requests.names)))))
    for candidates in (
        np.flatnonzero(~requests.answered),
        _near(requests, blackouts),
        _longest(requests, most),
    ):
        room = most - int(chosen.sum())
        fresh = candidates[~chosen[candidates]][: max(room, 0)]
        chosen[fresh] = True
    return np.flatnonzero(chosen), density(requests, ~chosen, span)


def _extremes(requests: Requests, span: tuple[int, int], columns: int) -> Mask:
    """The longest and the shortest wait of each client in each of `columns` of time."""
    group = requests.client.astype(np.int64) * columns + _columns(requests.begin_ns, span, columns)
    order = np.lexsort((requests.length_ns, group))
    last = np.flatnonzero(np.append(np.diff(group[order]) != 0, True))
    first = np.concatenate(([0], last[:-1] + 1))
    chosen = np.zeros(len(requests), np.bool_)
    chosen[order[last]] = chosen[order[first]] = True
    return chosen


def _near(requests: Requests, blackouts: Sequence[tuple[int, int]]) -> Integers:
    """Those that overlap a blackout, or lie NEAR_NS around it: the nearest first."""
    distance = np.full(len(requests), NEAR_NS + 1, np.int64)
    for pause_ns, resume_ns in blackouts:
        before, after = pause_ns - requests.end_ns, requests.begin_ns - resume_ns
        np.minimum(distance, np.maximum(np.maximum(before, after), 0), out=distance)
    near = np.flatnonzero(distance <= NEAR_NS)
    return np.asarray(near[np.argsort(distance[near], kind="stable")], np.int64)


def _longest(requests: Requests, most: int) -> Integers:
    most = min(most, len(requests))
    found = np.argpartition(requests.length_ns, len(requests) - most)[len(requests) - most :]
    return np.asarray(found[np.argsort(-requests.length_ns[found], kind="stable")], np.int64)


def _columns(t_ns: Integers, span: tuple[int, int], count: int) -> Integers:
    begin, end = span
    width = max(end - begin, 1)
    return np.clip((t_ns - begin) * count // width, 0, count - 1)


def density(requests: Requests, chosen: Mask, span: tuple[int, int]) -> Density:
    """The chosen requests as counts in the grid."""
    column = _columns(requests.begin_ns[chosen], span, COLUMNS)
    client = requests.client[chosen].astype(np.int64)
    cells = (client * ROWS + rows(requests.length_ns[chosen])) * COLUMNS + column
    cells, count = np.unique(cells, return_counts=True)
    return Density(
        (cells % COLUMNS).astype(np.uint16),
        (cells // COLUMNS % ROWS).astype(np.uint8),
        (cells // COLUMNS // ROWS).astype(np.uint16),
        count.astype(np.uint32),
    )


def rows(length_ns: Integers) -> Integers:
    """The row of the grid in which waits of this length lie."""
    ms = np.maximum(length_ns / 1e6, SHORTEST_MS)
    return np.minimum((np.log10(ms / SHORTEST_MS) * ROWS_PER_DECADE).astype(np.int64), ROWS - 1)
