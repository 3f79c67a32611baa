"""From events to migrations: who did what when. Pure.

Several migrations may follow one another or, of different guests, go on at once. Events of a guest that has a
name carry it (`vm`, or after the host's name: ``host-a:vm2``); a guest's next migration begins when a host
that has set one up sets up another, or when both had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.report.page.sieve import Event

MARKS_OF_A_RETURN = ("running-again",)


@dataclass
class Move:
    """One migration as its events tell it; `told` is its entry in the result, if there is one."""

    vm: str | None
    events: list[Event] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def hosts(self) -> list[str]:
        """In the order in which they began."""
        return list(dict.fromkeys(host_of(one) for one in self.events if one["event"] == "begin"))

    @property
    def source(self) -> str:
        """By the result; else who sent pages, or was asked to pause; else who began."""
        if self.told.get("source"):
            return str(self.told["source"])
        senders = [
            one for one in self.events if one["event"] in ("round", "pages") or _is_mark(one, "paused")
        ]
        return host_of(senders[0]) if senders else next(iter(self.hosts), "the source")

    @property
    def target(self) -> str:
        if self.told.get("target"):
            return str(self.told["target"])
        return next((host for host in self.hosts if host != self.source), "the target")

    @property
    def begin_ns(self) -> int:
        return int(self.events[0]["t_ns"])

    @property
    def end_ns(self) -> int:
        """The last phase's end: announcements go on after it."""
        ends = [one["t_ns"] for one in self.events if one["event"] in ("begin", "end", "mark", "rolled-back")]
        return int(max(ends, default=self.events[-1]["t_ns"]))

    def mark(self, name: str) -> int | None:
        """When the mark was first made (ns)."""
        return next((int(one["t_ns"]) for one in self.events if _is_mark(one, name)), None)

    @property
    def pause_ns(self) -> int | None:
        return self.mark("paused")

    @property
    def resume_ns(self) -> int | None:
        """When the guest ran again, wherever: at the target, or on at the source."""
        found = [self.mark(name) for name in ("resumed", *MARKS_OF_A_RETURN)]
        return next((one for one in found if one is not None), None)

    @property
    def outcome(self) -> str:
        if self.told.get("outcome"):
            return str(self.told["outcome"])
        if self.mark("resumed") is not None:
            return "completed"
        return "rolled-back" if any(one["event"] == "rolled-back" for one in self.events) else "unknown"


def host_of(event: Event) -> str:
    """The host whose process told it: ``host-a`` of ``host-a:vm2`` and of ``host-a-volume``."""
    return str(event["source"]).split(":")[0].removesuffix("-volume")


def vm_of(event: Event) -> str | None:
    """The guest that it is about; None where the lab has one only, which needs no name."""
    if event.get("vm"):
        return str(event["vm"])
    _, _, name = str(event["source"]).partition(":")
    return name or None


def _is_mark(event: Event, name: str) -> bool:
    return event["event"] == "mark" and event.get("name") == name


def moves(story: Iterable[Event], told: Sequence[dict[str, Any]]) -> list[Move]:
    """The migrations in the order of their begin. `told` are the result's, in its order."""
    current: dict[str | None, Move] = {}
    set_up: dict[str | None, set[str]] = {}
    found: list[Move] = []
    for event in story:
        vm, host = vm_of(event), host_of(event)
        if event["event"] == "begin" and event.get("phase") == "setup":
            if vm not in current or host in set_up[vm] or len(set_up[vm]) > 1:
                current[vm], set_up[vm] = Move(vm), set()
                found.append(current[vm])
            set_up[vm].add(host)
        if vm in current:
            current[vm].events.append(event)
    _match(found, told)
    return found


def _match(found: Sequence[Move], told: Sequence[dict[str, Any]]) -> None:
    """The k-th migration of a guest is the k-th that the result tells of it."""
    waiting: dict[str | None, list[dict[str, Any]]] = {}
    for one in told:
        waiting.setdefault(one.get("vm"), []).append(one)
    several = len({move.vm for move in found}) > 1
    for move in found:
        entries = waiting.get(move.vm) or ([] if several else waiting.get(next(iter(waiting), None))) or []
        if entries:
            move.told = entries.pop(0)


def phases(move: Move) -> list[dict[str, Any]]:
    """`host`, `phase`, `begin_ns`, `end_ns` (None: it never ended) and `error`, in the order of their
    begin."""
    open_: dict[tuple[str, str], dict[str, Any]] = {}
    found = []
    for event in move.events:
        if event["event"] not in ("begin", "end"):
            continue
        key = (host_of(event), str(event.get("phase")))
        if event["event"] == "begin":
            open_[key] = {
                "host": key[0],
                "phase": key[1],
                "begin_ns": event["t_ns"],
                "end_ns": None,
                "error": None,
            }
            found.append(open_[key])
        elif key in open_:
            open_.pop(key).update(end_ns=event["t_ns"], error=event.get("error"))
    return found


def rounds(move: Move) -> list[dict[str, Any]]:
    """Every round, and last what was sent while the guest stood still (`last`): when, how much, where."""
    found = []
    for event in move.events:
        if event["event"] == "round":
            begin_ns = event.get("begin_ns", event["t_ns"] - event.get("duration_ns", 0))
            end_ns = begin_ns + event.get("duration_ns", 0)
            found.append({**event, "begin_ns": begin_ns, "end_ns": end_ns, "last": False})
        elif event["event"] == "pages" or _is_mark(event, "pages-sent"):
            found.append({**event, "last": True})
    last: dict[str, Any] = {}
    for one in (one for one in found if one["last"]):
        last |= {key: value for key, value in one.items() if key in ("number", "begin_ns", "map", "pages")}
    found = [one for one in found if not one["last"]]
    sent_ns = move.mark("pages-sent")
    if last and sent_ns is not None:
        begin_ns = last.get("begin_ns", move.mark("cut") or move.pause_ns or sent_ns)
        found.append(
            {
                "number": len(found) + 1,
                "pages": 0,
                **last,
                "begin_ns": begin_ns,
                "end_ns": sent_ns,
                "last": True,
            }
        )
    return found
