"""From the events of :mod:`testbed.lab.observation` to what a migration did to the network's tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from testbed.measure.result import TableChange

Event = dict[str, Any]


def changes(events: Iterable[Event], paused_ns: int) -> list[TableChange]:
    """Every entry that says something else than before, in the order of time; `paused_ns` is the pause
    (CLOCK_MONOTONIC). News of a neighbour's state alone are none.
    """
    found = [row for event in events if (row := _change(event, paused_ns)) is not None]
    return sorted(found, key=lambda row: row.at_ms)


def relearned_ns(events: Iterable[Event], switch: str, port: str, vm: str | None = None) -> int | None:
    """When the table of `switch` first said that the guest is behind `port`; None if it never did. `vm` where
    there are several guests."""
    times = [
        event["t_ns"]
        for event in events
        if event["event"] == "forwarding"
        and event["source"] == switch
        and event["port"] == port
        and not event["gone"]
        and event.get("vm") == vm
    ]
    return min(times, default=None)


def seen_by_all(events: Iterable[Event], clients: Sequence[str], vm: str | None = None) -> int:
    """How many of the guest's announcements each of `clients` heard, the least of them; 0 without clients."""
    seen = dict.fromkeys(clients, 0)
    for event in events:
        if event["event"] == "announcement-seen" and event["source"] in seen and event.get("vm") == vm:
            seen[event["source"]] += 1
    return min(seen.values(), default=0)


def _change(event: Event, paused_ns: int) -> TableChange | None:
    at_ms = round((event["t_ns"] - paused_ns) / 1e6, 3)
    if event["event"] == "neighbour" and event["mac"] != event["was"]:
        key, now = event["address"], event["mac"]
        return TableChange(
            node=event["source"], table="neighbour", key=key, was=event["was"], now=now, at_ms=at_ms
        )
    if event["event"] == "forwarding":
        key, now = event["mac"], None if event["gone"] else event["port"]
        if now != event["was"]:
            return TableChange(
                node=event["source"], table="forwarding", key=key, was=event["was"], now=now, at_ms=at_ms
            )
    return None
