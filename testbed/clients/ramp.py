"""The byte ramp both ways at once: streams that fill buffers, in which every single byte is checked."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic_ns
from typing import Any

from testbed.clients.integrity import StreamChecker
from testbed.clients.loop import IN, Loop
from testbed.clients.probe import Member, Probe, Samples
from testbed.clients.spec import RampSpec
from testbed.clients.stream import State
from testbed.measure.continuity import Waits, Window, closed_loop
from testbed.measure.pattern import pattern
from testbed.measure.trace import Trace

TICK_NS = 1_000_000
_MOST_CREDIT_BYTES = 256 << 10
_MOST_SENT_AT_ONCE = 64 << 10


class Ramp(Probe):
    """Each connection sends the ramp from byte 0, and reads the guest's ramp from byte 0, each at up to a
    rate.

    The guest sends as fast as it may, so it is the reading that keeps the rate: buffers on both sides are
    full, and at times the window is zero. A sample begins when the client wants bytes and ends when some
    come; a gap that the receive buffer bridged is none. What the guest makes of the bytes sent to it stands
    in the guest's statistics.
    """

    kind = "ramp"

    def __init__(self, spec: RampSpec, loop: Loop, trace: Trace, first_connection: int) -> None:
        super().__init__(loop, trace, spec.target)
        self.bytes_a_tick = max(1, spec.rate_bytes_per_s * TICK_NS // 1_000_000_000)
        numbers = range(first_connection, first_connection + spec.connections)
        self._members = [_RampEnd(self, number) for number in numbers]

    def members(self) -> Sequence[Member]:
        return self._members

    def begin(self, start_ns: int) -> None:
        self.asking = True
        for member in self._members:
            member.begin(start_ns)

    def waits(self, samples: Samples) -> Waits:
        """One wait for each time that the client wanted bytes, until the first of them were there."""
        return closed_loop(samples.sent_ns, samples.received_ns, samples.connection)

    def report(self, windows: Sequence[Window]) -> dict[str, Any]:
        return {
            **super().report(windows),
            "bytes_sent": sum(member.sent_bytes for member in self._members),
            "bytes_received": sum(member.received_bytes for member in self._members),
        }


class _RampEnd(Member):
    def __init__(self, probe: Ramp, number: int) -> None:
        super().__init__(probe.loop, probe.target, number)
        self._probe = probe
        self._checker = StreamChecker()
        self.integrity = self._checker.integrity
        self.sent_bytes = 0
        self.received_bytes = 0
        self._may_send = 0
        self._may_read = 0
        self._reading = True
        self._turn_ns = 0
        self._timed = False

    def begin(self, turn_ns: int) -> None:
        self._turn_ns = turn_ns
        if not self._timed:
            self._timed = True
            self._loop.at(turn_ns, self._tick)

    def established(self, t_ns: int) -> None:
        super().established(t_ns)
        self._read(False)

    def _tick(self) -> None:
        self._timed = False
        if not self._probe.asking or self.state is not State.OPEN:
            return
        now = monotonic_ns()
        late = now - self._turn_ns
        self._probe.latest_ns = max(self._probe.latest_ns, late)
        ticks = 1 + late // TICK_NS
        self._turn_ns += ticks * TICK_NS
        credit = ticks * self._probe.bytes_a_tick
        self._may_send = min(self._may_send + credit, _MOST_CREDIT_BYTES)
        self._may_read = min(self._may_read + credit, _MOST_CREDIT_BYTES)
        taken = self.offer(pattern(self.sent_bytes, min(self._may_send, _MOST_SENT_AT_ONCE)))
        self.sent_bytes += taken
        self._may_send -= taken
        if self.state is not State.OPEN:
            return
        if self._may_read > 0 and not self.due:
            self.sent_ns.append(now)
            self._read(True)
        self._timed = True
        self._loop.at(self._turn_ns, self._tick)

    def received(self, data: bytes, t_ns: int) -> None:
        self._checker.feed(data)
        self.received_bytes += len(data)
        self._may_read -= len(data)
        if self.due:
            self.received_ns.append(t_ns)
            self._probe.answered(t_ns - self.sent_ns[-1])
        if self.state is State.OPEN:
            if self._may_read > 0 and self._probe.asking:
                self.sent_ns.append(t_ns)
            else:
                self._read(False)

    def finish(self) -> None:
        """Read on without limit until the guest's FIN, which comes after all that it had sent."""
        if self.state is State.OPEN:
            self._read(True)
        super().finish()

    def settle(self) -> None:
        self._checker.finish()

    def ended(self) -> None:
        super().ended()
        self._probe.note_failure(self)

    def _read(self, wanted: bool) -> None:
        if wanted is not self._reading:
            self._reading = wanted
            self.watch(IN if wanted else 0)
