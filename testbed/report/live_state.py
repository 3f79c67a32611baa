"""What a run looks like at this moment, from what was told of it so far. Pure: events in, a picture's facts
out; the time is an argument.

The nouns: the **cast** is who is there; a **guest** is somewhere and perhaps on its way; a **strip** is what
one client waited, a cell for each 50 ms. Events of several processes come in no order but each one's own, so
nothing here depends on which of two hosts was heard first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from testbed.experiment.outcome import blackout_parts
from testbed.migration.phases import ORDER

CELL_NS = 50_000_000
"""How much time a cell of a strip stands for."""
BEAT_MS = CELL_NS // 1_000_000
HOLD_NS = 700_000_000
"""For so long at most nothing is drawn after a switchover was announced: a blackout that lasts longer is not
made longer by looking."""
_KEPT_CELLS = 600
PHASES = tuple(phase.value for phase in ORDER)


@dataclass(frozen=True)
class Cast:
    """Who is there: hosts in their order, each guest with its host and RAM, clients by name."""

    title: str
    hosts: tuple[str, ...]
    guests: Mapping[str, tuple[str, int]]
    clients: tuple[str, ...]


@dataclass(frozen=True)
class Round:
    """One pre-copy round that is over."""

    number: int
    pages: int
    bytes: int
    duration_ns: int
    dirty_pages: int

    @property
    def bits_per_s(self) -> float:
        return self.bytes * 8e9 / max(self.duration_ns, 1)


@dataclass
class GuestState:
    """One guest. `host` is where it runs; while it is on its way (`target` is not None), `phase` is the last
    that has begun and `rounds` what has crossed."""

    name: str
    ram_bytes: int
    host: str
    source: str | None = None
    target: str | None = None
    count: tuple[int, int] = (1, 1)
    phase: str | None = None
    rounds: list[Round] = field(default_factory=list)
    under_way: tuple[int, int, int] | None = None
    """Of the round that is on its way: number, bytes sent, bytes to send."""
    lun: tuple[str, int, int] | None = None
    marks: dict[str, int] = field(default_factory=dict)
    switching_since_ns: int | None = None
    """When its switchover was announced, until it was heard of its end."""
    moved_at_ns: int | None = None
    """When that was heard (not when it was)."""
    deleted: bool = False
    rolled_back: str | None = None

    @property
    def moving(self) -> bool:
        """Whether a migration of it is under way."""
        return self.target is not None and not self.deleted and self.rolled_back is None

    @property
    def blackout_ns(self) -> int | None:
        """How long it stood still, once both hosts have told."""
        begin = self.marks.get("paused")
        end = self.marks.get("resumed", self.marks.get("running-again"))
        return None if begin is None or end is None else end - begin

    @property
    def parts_ms(self) -> dict[str, float]:
        """What the blackout was spent on."""
        whole = "resumed" in self.marks and "paused" in self.marks
        return blackout_parts(self.marks) if whole else {}

    @property
    def copied(self) -> float:
        """How much of what is to be copied lies at the target, 0 to 1."""
        if self.lun is not None:
            return self.lun[1] / max(self.lun[2], 1)
        if "resumed" in self.marks:
            return 1.0
        first = self.rounds[0].pages if self.rounds else 0
        if first:
            return max(0.0, 1 - self.rounds[-1].dirty_pages / first)
        return self.under_way[1] / max(self.under_way[2], 1) if self.under_way is not None else 0.0


class Strip:
    """What one client waited: the longest wait (ns) by cell, `longest_ns` of all, and how often something
    `broke`; `kinds` are the same of each kind of probe alone."""

    def __init__(self) -> None:
        self.kinds: dict[str, Strip] = {}
        self._cells: deque[tuple[int, int]] = deque(maxlen=_KEPT_CELLS)
        self.longest_ns = 0
        self.broke = 0

    def beat(self, t_ns: int, longest_ns: int) -> None:
        """The longest wait since the beat before: every cell since then has it."""
        cell = t_ns // CELL_NS
        self.longest_ns = max(self.longest_ns, longest_ns)
        last = self._cells[-1][0] if self._cells else cell - 1
        if cell <= last:  # two in one cell: the worse one stands
            index, before = self._cells.pop()
            self._cells.append((index, max(before, longest_ns)))
            return
        for missing in range(max(last + 1, cell - _KEPT_CELLS), cell + 1):
            self._cells.append((missing, longest_ns))

    def cells(self, count: int, end: int) -> list[int | None]:
        """The `count` cells before cell number `end`; None where nothing was told."""
        known = dict(self._cells)
        return [known.get(number) for number in range(end - count, end)]

    @property
    def now_ns(self) -> int | None:
        """What was told last."""
        return self._cells[-1][1] if self._cells else None

    @property
    def end(self) -> int:
        """The number of the cell after the last; 0 where there is none."""
        return self._cells[-1][0] + 1 if self._cells else 0


class LiveState:
    """The picture's facts. Give it all that a witness of a run is told."""

    def __init__(self, cast: Cast, now_ns: int) -> None:
        self.cast = cast
        self.begun_ns = now_ns
        self.guests = {name: GuestState(name, ram, host) for name, (host, ram) in cast.guests.items()}
        self.strips = {name: Strip() for name in cast.clients}
        self.said = ""
        """The last line."""
        self.serving = False
        """Whether the guests are known to run: clients ask them."""

    def say(self, text: str) -> None:
        self.said = text

    def migration(self, source: str, target: str, number: int, of: int, vm: str | None) -> None:
        """A migration is about to begin."""
        before = self._guest(vm)
        fresh = GuestState(before.name, before.ram_bytes, source, source, target, (number, of))
        self.guests[before.name] = fresh

    def event(self, event: Mapping[str, Any], now_ns: int) -> None:
        """Take in one event, heard at `now_ns`."""
        kind, source = event["event"], str(event["source"])
        if source in self.strips:
            self.serving = True
            self._of_client(self.strips[source], kind, event)
            return
        guest = self._guest(event.get("vm"))
        host = source.partition(":")[0]
        match kind:
            case "begin" if event["phase"] in PHASES:
                self._phase(guest, host, event["phase"])
            case "end" if event["phase"] == "delete" and host == guest.source:
                guest.deleted = True
            case "switching-over":
                guest.switching_since_ns = now_ns
            case "sending":
                guest.under_way = (event["number"], event["bytes"], event["of_bytes"])
            case "round":
                guest.rounds.append(Round(**{name: event[name] for name in Round.__annotations__}))
                guest.under_way = None
            case "lun":
                guest.lun = (event["way"], event["bytes"], event["of_bytes"])
            case "mark":
                self._mark(guest, event, now_ns)
            case "rolled-back":
                guest.rolled_back = str(event["reason"])
                guest.switching_since_ns = None
            case "volume-state":
                self.said = f"storage: {host.removesuffix('-volume')}: {event['volume']}"

    def holding(self, now_ns: int) -> bool:
        """Whether a guest may be standing still just now, so that one had better leave it the machine."""
        since = (guest.switching_since_ns for guest in self.guests.values())
        return any(one is not None and now_ns - one < HOLD_NS for one in since)

    @property
    def moving(self) -> list[GuestState]:
        """Those that are on their way."""
        return [guest for guest in self.guests.values() if guest.moving]

    @property
    def focus(self) -> GuestState:
        """The guest of which most is to be told: one that moves, else the one that moved last."""
        moving = self.moving
        moved = [guest for guest in self.guests.values() if guest.target is not None]
        last = sorted(moved, key=lambda guest: guest.marks.get("paused", 0))
        return (moving or last[-1:] or list(self.guests.values()))[0]

    @property
    def end(self) -> int:
        """The number of the cell after the last of any strip."""
        return max((strip.end for strip in self.strips.values()), default=0)

    @property
    def pauses(self) -> list[tuple[int, int]]:
        """When guests stood still, of which both ends are known (ns)."""
        found: Iterable[tuple[int | None, int | None]] = (
            (guest.marks.get("paused"), guest.marks.get("resumed", guest.marks.get("running-again")))
            for guest in self.guests.values()
        )
        return [(begin, end) for begin, end in found if begin is not None and end is not None]

    def _guest(self, vm: str | None) -> GuestState:
        """The guest of that name, or the only one."""
        return self.guests[vm] if vm in self.guests else next(iter(self.guests.values()))

    def _of_client(self, strip: Strip, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "beat":
            strip.beat(event["t_ns"], event["longest_wait_ns"])
            for name, longest_ns in event.get("each", {}).items():
                strip.kinds.setdefault(name, Strip()).beat(event["t_ns"], longest_ns)
        elif kind in ("broken", "failed-connect"):
            strip.broke += 1

    def _phase(self, guest: GuestState, host: str, phase: str) -> None:
        """The furthest that the source has begun: the target says the same, a little before or after."""
        further = guest.phase is None or PHASES.index(phase) > PHASES.index(guest.phase)
        if host == guest.source and further:
            guest.phase = phase

    def _mark(self, guest: GuestState, event: Mapping[str, Any], now_ns: int) -> None:
        name = event["name"]
        guest.marks[name] = event["t_ns"]
        if name == "resumed" and guest.target is not None:
            guest.host = guest.target
            guest.moved_at_ns = now_ns
        if name in ("resumed", "running-again"):
            guest.switching_since_ns = None
