"""What all probes have in common: members that connect, wait and are counted, and the report on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.clients.integrity import Integrity
from testbed.clients.loop import Loop
from testbed.clients.spec import Target
from testbed.clients.stream import Failure, State, Stream
from testbed.measure.continuity import Waits, Window, closed_loop, distribution, figures, split
from testbed.measure.trace import Trace

MOST_FAILURES_TOLD = 100


@dataclass(frozen=True)
class Samples:
    """Parallel arrays, one entry a request or message, in the order of sending on each connection."""

    sent_ns: NDArray[np.int64]
    received_ns: NDArray[np.int64]
    """Where nothing came: when the probe stopped waiting."""
    connection: NDArray[np.int32]
    answered: NDArray[np.bool_]
    handled_ns: NDArray[np.int64] | None = None
    """When the service had it: 0 where it did not say, None of a kind that is never told."""


class Member(Stream):
    """One connection of a probe, with its samples.

    A sample that is under way has its time in `sent_ns` already and none in `received_ns` yet: the two arrays
    differ in length by as many replies as are due.
    """

    def __init__(self, loop: Loop, target: Target, number: int) -> None:
        super().__init__(loop, target.address, target.port)
        self.number = number
        self.established_ns = 0
        self.sent_ns = array("q")
        self.received_ns = array("q")
        self.unanswered = 0
        """So many of the last samples were given up, not answered."""
        self.forgotten = 0
        """So many samples have been reported and then let go of."""
        self.integrity = Integrity()
        self.complaint: str | None = None

    @property
    def due(self) -> int:
        """Replies that are due."""
        return len(self.sent_ns) - len(self.received_ns)

    @property
    def requests(self) -> int:
        return self.forgotten + len(self.sent_ns)

    @property
    def broken(self) -> Failure | None:
        """How the connection broke after it had been established."""
        return self.failure if self.established_ns else None

    def established(self, t_ns: int) -> None:
        self.established_ns = t_ns

    def ended(self) -> None:
        if not self.established_ns and self.failure is None:
            self.failure = Failure("timeout", monotonic_ns())
        self.give_up()

    def give_up(self) -> None:
        """No reply that is still due will be waited for any longer."""
        due = self.due
        if due:
            self.unanswered += due
            self.received_ns.extend([monotonic_ns()] * due)
            self.failure = self.failure or Failure("unanswered", self.received_ns[-1])
        self.settle()

    def settle(self) -> None:
        """All that will come has come: count what is missing. May be called again."""

    def forget(self) -> None:
        """Let go of the samples that were answered. Only while no reply is due."""
        answered = len(self.sent_ns) - self.unanswered
        self.forgotten += answered
        self.sent_ns, self.received_ns = self.sent_ns[answered:], self.received_ns[answered:]


class Probe(ABC):
    """A set of connections that do one thing. What `open` began and `begin` set going, `end` and `close` wind
    up.

    The life of a probe: `open` until not `opening`; `begin`, `end` until not `busy`, as often as wished;
    `close` until not `closing`; and what is not closed by then, `abandon`. Each returns at once; the loop
    does the rest.
    """

    kind: str

    def __init__(self, loop: Loop, trace: Trace, target: Target) -> None:
        self.loop = loop
        self.trace = trace
        self.target = target
        self.asking = False
        self.recent_longest_ns = 0
        """The longest wait that ended since the last beat or heartbeat."""
        self._beaten_longest_ns = 0
        """The longest that was told by beats since the last heartbeat."""
        self.skipped = 0
        """Turns left out: the reply before had not come in time, or the kernel took no more."""
        self.latest_ns = 0
        """How late the probe itself was at most: from the moment it should have sent to the moment it did."""

    # The life

    @abstractmethod
    def members(self) -> Sequence[Member]:
        """The connections that there are to tell about one by one."""

    def open(self) -> None:
        for member in self.members():
            member.connect()

    def opening(self) -> bool:
        return any(member.state is State.CONNECTING for member in self.members())

    def connections(self) -> int:
        """How many there are once it is opened."""
        return len(self.members())

    def not_opened(self) -> list[str]:
        """Of each connection that was not made, why."""
        failed = [member for member in self.members() if not member.established_ns]
        return [member.failure.reason if member.failure else "timeout" for member in failed]

    @abstractmethod
    def begin(self, start_ns: int) -> None:
        """Ask, from `start_ns` on, until :meth:`end`."""

    def end(self) -> None:
        """Ask no more. Replies that are due may still come."""
        self.asking = False

    def busy(self) -> bool:
        return any(member.due for member in self.members())

    def close(self) -> None:
        for member in self.members():
            member.finish()

    def closing(self) -> bool:
        return any(member.state not in (State.NEW, State.CLOSED) for member in self.members())

    def abandon(self) -> None:
        for member in self.members():
            member.drop()

    # What it tells

    @abstractmethod
    def waits(self, samples: Samples) -> Waits:
        """What `samples` mean for this kind of probe."""

    def samples(self) -> Samples:
        """Every sample whose reply is not due any more, and that has not been forgotten."""
        return columns(self.members())

    def arrays(self) -> dict[str, Any]:
        """What is to be saved beside the samples: arrays by name."""
        return {}

    def waiting_ns(self, now_ns: int) -> int:
        """The longest wait that is under way."""
        waits = (now_ns - member.sent_ns[-member.due] for member in self.members() if member.due)
        return max(waits, default=0)

    def beat_ns(self) -> int:
        """The longest wait since the last call, those that are under way included."""
        longest = max(self.recent_longest_ns, self.waiting_ns(monotonic_ns()))
        self.recent_longest_ns = 0
        self._beaten_longest_ns = max(self._beaten_longest_ns, longest)
        return longest

    def longest_since_heartbeat_ns(self) -> int:
        """The same since the last call of this: beats in between take nothing away from it."""
        self.beat_ns()
        longest, self._beaten_longest_ns = self._beaten_longest_ns, 0
        return longest

    def live(self) -> dict[str, Any]:
        """Small figures for a live view; `longest_wait_ns` is since the last call and knows of waits under
        way."""
        members = self.members()
        return {
            "kind": self.kind,
            "connections": len(members),
            "broken": sum(member.broken is not None for member in members),
            "requests": sum(member.requests for member in members),
            "longest_wait_ns": self.longest_since_heartbeat_ns(),
            "wrong_bytes": sum(
                member.integrity.lost + member.integrity.duplicated + member.integrity.corrupted
                for member in members
            ),
        }

    def report(self, windows: Sequence[Window]) -> dict[str, Any]:
        """The probe's part of the summary: sums, figures of its waits, and a row for each connection.

        `kind`, `address`, `port`; the sums of :func:`counts`; `skipped` and `latest_ns` (see there); the
        waits by window, as :func:`window_reports` says; `per_connection`, as :func:`per_connection` says.
        JSON-able. Does not touch the network, but takes its time on many samples.
        """
        members = self.members()
        for member in members:
            member.read_tcp_info()
        waits = self.waits(self.samples())
        rows = per_connection(members, waits, windows)
        return {
            "kind": self.kind,
            "address": self.target.address,
            "port": self.target.port,
            **counts(members),
            "skipped": self.skipped,
            "latest_ns": self.latest_ns,
            **window_reports(waits, windows),
            "per_connection": rows,
        }

    def forget(self) -> None:
        """Let go of all samples, so that memory stays flat over many migrations. Only while not busy."""
        for member in self.members():
            member.forget()

    # For derived probes

    def answered(self, wait_ns: int) -> None:
        if wait_ns > self.recent_longest_ns:
            self.recent_longest_ns = wait_ns

    def note_failure(self, member: Member) -> None:
        if member.failure is not None:
            what = "broken" if member.established_ns else "failed-connect"
            reason, t_ns = member.failure.reason, member.failure.t_ns
            self.trace.event(what, t_ns=t_ns, connection=member.number, reason=reason)


def columns(members: Iterable[Member]) -> Samples:
    """The samples of `members`, one connection after the other."""
    sent, received, numbers, answered = [_TIMES], [_TIMES], [_NUMBERS], [_FLAGS]
    for member in members:
        count = len(member.received_ns)
        sent.append(np.array(member.sent_ns[:count], dtype=np.int64))
        received.append(np.array(member.received_ns, dtype=np.int64))
        numbers.append(np.full(count, member.number, dtype=np.int32))
        answered.append(np.arange(count) < count - member.unanswered)
    return Samples(
        np.concatenate(sent), np.concatenate(received), np.concatenate(numbers), np.concatenate(answered)
    )


def counts(members: Sequence[Member]) -> dict[str, Any]:
    """Sums over `members`, and the reasons of what broke or failed with how often each occurred."""
    wrong = Integrity()
    for member in members:
        wrong.add(member.integrity)
    failures = [member.failure for member in members if member.failure]
    reasons = [failure.reason for failure in failures]
    return {
        "connections": len(members),
        "requests": sum(member.requests for member in members),
        "unanswered": sum(member.unanswered for member in members),
        "broken": sum(member.broken is not None for member in members),
        "failed_connects": sum(bool(member.failure) and not member.established_ns for member in members),
        "unclosed": sum(member.unclosed for member in members),
        "resets": reasons.count("reset"),
        "reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "retransmits": sum(member.retransmits for member in members),
        "retransmits_needless": sum(member.retransmits_needless for member in members),
        "bytes_lost": wrong.lost,
        "bytes_duplicated": wrong.duplicated,
        "bytes_corrupted": wrong.corrupted,
    }


def per_connection(
    members: Sequence[Member], waits: Waits, windows: Sequence[Window]
) -> list[dict[str, Any]]:
    """One row a connection; `during` and `quiet` are its longest waits (ns, or None) window by window."""
    mine = waits.by_connection()
    nothing = closed_loop([], [], [])
    rows = []
    for member in members:
        own = mine.get(member.number, nothing)
        parts, of_all = split(own, windows), figures(own)
        rows.append(
            {
                "connection": member.number,
                "local_port": member.local_port,
                "requests": member.requests,
                "unanswered": member.unanswered,
                "longest_ns": of_all.longest_ns,
                "longest_at_ns": of_all.longest_at_ns,
                "p50_ns": of_all.p50_ns,
                "p99_ns": of_all.p99_ns,
                "during_ns": [figures(part).longest_ns for part in parts.during],
                "quiet_ns": [figures(part).longest_ns for part in parts.quiet],
                "retransmits": member.retransmits,
                "retransmits_needless": member.retransmits_needless,
                "backoff": member.backoff,
                "broken": member.broken.reason if member.broken else None,
                "broken_at_ns": member.broken.t_ns if member.broken else None,
                "bytes_lost": member.integrity.lost,
                "bytes_duplicated": member.integrity.duplicated,
                "bytes_corrupted": member.integrity.corrupted,
                "complaint": member.complaint,
            }
        )
    return rows


def window_reports(waits: Waits, windows: Sequence[Window]) -> dict[str, Any]:
    """`waits`: figures of all; `during`: of each window; `quiet`: of the time before, between and after them.

    Each has `gap_ns` too: p50, p99 and max over connections of the longest wait of each.
    """
    parts = split(waits, windows)
    return {
        "waits": _with_gap(waits),
        "during": [_with_gap(part) for part in parts.during],
        "quiet": [_with_gap(part) for part in parts.quiet],
    }


def _with_gap(part: Waits) -> dict[str, Any]:
    longest = [figures(own).longest_ns for own in part.by_connection().values()]
    return {**figures(part).as_json(), "gap_ns": distribution([gap for gap in longest if gap is not None])}


_TIMES = np.empty(0, dtype=np.int64)
_NUMBERS = np.empty(0, dtype=np.int32)
_FLAGS = np.empty(0, dtype=np.bool_)
