"""Churn: connections that are opened, asked one thing, and closed again, many times a second.

Each visit is a whole life of a TCP connection, so at any moment some are in each state: handshake under way,
waiting to be accepted, asking, half closed. That is what a migration must carry over.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any

import numpy as np

from testbed.clients.closed_loop import CONNECTION_OFFSET
from testbed.clients.codecs import Codec, EchoCodec
from testbed.clients.integrity import Integrity
from testbed.clients.loop import Loop
from testbed.clients.probe import MOST_FAILURES_TOLD, Member, Probe, Samples, window_reports
from testbed.clients.spec import Target
from testbed.measure.continuity import Waits, Window, closed_loop
from testbed.measure.trace import Trace

MOST_AT_ONCE = 2000
"""Visits under way; turns beyond are skipped and counted."""

_OFFSETS = 1 << 20


class Churn(Probe):
    """Visits at a fixed rate, whatever became of those before. One sample a visit: from before the connection
    was asked for until the whole reply had been read. `connect` in the report is the part until it was
    established.

    A visit ends with our FIN, then the guest's. A failed connect is one that was never established, whatever
    the reason; a connection that ended otherwise than by those FINs is broken.
    """

    kind = "churn"

    def __init__(
        self, target: Target, rate_per_s: float, size: int, loop: Loop, trace: Trace, number: int
    ) -> None:
        super().__init__(loop, trace, target)
        self.interval_ns = max(1, round(1e9 / rate_per_s))
        self._size = size
        self._number = number
        self._visits = 0
        self._under_way: set[_Visit] = set()
        self._turn_ns = 0
        self._timed = False
        self._broken = self._failed_connects = self._unanswered = self._forgotten = 0
        self._retransmits = self._needless = self._unclosed = 0
        self._reasons: Counter[str] = Counter()
        self._failures: list[dict[str, Any]] = []
        self._wrong = Integrity()
        self._forget_all()

    def members(self) -> Sequence[Member]:
        """The visits under way: others are not told about one by one."""
        return list(self._under_way)

    def open(self) -> None:
        """There is nothing to be opened beforehand."""

    def begin(self, start_ns: int) -> None:
        self.asking = True
        self._turn_ns = start_ns
        if not self._timed:
            self._timed = True
            self.loop.at(start_ns, self._visit_due)

    def busy(self) -> bool:
        return bool(self._under_way)

    def close(self) -> None:
        """Each visit closes itself when it has its reply."""

    def closing(self) -> bool:
        return self.busy()

    def _visit_due(self) -> None:
        self._timed = False
        if not self.asking:
            return
        while self._turn_ns <= (now := monotonic_ns()):
            self.latest_ns = max(self.latest_ns, now - self._turn_ns)
            self._turn_ns += self.interval_ns
            if len(self._under_way) >= MOST_AT_ONCE:
                self.skipped += 1
                continue
            offset = self._visits % _OFFSETS * CONNECTION_OFFSET
            self._visits += 1
            visit = _Visit(self, self._number, self.codec(offset))
            self._under_way.add(visit)
            visit.connect()
        self._timed = True
        self.loop.at(self._turn_ns, self._visit_due)

    def codec(self, offset: int) -> Codec:
        """What a visit says and wants to hear; `offset` is its place in the ramp, no other visit's soon."""
        return EchoCodec(self._size, offset)

    def visited(self, visit: _Visit) -> None:
        """A visit is over, well or badly."""
        self._under_way.discard(visit)
        now = monotonic_ns()
        answered = bool(visit.received_ns) and not visit.unanswered
        self._begun_ns.append(visit.begun_ns)
        self._established_ns.append(visit.established_ns)
        self._replied_ns.append(visit.received_ns[0] if answered else now)
        self._answered.append(answered)
        self._unanswered += visit.unanswered
        self._unclosed += visit.unclosed
        self._retransmits += visit.retransmits
        self._needless += visit.retransmits_needless
        self._wrong.add(visit.integrity)
        if visit.failure is not None:
            self._failed_connects += not visit.established_ns
            self._broken += bool(visit.established_ns)
            self._reasons[visit.failure.reason] += 1
            if len(self._failures) < MOST_FAILURES_TOLD:
                self._failures.append(_failure_row(visit))
            self.note_failure(visit)

    def waits(self, samples: Samples) -> Waits:
        """One wait a visit: from before the connection was asked for until the reply had been read."""
        return closed_loop(samples.sent_ns, samples.received_ns, samples.connection)

    def samples(self) -> Samples:
        """In the order in which the visits ended."""
        return Samples(
            np.array(self._begun_ns, dtype=np.int64),
            np.array(self._replied_ns, dtype=np.int64),
            np.full(len(self._begun_ns), self._number, dtype=np.int32),
            np.frombuffer(bytes(self._answered), dtype=np.bool_),
        )

    def waiting_ns(self, now_ns: int) -> int:
        return max((now_ns - visit.begun_ns for visit in self._under_way if not visit.replied), default=0)

    def live(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "connections": len(self._under_way),
            "broken": self._broken + self._failed_connects,
            "requests": self._forgotten + len(self._begun_ns),
            "longest_wait_ns": self.longest_since_heartbeat_ns(),
            "wrong_bytes": self._wrong.lost + self._wrong.duplicated + self._wrong.corrupted,
        }

    def report(self, windows: Sequence[Window]) -> dict[str, Any]:
        """As of every probe, but with `connect` figures, and `failures` (the first hundred) for
        `per_connection`."""
        samples = self.samples()
        waits = self.waits(samples)
        established = np.array(self._established_ns, dtype=np.int64)
        made = established > 0
        connects = closed_loop(samples.sent_ns[made], established[made], samples.connection[made])
        return {
            "kind": self.kind,
            "address": self.target.address,
            "port": self.target.port,
            "connections": self._visits,
            "requests": self._forgotten + len(samples.sent_ns),
            "unanswered": self._unanswered,
            "broken": self._broken,
            "failed_connects": self._failed_connects,
            "unclosed": self._unclosed,
            "resets": self._reasons["reset"],
            "reasons": dict(sorted(self._reasons.items())),
            "retransmits": self._retransmits,
            "retransmits_needless": self._needless,
            "bytes_lost": self._wrong.lost,
            "bytes_duplicated": self._wrong.duplicated,
            "bytes_corrupted": self._wrong.corrupted,
            "skipped": self.skipped,
            "latest_ns": self.latest_ns,
            **window_reports(waits, windows),
            "connect": window_reports(connects, windows),
            "failures": self._failures,
            "per_connection": [],
        }

    def forget(self) -> None:
        self._forgotten += len(self._begun_ns)
        self._forget_all()

    def _forget_all(self) -> None:
        self._begun_ns, self._established_ns, self._replied_ns = array("q"), array("q"), array("q")
        self._answered = bytearray()


class _Visit(Member):
    def __init__(self, probe: Churn, number: int, codec: Codec) -> None:
        super().__init__(probe.loop, probe.target, number)
        self._probe = probe
        self._codec = codec
        self.integrity = codec.integrity
        self.begun_ns = monotonic_ns()
        self.replied = False

    def established(self, t_ns: int) -> None:
        super().established(t_ns)
        self.sent_ns.append(t_ns)
        self.send(self._codec.request())

    def received(self, data: bytes, t_ns: int) -> None:
        if self._codec.received(data):
            self.replied = True
            self.received_ns.append(t_ns)
            self._probe.answered(t_ns - self.begun_ns)
            self.finish()

    def settle(self) -> None:
        self._codec.finish()
        self.complaint = self._codec.complaint

    def ended(self) -> None:
        super().ended()
        self._probe.visited(self)


def _failure_row(visit: _Visit) -> dict[str, Any]:
    assert visit.failure is not None
    return {
        "begun_ns": visit.begun_ns,
        "failed_ns": visit.failure.t_ns,
        "reason": visit.failure.reason,
        "local_port": visit.local_port,
        "established": bool(visit.established_ns),
        "replied": visit.replied,
    }
