"""The closed loop: ask, wait for the whole reply, ask again when it is time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic_ns

from testbed.clients.codecs import Codec, EchoCodec, HttpCodec, KvCodec
from testbed.clients.loop import Loop
from testbed.clients.probe import Member, Probe, Samples
from testbed.clients.spec import ClosedLoopSpec
from testbed.clients.stream import State
from testbed.measure.continuity import Waits, closed_loop
from testbed.measure.trace import Trace

CONNECTION_OFFSET = 7919
"""Bytes between the places in the ramp where neighbouring connections begin (prime, so that none coincide
soon)."""

GRAIN_NS = 250_000
"""Connections take their turns at multiples of this within the interval, those with the same turn together.

Each turn of its own costs everyone a wake-up. With 8 connections a millisecond on two cores and loopback,
turns of 125 us cost the client 41 us of processor time a request, of 250 us 26, all at once 9; so it is with
the peer. The price of the grain: up to 250 us at the beginning of a pause that no probe sees.
"""


class ClosedLoop(Probe):
    """Connections whose turns lie evenly spread over the interval, on a grid that never drifts.

    A turn that finds its reply still out is taken as soon as the reply is there; further turns missed
    meanwhile are skipped and counted, not made up for.
    """

    kind = "closed-loop"

    def __init__(
        self, spec: ClosedLoopSpec, loop: Loop, trace: Trace, client: str, first_connection: int
    ) -> None:
        super().__init__(loop, trace, spec.target)
        self.interval_ns = spec.interval_us * 1000
        numbers = range(first_connection, first_connection + spec.connections)
        self._members = [_Asker(self, number, self.codec(spec, client, number)) for number in numbers]

    def codec(self, spec: ClosedLoopSpec, client: str, number: int) -> Codec:
        """What connection `number` says and wants to hear."""
        return codec_for(spec, client, number)

    def members(self) -> Sequence[Member]:
        return self._members

    def begin(self, start_ns: int) -> None:
        self.asking = True
        for number, member in enumerate(self._members):
            turn_ns = number * self.interval_ns // len(self._members)
            member.begin(start_ns + turn_ns // GRAIN_NS * GRAIN_NS)

    def waits(self, samples: Samples) -> Waits:
        """One wait a request, from before it was sent until its whole reply had been read."""
        return closed_loop(samples.sent_ns, samples.received_ns, samples.connection)


def codec_for(spec: ClosedLoopSpec, client: str, number: int) -> Codec:
    """The codec of connection `number`: its bytes, or its key, are that connection's own."""
    codecs: dict[str, Callable[[], Codec]] = {
        "echo": lambda: EchoCodec(spec.size, number * CONNECTION_OFFSET),
        "kv": lambda: KvCodec(spec.size, f"{client}:{number}"),
        "kv-durable": lambda: KvCodec(spec.size, f"{client}:{number}"),
        "http": lambda: HttpCodec(spec.target.address, spec.path),
    }
    return codecs[spec.program]()


class _Asker(Member):
    def __init__(self, probe: ClosedLoop, number: int, codec: Codec) -> None:
        super().__init__(probe.loop, probe.target, number)
        self._probe = probe
        self._codec = codec
        self.integrity = codec.integrity
        self._interval_ns = probe.interval_ns
        self._turn_ns = 0
        self._earliest_ns = 0
        self._timed = False

    def begin(self, turn_ns: int) -> None:
        self._turn_ns = self._earliest_ns = turn_ns
        if not self._timed and not self.due:  # a reply still due takes the next turn itself
            self._timed = True
            self._loop.at(turn_ns, self._ask)

    def _ask(self) -> None:
        self._timed = False
        probe = self._probe
        if not probe.asking or self.state is not State.OPEN:
            return
        request = self._codec.request()
        now = monotonic_ns()
        late = now - self._earliest_ns
        if late > probe.latest_ns:
            probe.latest_ns = late
        self.sent_ns.append(now)
        self.send(request)

    def received(self, data: bytes, t_ns: int) -> None:
        if not self._codec.received(data):
            return
        self.received_ns.append(t_ns)
        self._probe.answered(t_ns - self.sent_ns[-1])
        turn = self._turn_ns + self._interval_ns
        if turn < t_ns:
            missed = (t_ns - turn) // self._interval_ns
            turn += missed * self._interval_ns
            self._probe.skipped += missed
        self._turn_ns = turn
        self._earliest_ns = turn if turn > t_ns else t_ns
        if not self._timed:
            self._timed = True
            self._loop.at(self._earliest_ns, self._ask)

    def settle(self) -> None:
        self._codec.finish()
        self.complaint = self._codec.complaint

    def ended(self) -> None:
        super().ended()
        self._probe.note_failure(self)
