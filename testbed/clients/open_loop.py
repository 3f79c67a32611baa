"""The open loop: messages at a fixed rate, whatever comes back. What a listener to a stream would miss."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic_ns

from testbed.clients.closed_loop import CONNECTION_OFFSET
from testbed.clients.integrity import StreamChecker
from testbed.clients.loop import Loop
from testbed.clients.probe import Member, Probe, Samples
from testbed.clients.spec import OpenLoopSpec
from testbed.clients.stream import State
from testbed.measure.continuity import Waits, open_loop
from testbed.measure.pattern import pattern
from testbed.measure.trace import Trace

MOST_BACKLOG_BYTES = 1 << 20
"""What a connection keeps for a kernel that takes no more; messages beyond are skipped and counted."""


class OpenLoop(Probe):
    """Messages are consecutive pieces of the byte ramp, so their order and each byte of them are checked.

    A message is delivered when its last byte, or a later one, has come back. A sender that was held up makes
    up for it at once: the number of messages is exact, and how late it was is told (`latest_ns`).
    """

    kind = "open-loop"

    def __init__(self, spec: OpenLoopSpec, loop: Loop, trace: Trace, first_connection: int) -> None:
        super().__init__(loop, trace, spec.target)
        self.interval_ns = max(1, round(1e9 / spec.rate_per_s))
        numbers = range(first_connection, first_connection + spec.connections)
        self._members = [_Sender(self, number, spec.size) for number in numbers]

    def members(self) -> Sequence[Member]:
        return self._members

    def begin(self, start_ns: int) -> None:
        self.asking = True
        for number, member in enumerate(self._members):
            member.begin(start_ns + number * self.interval_ns // len(self._members))

    def waits(self, samples: Samples) -> Waits:
        """One wait for each two consecutive deliveries: the time between them less the sending interval."""
        return open_loop(samples.sent_ns, samples.received_ns, samples.connection, self.interval_ns)


class _Sender(Member):
    def __init__(self, probe: OpenLoop, number: int, size: int) -> None:
        super().__init__(probe.loop, probe.target, number)
        self._probe = probe
        self._size = size
        self._begin_offset = self._offset = number * CONNECTION_OFFSET
        self._checker = StreamChecker(self._offset)
        self.integrity = self._checker.integrity
        self._turn_ns = 0
        self._timed = False

    def begin(self, turn_ns: int) -> None:
        self._turn_ns = turn_ns
        if not self._timed:
            self._timed = True
            self._loop.at(turn_ns, self._send_due)

    def _send_due(self) -> None:
        self._timed = False
        probe = self._probe
        if not probe.asking:
            return
        while self._turn_ns <= (now := monotonic_ns()) and self.state is State.OPEN:
            probe.latest_ns = max(probe.latest_ns, now - self._turn_ns)
            self._turn_ns += probe.interval_ns
            if self.backlog_bytes > MOST_BACKLOG_BYTES:
                probe.skipped += 1
                continue
            message = pattern(self._offset, self._size)
            self._offset += self._size
            self.sent_ns.append(now)
            self.send(message)
        if self.state is State.OPEN:
            self._timed = True
            self._loop.at(self._turn_ns, self._send_due)

    def received(self, data: bytes, t_ns: int) -> None:
        self._checker.feed(data, self._offset)
        delivered = (self._checker.position - self._begin_offset) // self._size - self.forgotten
        while len(self.received_ns) < delivered:
            self._probe.answered(t_ns - self.sent_ns[len(self.received_ns)])
            self.received_ns.append(t_ns)

    def settle(self) -> None:
        self._checker.finish(self._offset)

    def ended(self) -> None:
        super().ended()
        self._probe.note_failure(self)
