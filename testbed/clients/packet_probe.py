"""Probes that send numbered packets and hear what comes back: what UDP and ICMP have in common.

An open loop: a flow sends at a fixed rate whatever comes back, and each packet is followed by its number.
None is sent twice by anybody, so what is lost on the way is seen as lost, what comes twice as a duplicate,
and what is overtaken as reordered.

How one knows at the end that nothing more will come: a *marker*, a packet that is not counted, is sent again
and again until one has come back; what was sent before it and has not come back a little later is lost.
"""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.clients.loop import IN, Loop
from testbed.clients.packet_log import PacketLog
from testbed.clients.probe import Member, Probe, Samples, window_reports
from testbed.clients.spec import Target
from testbed.clients.stream import reason_of
from testbed.measure.continuity import Waits, Window, closed_loop, figures, packets, split
from testbed.measure.datagram import MARKER, Numbered
from testbed.measure.trace import Trace

MARKER_NS = 50_000_000
"""From one marker to the next."""
SETTLED_NS = 200_000_000
"""So long after the last arrival, with a marker among them, what has not come is lost."""
A_TURN = 64
"""Packets read from one flow before others have their turn."""
RECEIVE_BYTES = 1 << 16


class PacketProbe(Probe):
    """Flows that share a target and a rate. `members` has none: a flow is no connection that could break."""

    def __init__(
        self, loop: Loop, trace: Trace, target: Target, rate_per_s: float, size: int, numbers: Sequence[int]
    ) -> None:
        super().__init__(loop, trace, target)
        self.interval_ns = max(1, round(1e9 / rate_per_s))
        self.size = size
        self.flows = [self.flow(number) for number in numbers]
        self.reasons: Counter[str] = Counter()
        """Errors that the kernel told of packets, by their name."""

    @abstractmethod
    def flow(self, number: int) -> Flow:
        """A flow of this kind, not opened yet."""

    # The life

    def members(self) -> Sequence[Member]:
        return []

    def open(self) -> None:
        for flow in self.flows:
            flow.open()

    def opening(self) -> bool:
        return any(flow.opening for flow in self.flows)

    def connections(self) -> int:
        return len(self.flows)

    def not_opened(self) -> list[str]:
        return [flow.reason or "timeout" for flow in self.flows if not flow.answered]

    def begin(self, start_ns: int) -> None:
        self.asking = True
        for number, flow in enumerate(self.flows):
            flow.begin(start_ns + number * self.interval_ns // len(self.flows))

    def end(self) -> None:
        super().end()
        for flow in self.flows:
            flow.end()

    def busy(self) -> bool:
        return any(flow.busy() for flow in self.flows)

    def close(self) -> None:
        for flow in self.flows:
            flow.log.give_up()

    def closing(self) -> bool:
        return False

    def abandon(self) -> None:
        for flow in self.flows:
            flow.close()

    # What it tells

    def waits(self, samples: Samples) -> Waits:
        """One wait for each two consecutive arrivals: the time between them less the sending interval."""
        return packets(
            samples.sent_ns, samples.received_ns, samples.answered, samples.connection, self.interval_ns
        )

    def samples(self) -> Samples:
        """What was given up has as its `received_ns` the time of the last packet sent: it is not in yet then.
        """
        parts = [flow.samples() for flow in self.flows]
        return Samples(
            np.concatenate([part.sent_ns for part in parts]),
            np.concatenate([part.received_ns for part in parts]),
            np.concatenate([part.connection for part in parts]),
            np.concatenate([part.answered for part in parts]),
            np.concatenate([part.handled_ns for part in parts if part.handled_ns is not None]),
        )

    def waiting_ns(self, now_ns: int) -> int:
        return max((flow.silence_ns(now_ns) for flow in self.flows), default=0)

    def live(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "connections": len(self.flows),
            "broken": 0,
            "requests": sum(flow.log.next for flow in self.flows),
            "longest_wait_ns": self.longest_since_heartbeat_ns(),
            "wrong_bytes": sum(flow.corrupted for flow in self.flows),
        }

    def report(self, windows: Sequence[Window]) -> dict[str, Any]:
        """As of every probe, and in packets: `lost`, `duplicated`, `reordered`, `late` (came after they had
        been given up), `corrupted`; `round_trip`: how long it took until they were back; `one_way`: how long
        they took `there` and `back`, where the other end says when it had them, else None.
        """
        if not self.busy():
            for flow in self.flows:
                flow.log.give_up()
        samples = self.samples()
        waits = self.waits(samples)
        mine = waits.by_connection()
        rows = [flow.row(mine.get(flow.number, closed_loop([], [], [])), windows) for flow in self.flows]

        def total(key: str) -> int:
            return sum(int(row[key]) for row in rows)

        return {
            "kind": self.kind,
            "address": self.target.address,
            "port": self.target.port,
            "connections": len(self.flows),
            **dict.fromkeys(_OF_STREAMS, 0),
            "requests": total("requests"),
            "unanswered": total("unanswered"),
            "reasons": dict(sorted(self.reasons.items())),
            "bytes_corrupted": total("bytes_corrupted"),
            **{name: total(name) for name in ("lost", "duplicated", "reordered", "late", "corrupted")},
            "round_trip": round_trip(samples),
            "one_way": one_way(samples),
            "skipped": self.skipped,
            "latest_ns": self.latest_ns,
            **window_reports(waits, windows),
            "per_connection": rows,
        }

    def forget(self) -> None:
        for flow in self.flows:
            flow.log.forget()


_OF_STREAMS = (
    *("requests", "unanswered", "broken", "failed_connects", "unclosed", "resets", "retransmits"),
    *("retransmits_needless", "bytes_lost", "bytes_duplicated", "bytes_corrupted"),
)
"""What streams report and packets have none of, or have filled in above: a lost packet is no lost byte of a
stream, for nobody promised it."""


class Flow:
    """One numbered sequence of packets, on a socket of its own."""

    def __init__(self, probe: PacketProbe, number: int) -> None:
        self.number = number
        self.log = PacketLog()
        self.corrupted = 0
        self.answered = False
        """Something has come back, so there is somebody."""
        self.opening = False
        self.reason = ""
        self._probe = probe
        self._socket: socket.socket | None = None
        self._turn_ns = 0
        self._timed = False
        self._ending = False
        self._marker_timed = False
        self._marker_back = False
        self._last_heard_ns = 0

    # What a kind of flow knows

    def make_socket(self) -> socket.socket:
        """A socket that neither waits nor hears of others' packets, if that can be had."""
        raise NotImplementedError

    def encode(self, number: int, sent_ns: int) -> bytes:
        """The packet to send."""
        raise NotImplementedError

    def decode(self, data: bytes) -> Numbered | None:
        """What a packet says; None if it is not one of this flow."""
        raise NotImplementedError

    # Its life

    def open(self) -> None:
        self._socket = self.make_socket()
        self._probe.loop.add(self._socket.fileno(), IN, self._ready)
        self.opening = True
        self._mark()

    def begin(self, turn_ns: int) -> None:
        self._ending = False
        self._turn_ns = turn_ns
        self._last_heard_ns = turn_ns
        if not self._timed:
            self._timed = True
            self._probe.loop.at(turn_ns, self._send_due)

    def end(self) -> None:
        self._ending, self._marker_back = True, False
        if self.log.due:
            self._mark()

    def busy(self) -> bool:
        if not self.log.due:
            return False
        return not self._marker_back or monotonic_ns() < self._last_heard_ns + SETTLED_NS

    def close(self) -> None:
        if self._socket is not None:
            self._probe.loop.remove(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self.opening = False

    # Sending and hearing

    def _send_due(self) -> None:
        self._timed = False
        probe = self._probe
        if not probe.asking or self._socket is None:
            return
        while self._turn_ns <= (now := monotonic_ns()):
            probe.latest_ns = max(probe.latest_ns, now - self._turn_ns)
            self._turn_ns += probe.interval_ns
            if self._send(self.log.next, now):
                self.log.note_sent(now)
            else:
                probe.skipped += 1
        self._timed = True
        probe.loop.at(self._turn_ns, self._send_due)

    def _mark(self) -> None:
        """Send markers until one has come back and what it waited for is settled."""
        if self._marker_timed:
            return
        self._send_marker()

    def _send_marker(self) -> None:
        self._marker_timed = False
        if self._socket is None or not (self.opening or (self._ending and self.busy())):
            return
        if not self._marker_back or self.opening:
            self._send(MARKER, monotonic_ns())
        self._marker_timed = True
        self._probe.loop.at(monotonic_ns() + MARKER_NS, self._send_marker)

    def _send(self, number: int, now: int) -> bool:
        """False if it could not leave; an error of an earlier packet that is told now costs none."""
        assert self._socket is not None
        packet = self.encode(number, now)
        for _ in range(2):
            try:
                self._socket.send(packet)
            except BlockingIOError:
                return False
            except OSError as error:
                self._note(error)
                continue
            return True
        return False

    def _ready(self, _events: int) -> None:
        assert self._socket is not None
        for _ in range(A_TURN):
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._note(error)
                return
            now = monotonic_ns()
            seen = self.decode(data)
            if seen is not None:
                self._take(seen, now)

    def _take(self, seen: Numbered, now: int) -> None:
        self.answered = True
        if seen.number == MARKER:
            self.opening = False
            self._marker_back = True
            self._last_heard_ns = max(self._last_heard_ns, now)
            return
        if not seen.whole:
            self.corrupted += 1
        if self.log.note_received(seen.number, now, seen.handled_ns) is not None:
            self._probe.answered(max(0, now - self._last_heard_ns - self._probe.interval_ns))
        self._last_heard_ns = now

    def _note(self, error: OSError) -> None:
        """The kernel tells of a packet that did not get through: an ICMP error, or no way to send it."""
        self.reason = reason_of(error)
        self._probe.reasons[self.reason] += 1
        if self.opening and self.reason in ("refused", "unreachable"):
            self.opening = False

    # What it tells

    def silence_ns(self, now: int) -> int:
        """How much longer than it should have nothing has come by now."""
        waiting = self._probe.asking and self.log.due
        return max(0, now - self._last_heard_ns - 2 * self._probe.interval_ns) if waiting else 0

    def samples(self) -> Samples:
        log = self.log
        sent = np.array(log.sent_ns, dtype=np.int64)
        received = np.array(log.received_ns, dtype=np.int64)
        final = np.fromiter((log.is_final(index) for index in range(len(sent))), np.bool_, len(sent))
        came = received > 0
        if len(sent):
            received[~came] = np.maximum(sent[~came], sent[-1])
        number = np.full(int(final.sum()), self.number, dtype=np.int32)
        handled = np.array(log.handled_ns, dtype=np.int64)
        return Samples(sent[final], received[final], number, came[final], handled[final])

    def row(self, waits: Waits, windows: Sequence[Window]) -> dict[str, Any]:
        parts, of_all, log, samples = split(waits, windows), figures(waits), self.log, self.samples()
        return {
            "connection": self.number,
            "local_port": 0,
            "requests": log.next,
            "unanswered": log.lost,
            "longest_ns": of_all.longest_ns,
            "longest_at_ns": of_all.longest_at_ns,
            "p50_ns": of_all.p50_ns,
            "p99_ns": of_all.p99_ns,
            "during_ns": [figures(part).longest_ns for part in parts.during],
            "quiet_ns": [figures(part).longest_ns for part in parts.quiet],
            "retransmits": 0,
            "retransmits_needless": 0,
            "backoff": 0,
            "broken": None,
            "broken_at_ns": None,
            "bytes_lost": 0,
            "bytes_duplicated": 0,
            "bytes_corrupted": self.corrupted,
            "complaint": f"{log.foreign} numbers came back that were never sent" if log.foreign else None,
            "lost": log.lost,
            "duplicated": log.duplicated,
            "reordered": log.reordered,
            "late": log.late,
            "corrupted": self.corrupted,
            "round_trip": round_trip(samples),
            "one_way": one_way(samples),
        }


def round_trip(samples: Samples) -> dict[str, int] | None:
    """How long it took until packets were back, in ns; None where none came."""
    came = samples.answered
    return _spread(samples.received_ns[came] - samples.sent_ns[came]) if came.any() else None


def one_way(samples: Samples) -> dict[str, Any] | None:
    """How long packets took `there` (until the service had them) and `back`, in ns; None where nobody says.
    """
    if samples.handled_ns is None:
        return None
    told = samples.answered & (samples.handled_ns > 0)
    if not told.any():
        return None
    handled = samples.handled_ns[told]
    return {
        "there": _spread(handled - samples.sent_ns[told]),
        "back": _spread(samples.received_ns[told] - handled),
    }


def _spread(delays_ns: NDArray[np.int64]) -> dict[str, int]:
    p50, p99, most = np.quantile(delays_ns, (0.5, 0.99, 1.0), method="inverted_cdf")
    return {"p50_ns": int(p50), "p99_ns": int(p99), "max_ns": int(most)}
