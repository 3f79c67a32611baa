"""Data for the page's scripts: numbers packed so that a million of them fit. Pure.

Times are microseconds from the run's origin. Arrays are base64 of little-endian numbers, `{"type": "u32",
"data": "..."}`; a time that may not fit into 32 bits of microseconds is packed in coarser `unit_us`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.memory import page_map
from testbed.report.page import story
from testbed.report.page.dots import COLUMNS, ROWS_PER_DECADE, SHORTEST_MS, Density, Requests
from testbed.report.page.sieve import MOST_OF_A_KIND, STORY, Event, Events

MOST_MAP_BYTES = 1_000_000
"""Of all maps of pages together; if they are more, cells are merged."""
MOST_BUCKETS = 50_000
MARK_FIELDS = ("pages", "connections", "frames", "devices", "bytes")
COUNT_COLUMNS = 500

_CODES = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}


def packed(kind: str, values: Any) -> dict[str, str]:
    """Numbers as text. Those beyond the kind's range are clipped to it, never wrapped."""
    array = np.asarray(values)
    if kind != "f32":
        array = np.clip(array, 0, np.iinfo(_CODES[kind]).max)
    return {"type": kind, "data": base64.b64encode(array.astype(_CODES[kind]).tobytes()).decode()}


class Clock:
    """Nanoseconds of CLOCK_MONOTONIC to microseconds from the run's origin: the former do not fit into the
    numbers of a browser."""

    def __init__(self, begin_ns: int, end_ns: int) -> None:
        self.begin_ns = begin_ns
        self.end_ns = max(end_ns, begin_ns + 1)
        self.unit_us = max(1, -(-(self.end_ns - begin_ns) // 1000 >> 32) + 1) if self._is_long() else 1

    def _is_long(self) -> bool:
        return (self.end_ns - self.begin_ns) // 1000 >= 1 << 32

    def us(self, t_ns: int | None) -> float | None:
        return None if t_ns is None else round((t_ns - self.begin_ns) / 1e3, 1)

    def many(self, t_ns: NDArray[np.int64]) -> dict[str, str]:
        return packed("u32", (t_ns - self.begin_ns) // (1000 * self.unit_us))


def requests(all_: Requests, chosen: NDArray[np.int64], rest: Density, clock: Clock) -> dict[str, Any]:
    """The dots and the density of :mod:`.dots` for the timeline."""
    return {
        "count": len(all_),
        "clients": list(all_.names),
        "kinds": [list(kinds) for kinds in all_.kinds],
        "begin": clock.many(all_.begin_ns[chosen]),
        "lasts": packed("f32", (all_.end_ns - all_.begin_ns)[chosen] / 1e6),
        "wait": packed("f32", all_.length_ns[chosen] / 1e6),
        "client": packed("u16", all_.client[chosen]),
        "probe": packed("u8", all_.probe[chosen]),
        "connection": packed("u16", all_.connection[chosen]),
        "answered": packed("u8", all_.answered[chosen]),
        "density": {
            "columns": COLUMNS,
            "rows_per_decade": ROWS_PER_DECADE,
            "shortest": SHORTEST_MS,
            "column": packed("u16", rest.column),
            "row": packed("u8", rest.row),
            "client": packed("u16", rest.client),
            "count": packed("u32", rest.count),
            "requests": int(rest.count.sum()),
        },
    }


def moves(found: Sequence[story.Move], learned: Sequence[Event], clock: Clock) -> list[dict[str, Any]]:
    """Every migration for the timeline and the replay. `learned` are the events of forwarding tables."""
    maps = Maps(
        [one["map"] for move in found for one in story.rounds(move) if isinstance(one.get("map"), str)]
    )
    return [_move(move, clock, maps) | {"learned": _learned(move, found, learned, clock)} for move in found]


def _move(move: story.Move, clock: Clock, maps: Maps) -> dict[str, Any]:
    told, us = move.told, clock.us
    network = told.get("network") or {}
    relearned_ms = network.get("switch_relearned_ms")
    pause_ns = move.pause_ns
    marks = [one for one in move.events if one["event"] == "mark"]
    return {
        "vm": move.vm,
        "source": move.source,
        "target": move.target,
        "outcome": move.outcome,
        "reason": told.get("reason"),
        "begin": us(move.begin_ns),
        "end": us(move.end_ns),
        "pause": us(pause_ns),
        "resume": us(move.resume_ns),
        "deleted": told.get("deleted"),
        "ram_pages": int((told.get("ram") or {}).get("bytes") or 0) // 4096,
        "phases": [
            [one["host"], one["phase"], us(one["begin_ns"]), us(one["end_ns"]), one["error"]]
            for one in story.phases(move)
        ],
        "marks": [
            [
                one.get("name"),
                story.host_of(one),
                us(one["t_ns"]),
                {key: one[key] for key in MARK_FIELDS if key in one},
            ]
            for one in marks
        ],
        "rounds": [_round(one, clock, maps) for one in story.rounds(move)],
        "announced": sorted(
            [us(one["t_ns"]) or 0.0, story.host_of(one)]
            for one in move.events
            if one["event"] == "announced" or (one["event"] == "mark" and one.get("name") == "announced")
        ),
        "relearned": None
        if relearned_ms is None or pause_ns is None
        else us(pause_ns + int(relearned_ms * 1e6)),
        "lun": [
            [us(one["t_ns"]), one.get("way"), one.get("bytes"), one.get("of_bytes")]
            for one in move.events
            if one["event"] == "lun"
        ],
        "held": network.get("frames_held"),
        "released": network.get("frames_released"),
        "dropped": network.get("frames_dropped"),
        "parts": told.get("blackout_parts_ms") or {},
    }


def _learned(
    move: story.Move, found: Sequence[story.Move], learned: Sequence[Event], clock: Clock
) -> list[list[Any]]:
    """When the switch's entry of this guest came to point where, from this migration's begin to the next
    one's."""
    later = [one.begin_ns for one in found if one.vm == move.vm and one.begin_ns > move.begin_ns]
    until_ns = min(later, default=clock.end_ns + 1)
    return [
        [clock.us(one["t_ns"]), one.get("port")]
        for one in learned
        if one["source"] == "switch"
        and not one.get("gone")
        and story.vm_of(one) in (move.vm, None)
        and move.begin_ns <= one["t_ns"] < until_ns
    ]


def _round(one: Event, clock: Clock, maps: Maps) -> dict[str, Any]:
    return {
        "number": one.get("number"),
        "begin": clock.us(one["begin_ns"]),
        "end": clock.us(one["end_ns"]),
        "last": one["last"],
        "pages": one.get("pages"),
        "zero": one.get("zero_pages"),
        "bytes": one.get("bytes"),
        "dirty": one.get("dirty_pages"),
        "reason": one.get("reason"),
        "map": maps.packed(one["map"]) if isinstance(one.get("map"), str) else None,
    }


class Maps:
    """Maps of pages as run lengths; of so many that they would fill the page, cells are merged."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.merged = 1
        size = sum(len(text) for text in texts)
        while size > MOST_MAP_BYTES and self.merged < 64:
            self.merged *= 4
            size //= 4

    def packed(self, text: str) -> dict[str, Any] | None:
        """`cells` in all, and their `runs`: pairs of a value and how often it comes. None where the text is
        no map."""
        try:
            cells = page_map.decode(text)
        except ValueError:
            return None
        values = merge(cells, self.merged)
        if not len(values):
            return None
        starts = np.concatenate(([0], np.flatnonzero(np.diff(values)) + 1))
        counts = np.diff(np.append(starts, len(values)))
        return {"cells": len(values), "value": packed("u8", values[starts]), "count": packed("u16", counts)}


def merge(cells: page_map.Cells, factor: int) -> page_map.Cells:
    """Every `factor` cells as one: their mean, but never 0 where one of them has something."""
    if factor == 1:
        return cells
    padded = np.concatenate((cells, np.zeros(-len(cells) % factor, np.uint8))).reshape(-1, factor)
    mean = padded.mean(axis=1).astype(np.uint8)
    return np.where(padded.any(axis=1), np.maximum(mean, 1), 0).astype(np.uint8)


def flows(samples: Mapping[str, Mapping[str, Any]], clock: Clock) -> list[dict[str, Any]]:
    """Bulk transfers: for each connection of a client the bytes of every millisecond; of a very long one, of
    every `bucket_us`."""
    found = []
    for client, arrays in samples.items():
        for name in arrays:
            number = name.removeprefix("bytes_per_ms_")
            begin = arrays.get(f"bytes_per_ms_begin_ns_{number}")
            if number == name or begin is None or not len(arrays[name]):
                continue
            factor = -(-len(arrays[name]) // MOST_BUCKETS)
            padded = np.concatenate((arrays[name], np.zeros(-len(arrays[name]) % factor, arrays[name].dtype)))
            each = padded.reshape(-1, factor).sum(axis=1)
            flow = {"client": client, "connection": number, "begin": clock.us(int(begin))}
            found.append(flow | {"bucket_us": 1000 * factor, "bytes": packed("u32", each)})
    return found


def others(events: Events, clock: Clock) -> list[dict[str, Any]]:
    """What else was recorded, kind by kind: `[t, source, text]` of each, or, of a kind with very many, how
    many in each of COUNT_COLUMNS columns of time."""
    found = []
    for name, kind in sorted(events.kinds.items()):
        if name in STORY:
            continue
        entry: dict[str, Any] = {"kind": name, "count": len(kind.times_ns)}
        if len(kind.times_ns) <= MOST_OF_A_KIND:
            kept = sorted(kind.first, key=lambda one: one["t_ns"])
            entry["each"] = [[clock.us(one["t_ns"]), one["source"], text_of(one)] for one in kept]
        else:
            times = np.frombuffer(kind.times_ns, np.int64)
            edges = (clock.begin_ns, clock.end_ns)
            entry["columns"] = np.histogram(times, COUNT_COLUMNS, edges)[0].tolist()
        found.append(entry)
    return found


def text_of(event: Event) -> str:
    """What an event says beside its kind, in a line."""
    words = [
        f"{key} {value}"
        for key, value in event.items()
        if key not in ("t_ns", "source", "event") and value != ""
    ]
    return ", ".join(words)[:200]
