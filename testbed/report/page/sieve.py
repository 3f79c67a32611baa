"""Events by the million: those that tell the story are kept as they are, of the crowd only when they were."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]

STORY = frozenset(("begin", "end", "mark", "round", "pages", "announced", "rolled-back", "lun"))
"""Kinds that are kept whole whatever their number: a migration is told by them."""
MOST_OF_A_KIND = 2000
"""Of any other kind so many are kept whole; beyond that the times of all of them are."""


@dataclass
class Kind:
    """All events of one kind: `first` of them whole, and the time of each."""

    first: list[Event] = field(default_factory=list)
    times_ns: array[int] = field(default_factory=lambda: array("q"))


@dataclass(frozen=True)
class Events:
    """What was recorded: `story` in the order of time, `kinds` of everything."""

    story: list[Event]
    kinds: dict[str, Kind]
    count: int
    begin_ns: int | None
    end_ns: int | None

    def of(self, *kinds: str) -> list[Event]:
        """Those of these kinds that were kept whole, in the order of time."""
        found = [one for kind in kinds if kind in self.kinds for one in self.kinds[kind].first]
        return sorted(found, key=lambda one: one["t_ns"])


class Sieve:
    """Takes events in any order; memory follows the story, with eight bytes for each of the crowd."""

    def __init__(self) -> None:
        self._story: list[Event] = []
        self._kinds: dict[str, Kind] = {}

    def take(self, events: Iterable[Event]) -> None:
        groups: defaultdict[str, list[Event]] = defaultdict(list)
        for event in events:
            groups[event["event"]].append(event)
        for name, group in groups.items():
            kind = self._kinds.setdefault(name, Kind())
            if name in STORY:
                self._story += group
            else:
                kind.first += group[: MOST_OF_A_KIND - len(kind.first)]
            kind.times_ns.extend([event["t_ns"] for event in group])

    def events(self) -> Events:
        story = sorted(self._story, key=lambda one: one["t_ns"])
        ends = [bound for kind in self._kinds.values() for bound in (min(kind.times_ns), max(kind.times_ns))]
        count = sum(len(kind.times_ns) for kind in self._kinds.values())
        return Events(story, self._kinds, count, min(ends, default=None), max(ends, default=None))
