"""Download and upload: one direction at a time, as fast as it goes, each byte checked, by the millisecond.

To check a byte one must have it: MSG_TRUNC would count faster and see nothing. A read of up to 256 KiB that
is as it should be costs one comparison with a slice of the ramp's table, some 30 us; a client keeps up with
several Gbit/s on one processor. What an upload counts is what the guest's program says that it has taken and
checked, not what the client's kernel was willing to buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic_ns
from typing import Any

from testbed.clients.integrity import StreamChecker
from testbed.clients.loop import IN, OUT, Loop
from testbed.clients.probe import Member, Probe, Samples
from testbed.clients.spec import DownloadSpec, UploadSpec
from testbed.clients.stream import State
from testbed.clients.throughput import BUCKET_NS, Throughput
from testbed.measure.continuity import Waits, Window, closed_loop
from testbed.measure.pattern import pattern
from testbed.measure.trace import Trace

TICK_NS = 1_000_000
READ_BYTES = 256 << 10
WRITE_BYTES = 256 << 10
MOST_CREDIT_BYTES = 1 << 20
"""What a client that keeps to a rate makes up for after it had to wait."""
_WORD_BYTES = 16


class Bulk(Probe):
    """What both directions have in common. A sample is a silence: from the last byte of one millisecond to
    the first of a later one. Silences within a millisecond are not told one by one.
    """

    def __init__(
        self, loop: Loop, trace: Trace, spec: DownloadSpec | UploadSpec, first_connection: int
    ) -> None:
        super().__init__(loop, trace, spec.target)
        self.bytes_a_tick = spec.rate_bytes_per_s * TICK_NS // 1_000_000_000
        """0: as fast as it goes."""
        numbers = range(first_connection, first_connection + spec.connections)
        self._members = [self.member(number) for number in numbers]

    def member(self, number: int) -> Transfer:
        raise NotImplementedError

    def members(self) -> Sequence[Member]:
        return self._members

    def begin(self, start_ns: int) -> None:
        self.asking = True
        for member in self._members:
            member.begin(start_ns)

    def end(self) -> None:
        super().end()
        for member in self._members:
            member.rest()

    def busy(self) -> bool:
        return any(member.due or member.unfinished for member in self._members)

    def waits(self, samples: Samples) -> Waits:
        """One wait for each silence that reached from one millisecond into another."""
        return closed_loop(samples.sent_ns, samples.received_ns, samples.connection)

    def report(self, windows: Sequence[Window]) -> dict[str, Any]:
        """As of every probe, and `bytes`, those that were taken and checked at their goal. Each row has
        `bytes`, `rate_mbit` (`before`, `during` and `after` the windows, and the `median` millisecond) and
        `stalled_ns`, the longest silence.
        """
        told = super().report(windows)
        for member, row in zip(self._members, told["per_connection"], strict=True):
            row["bytes"] = member.throughput.total
            row["rate_mbit"] = member.throughput.rates_mbit(windows)
            row["stalled_ns"] = row["longest_ns"]
        return {**told, "bytes": sum(member.throughput.total for member in self._members)}

    def arrays(self) -> dict[str, Any]:
        """`bytes_per_ms` and `bytes_per_ms_begin_ns` of each connection, its number behind the name."""
        return {
            f"{name}_{member.number}": array
            for member in self._members
            for name, array in member.throughput.arrays().items()
        }

    def forget(self) -> None:
        super().forget()
        for member in self._members:
            member.throughput.forget()


class Download(Bulk):
    """The guest sends the ramp, the client reads it. With a rate, a pause is seen only where it is longer
    than what the client's kernel has received already lasts: as it is with a film that one watches.
    """

    kind = "download"

    def member(self, number: int) -> Transfer:
        return _Download(self, number)


class Upload(Bulk):
    """The client sends the ramp, the guest takes it and says how far it has come."""

    kind = "upload"

    def member(self, number: int) -> Transfer:
        return _Upload(self, number)


class Transfer(Member):
    """One connection. With a rate, its credit grows each millisecond; without, it is never short of any."""

    receive_bytes = READ_BYTES
    choice: bytes
    """The first byte, which says to the guest what this connection is for."""

    def __init__(self, probe: Bulk, number: int) -> None:
        super().__init__(probe.loop, probe.target, number)
        self.throughput = Throughput()
        self._probe = probe
        self._credit = 0
        self._turn_ns = 0
        self._timed = False
        self._beginning = False

    def established(self, t_ns: int) -> None:
        super().established(t_ns)
        self.watch(0)

    def begin(self, turn_ns: int) -> None:
        self._turn_ns = turn_ns
        self._beginning = True
        if not self._timed:
            self._timed = True
            self._loop.at(turn_ns, self._tick)

    def _start(self) -> None:
        """Bytes are wanted from now on: the first silence begins."""
        self._beginning = False
        now = monotonic_ns()
        if not self.requests:
            self.offer(self.choice)
        self.throughput.asking(now)
        if not self.due:
            self.sent_ns.append(now)

    def _tick(self) -> None:
        """Let bytes flow, as many as the rate allows until the next tick."""
        self._timed = False
        if not self._probe.asking or self.state is not State.OPEN:
            return
        if self._beginning:
            self._start()
        if self._probe.bytes_a_tick:
            late_ns = max(0, monotonic_ns() - self._turn_ns)
            self._probe.latest_ns = max(self._probe.latest_ns, late_ns)
            ticks = 1 + late_ns // TICK_NS
            self._turn_ns += ticks * TICK_NS
            self._credit = min(self._credit + ticks * self._probe.bytes_a_tick, MOST_CREDIT_BYTES)
            self._timed = True
            self._loop.at(self._turn_ns, self._tick)
        if not self.spent:
            self.flow(True)

    @property
    def spent(self) -> bool:
        return bool(self._probe.bytes_a_tick) and self._credit <= 0

    def spend(self, count: int) -> None:
        """So many bytes of the credit are used up."""
        if self._probe.bytes_a_tick:
            self._credit -= count
            if self._credit <= 0:
                self.flow(False)

    def flow(self, wanted: bool) -> None:
        """Whether bytes are to flow in the direction of this transfer."""
        raise NotImplementedError

    @property
    def unfinished(self) -> bool:
        """Bytes are on their way whose arrival is still to be told."""
        return False

    def rest(self) -> None:
        """No more bytes are wanted than those that are on their way."""
        self.throughput.rests(monotonic_ns())

    def arrived(self, count: int, t_ns: int) -> None:
        """`count` bytes have reached their goal, and are right."""
        self.throughput.add(t_ns, count)
        if not self.due:
            return
        if self._probe.asking and t_ns // BUCKET_NS == self.sent_ns[-1] // BUCKET_NS:
            self.sent_ns[-1] = t_ns
            return
        self.received_ns.append(t_ns)
        self._probe.answered(t_ns - self.sent_ns[-1])
        if self._probe.asking:
            self.sent_ns.append(t_ns)

    def ended(self) -> None:
        super().ended()
        self._probe.note_failure(self)


class _Download(Transfer):
    choice = b"D"

    def __init__(self, probe: Bulk, number: int) -> None:
        super().__init__(probe, number)
        self._checker = StreamChecker()
        self.integrity = self._checker.integrity

    def flow(self, wanted: bool) -> None:
        self._limit_reading()
        self.watch(IN if wanted else 0)

    def _limit_reading(self) -> None:
        """No more is read at once than the rate allows, or it would come in bursts."""
        if self._probe.bytes_a_tick:
            self.receive_bytes = max(1, min(READ_BYTES, self._credit))

    def rest(self) -> None:
        """The silence under way ends with the next bytes, also where the rate would not want them yet."""
        super().rest()
        if self.due and self.state is State.OPEN:
            self.flow(True)

    def received(self, data: bytes, t_ns: int) -> None:
        self._checker.feed(data)
        self.arrived(len(data), t_ns)
        if self.state is State.OPEN:
            if not self._probe.asking:
                self.flow(False)
            else:
                self.spend(len(data))
                self._limit_reading()

    def finish(self) -> None:
        """Read on without limit until the guest's FIN, which comes after all that it had sent."""
        if self.state is State.OPEN:
            self.receive_bytes = READ_BYTES
            self.watch(IN)
        super().finish()

    def settle(self) -> None:
        self._checker.finish()


