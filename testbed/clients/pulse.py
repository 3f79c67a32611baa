"""A client's pulse: now and then an event with the longest wait of its probes, for whoever watches.

Asking a client for it (`heartbeat`) takes a wake-up of its own and an answer that somebody waits for. So the
client tells, unasked, in its own loop: there all descriptors that are ready have been read before a timer
runs, so no reply is stamped later for it. Two beats travel together, and none is sent when the recorder is
behind. A beat may take half a percent of the client's time at most: where looking at all its connections
takes longer, beats become rare.

    {"event": "beat", "t_ns", "longest_wait_ns", "each": {"closed-loop": ns, ...}}

`longest_wait_ns` is since the beat before, waits under way included; `each` says it by kind of probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic_ns, thread_time_ns

from testbed.clients.loop import Loop
from testbed.clients.probe import Probe
from testbed.measure.trace import BEAT, Trace

LEAST_BEAT_MS, MOST_BEAT_MS = 10, 60_000
_SHARE = 200
"""Of a beat's time, how often it must pass before the next one."""
_TOGETHER = 2
_MOST_PENDING = 200
"""Beats that nobody took; then the client is silent until somebody does."""


class Pulse:
    """The beats of one client's `probes`, on `loop`, into `trace`."""

    def __init__(self, loop: Loop, trace: Trace, probes: Sequence[Probe]) -> None:
        self._loop = loop
        self._trace = trace
        self._probes = probes
        self._every_ns = 0
        self._course = 0
        """Which request to beat is the one that holds: a timer of another does nothing."""
        self._beats = 0

    def beat_every(self, every_ns: int) -> None:
        """Beat each `every_ns` from now on, in place of what was before; 0: not at all."""
        self._every_ns = every_ns
        self._course += 1
        if every_ns:
            self._wait_for_next(monotonic_ns(), 0)

    def _wait_for_next(self, now_ns: int, took_ns: int) -> None:
        """All clients beat in the same grid, so that their strips can be laid one above the other."""
        least_ns = max(self._every_ns, took_ns * _SHARE)
        due_ns = (now_ns + least_ns) // self._every_ns * self._every_ns
        course = self._course
        self._loop.at(due_ns, lambda: self._beat(course))

    def _beat(self, course: int) -> None:
        if course != self._course:
            return
        begun_ns, cpu_ns = monotonic_ns(), thread_time_ns()
        if len(self._trace.pending) < _MOST_PENDING:
            each: dict[str, int] = {}
            for probe in self._probes:
                each[probe.kind] = max(each.get(probe.kind, 0), probe.beat_ns())
            self._trace.event(BEAT, t_ns=begun_ns, longest_wait_ns=max(each.values(), default=0), each=each)
        self._beats += 1
        if self._beats % _TOGETHER == 0:
            self._trace.offer()
        # By the processor's time: on the clock, who is kept waiting for a processor looks slow.
        self._wait_for_next(monotonic_ns(), thread_time_ns() - cpu_ns)
