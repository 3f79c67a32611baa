"""Whether anybody noticed: ``with continuity(...) as c:`` watches connections for the length of a block.

Two kinds are watched: the lab's own probes, and what a test brings along, a function that asks the guest
something with any client library. At the end of the block the test fails if a connection broke, a byte was
lost, or somebody waited longer than is allowed, and the message says which one, when, and for how long.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed.measure.result import Clients, Connection, Result
from testbed.pytest_plugin.handles import Lab, Node
from testbed.scenario.units import format_ms, parse_duration

MOST_TOLD = 10
"""How many connections are told of one by one."""
_END_DEADLINE_S = 30.0


@dataclass
class Asking:
    """A test's own function, asked again and again in a thread of its own. `waits_ns` are (begin, duration)
    of each call, CLOCK_MONOTONIC; `error` is what it raised, and then it was not asked again."""

    name: str
    ask: Callable[[], object]
    every_s: float
    on: Node | None = None
    waits_ns: list[tuple[int, int]] = field(default_factory=list)
    error: BaseException | None = None
    error_ns: int = 0
    begun_ns: int = 0
    """When the last call began."""

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """Returns when the first call has come back."""
        self._thread.start()
        self._first.wait(_END_DEADLINE_S)

    def stop(self) -> bool:
        """Whether it ended: a call may hang for ever."""
        self._over.set()
        self._thread.join(_END_DEADLINE_S)
        return not self._thread.is_alive()

    @property
    def longest_ns(self) -> tuple[int, int]:
        """Begin and duration of the longest call."""
        return max(self.waits_ns, key=lambda wait: wait[1], default=(0, 0))

    def _run(self) -> None:
        with self.on or nullcontext():
            while not self._over.is_set():
                self.begun_ns = begun_ns = time.monotonic_ns()
                try:
                    self.ask()
                except BaseException as error:
                    self.error, self.error_ns = error, time.monotonic_ns()
                    return
                finally:
                    self.waits_ns.append((begun_ns, time.monotonic_ns() - begun_ns))
                    self._first.set()
                self._over.wait(self.every_s)


class Continuity:
    """What is seen in the block. After it: `clients` (the lab's probes, as in a result), `results` of the
    migrations in it, `asked` (the test's own functions), and `longest_ms`, the longest that anybody
    waited."""

    def __init__(self, lab: Lab, at_most_ns: int | None, asked: list[Asking], *, probes: bool) -> None:
        self._lab = lab
        self._at_most_ns = at_most_ns
        self._probes = probes
        self.asked = asked
        self.results: list[Result] = []
        self.clients: Clients | None = None
        self._begin_ns = 0

    def ask(
        self,
        ask: Callable[[], object],
        *,
        on: Node | None = None,
        every: str = "1ms",
        name: str | None = None,
    ) -> Asking:
        """Have `ask` called again and again until the end of the block, `every` so often, in a thread on the
        machine `on`. Also before the block, as continuity(ask, ...)."""
        asking = Asking(name or _name_of(ask, on), ask, parse_duration(every) / 1e9, on)
        self.asked.append(asking)
        if self._begin_ns:
            asking.start()
        return asking

    @property
    def longest_ms(self) -> float:
        waits = [one.longest_ns[1] / 1e6 for one in self.asked]
        return max([*waits, *(wait for _, wait in self._probe_waits())], default=0.0)

    def __enter__(self) -> Self:
        self._before = Clients.model_validate(self._told()["so_far"]) if self._probes else None
        self._results_before = len(self._lab.results)
        self._begin_ns = time.monotonic_ns()
        for asking in self.asked:
            asking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        hanging = [asking for asking in self.asked if not asking.stop()]
        self.results = self._lab.results[self._results_before :]
        if error is not None:
            return  # what went wrong in the block is what the test fails by
        so_far = None
        if self._probes:
            told = self._told(begin_ns=self._begin_ns)
            so_far, self.clients = (Clients.model_validate(told[key]) for key in ("so_far", "since"))
        complaints = self._complaints(so_far, hanging)
        if complaints:
            raise AssertionError("\n".join(["clients noticed:", *(f"  {one}" for one in complaints)]))

    def _told(self, **request: int) -> dict[str, Any]:
        answer = self._lab.ask({"do": "clients", **request})
        told: dict[str, Any] = json.loads(Path(answer["file"]).read_text())
        return told

    # ---- what is wrong

    def _complaints(self, so_far: Clients | None, hanging: list[Asking]) -> list[str]:
        found = [f"{one.name}: has not come back, {self._when(one.begun_ns)}" for one in hanging]
        for asking in self.asked:
            if asking.error is not None:
                what = f"{type(asking.error).__name__}: {asking.error}".removesuffix(": ")
                found.append(f"{asking.name}: {what}, {self._when(asking.error_ns)}")
        found += self._broken() if so_far is not None else []
        found += self._counted(so_far) if so_far is not None else []
        guests = [guest for result in self.results for guest in result.guests]
        found += [f"{guest.vm}'s program failed: {fault}" for guest in guests for fault in guest.faults]
        found += self._too_late()
        return found

    def _broken(self) -> list[str]:
        """The lab's connections that broke, by the events that their clients told."""
        broken = [
            event
            for event in self._lab.events()
            if event["event"] in ("broken", "failed-connect") and event["t_ns"] >= self._begin_ns
        ]
        words = {"broken": "broke", "failed-connect": "was not made"}
        found = [
            f"{event['source']}'s connection {event['connection']} {words[event['event']]} "
            f"({event['reason']}), {self._when(event['t_ns'])}"
            for event in broken[:MOST_TOLD]
        ]
        if len(broken) > MOST_TOLD:
            found.append(f"... and {len(broken) - MOST_TOLD} more")
        return found

    def _counted(self, so_far: Clients) -> list[str]:
        assert self._before is not None
        names = {
            "bytes_lost": "bytes lost",
            "bytes_duplicated": "bytes doubled",
            "bytes_corrupted": "bytes corrupted",
            "writes_lost": "acknowledged writes lost",
        }
        counts = {name: getattr(so_far, name) - getattr(self._before, name) for name in names}
        return [f"{count} {names[name]}" for name, count in counts.items() if count]

    def _too_late(self) -> list[str]:
        if self._at_most_ns is None:
            return []
        allowed = format_ms(self._at_most_ns / 1e6)
        found = [
            f"{one.name}: waited {format_ms(one.longest_ns[1] / 1e6)}, {self._when(one.longest_ns[0])}; "
            f"allowed are {allowed}"
            for one in self.asked
            if one.longest_ns[1] > self._at_most_ns
        ]
        late = [(row, wait) for row, wait in self._probe_waits() if wait * 1e6 > self._at_most_ns]
        late.sort(key=lambda one: -one[1])
        found += [
            f"{row.client}'s {row.probe} connection to {row.address}: waited {format_ms(wait)}; "
            f"allowed are {allowed}"
            for row, wait in late[:MOST_TOLD]
        ]
        return found

    def _probe_waits(self) -> list[tuple[Connection, float]]:
        """The longest wait (ms) of each of the lab's connections in the block, by parts of it."""
        parts = [result.clients for result in self.results] + ([self.clients] if self.clients else [])
        rows = [row for part in parts for row in part.each]
        return [(row, row.longest_wait_ms) for row in rows if row.longest_wait_ms is not None]

    def _when(self, t_ns: int) -> str:
        """A moment, by the last pause before it or the first after it."""
        marks = [event["t_ns"] for event in self._lab.events() if event.get("name") == "paused"]
        marks = [mark for mark in marks if mark >= self._begin_ns]
        if not marks:
            return f"{format_ms((t_ns - self._begin_ns) / 1e6)} after the block began"
        nearest = max((mark for mark in marks if mark <= t_ns), default=marks[0])
        delta = (t_ns - nearest) / 1e6
        return f"{format_ms(abs(delta))} {'after' if delta >= 0 else 'before'} the guest paused"


class Watching:
    """The fixture `continuity`: call it, and use what it returns as a context manager."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def __call__(
        self,
        *asks: Callable[[], object],
        on: Node | None = None,
        every: str = "1ms",
        at_most: str | None = None,
        probes: bool = True,
    ) -> Continuity:
        """Watch the lab's own `probes`, and the functions `asks`: each is called again and again, `every` so
        often, in a thread on the machine `on`. `at_most`: the longest that anybody may wait, as "50ms";
        without it nobody's connection may break, however long it waits."""
        at_most_ns = None if at_most is None else parse_duration(at_most)
        found = Continuity(self._lab, at_most_ns, [], probes=probes)
        for ask in asks:
            found.ask(ask, on=on, every=every)
        return found


def _name_of(ask: Callable[[], object], on: Node | None) -> str:
    name = getattr(ask, "__qualname__", type(ask).__name__).rpartition("<locals>.")[2]
    return f"{name} on {on.name}" if on is not None else name