class _Upload(Transfer):
    choice = b"U"

    def __init__(self, probe: Bulk, number: int) -> None:
        super().__init__(probe, number)
        self._sent_bytes = 0
        self._taken = 0
        self._words = b""

    def flow(self, wanted: bool) -> None:
        self.watch(IN | OUT if wanted else IN)

    def writable(self) -> None:
        if self.state is not State.OPEN or not self._probe.asking or self.spent:
            if self.state is State.OPEN:
                self.flow(False)
            return
        most = min(WRITE_BYTES, self._credit) if self._probe.bytes_a_tick else WRITE_BYTES
        count = self.offer(pattern(self._sent_bytes, most))
        self._sent_bytes += count
        if self.state is State.OPEN:
            self.spend(count)

    def received(self, data: bytes, t_ns: int) -> None:
        """What the guest says that it has taken: the last whole word of it counts."""
        words = self._words + data
        whole = len(words) - len(words) % _WORD_BYTES
        self._words = words[whole:]
        if not whole:
            return
        last = words[whole - _WORD_BYTES : whole]
        taken, wrong = int.from_bytes(last[:8], "little"), int.from_bytes(last[8:], "little")
        self.integrity.corrupted = wrong
        if wrong and self.complaint is None:
            self.complaint = f"{wrong} of {taken} bytes were not as they were sent"
        if taken > self._taken:
            self.arrived(taken - self._taken, t_ns)
            self._taken = taken

    @property
    def unfinished(self) -> bool:
        """The guest has not said yet that it has all that was sent. A broken connection will never say."""
        return self.state is State.OPEN and self._taken < self._sent_bytes

    def rest(self) -> None:
        """Where nothing is on its way, the silence under way is nobody's."""
        super().rest()
        if self.due and not self.unfinished:
            self.sent_ns.pop()

    def finish(self) -> None:
        if self.state is State.OPEN:
            self.flow(False)
        super().finish()

    def settle(self) -> None:
        self.integrity.lost = max(0, self._sent_bytes - self._taken)
