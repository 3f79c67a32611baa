"""The process of one client: carries out what the control connection asks, one request after the other.

The probes run on the same loop all the time. While a request is being carried out that takes the loop's
events along (connections being made, replies being awaited) the loop is run until that has happened or its
deadline came.
"""

from __future__ import annotations

import gc
import resource
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netns.forkserver import ready
from testbed.clients.bulk import Download, Upload
from testbed.clients.churn import Churn
from testbed.clients.closed_loop import ClosedLoop
from testbed.clients.control import ControlError, receive_message, send_message
from testbed.clients.http import http_probe
from testbed.clients.icmp import IcmpProbe
from testbed.clients.ledger import LedgerProbe
from testbed.clients.loop import IN, Loop
from testbed.clients.open_loop import OpenLoop
from testbed.clients.probe import Probe, Samples
from testbed.clients.pulse import LEAST_BEAT_MS, MOST_BEAT_MS, Pulse
from testbed.clients.ramp import Ramp
from testbed.clients.spec import (
    ChurnSpec,
    ClientSpec,
    ClosedLoopSpec,
    DownloadSpec,
    HttpSpec,
    IcmpSpec,
    LedgerSpec,
    OpenLoopSpec,
    ProbeSpec,
    RampSpec,
    SpecError,
    UdpSpec,
    UploadSpec,
    parse,
)
from testbed.clients.udp import UdpProbe
from testbed.measure.continuity import Window
from testbed.measure.trace import Trace

_SETTLE_NS = 10_000_000
"""From the answer to `start` to the first request: time for the reader of that answer to get out of the
way."""
_CONTROL_TIMEOUT_S = 30.0
_DEFAULT_DEADLINE_MS = 5000
_MOST_DEADLINE_MS = 3_600_000
_TIMER_SLACK = Path("/proc/self/timerslack_ns")


def main(argument: dict[str, Any], fds: Sequence[int]) -> int:
    """Entry for the fork server: be the client that `argument` describes, controlled through `fds[0]`.

    Says that it is ready once requests can be sent. The exit status is 0 after `stop` or when the control
    connection was closed, and 2 if the argument is wrong; the reason then stands on stderr and is sent as
    `{"error": ...}`.
    """
    with socket.socket(fileno=fds[0]) as control:
        control.settimeout(_CONTROL_TIMEOUT_S)
        try:
            spec = parse(argument)
        except SpecError as error:
            print(error, file=sys.stderr)
            send_message(control, {"error": str(error)})
            return 2
        serve(spec, control, ready)
    return 0


def serve(spec: ClientSpec, control: socket.socket, say_ready: Callable[[], None]) -> None:
    """Be the client `spec` until `stop`, or until the other end of `control` is closed."""
    with ExitStack() as stack:
        trace = stack.enter_context(closing(Trace(spec.name, spec.trace)))
        loop = stack.enter_context(closing(Loop()))
        _prefer_precision()
        client = Client(spec, control, loop, trace)
        gc.collect()
        gc.freeze()
        gc.disable()
        stack.callback(gc.enable)
        say_ready()
        client.serve()


class Client:
    """All probes of one client, and the requests that have come for them."""

    def __init__(self, spec: ClientSpec, control: socket.socket, loop: Loop, trace: Trace) -> None:
        self.spec = spec
        self._control = control
        self._loop = loop
        self._trace = trace
        self._requests: deque[dict[str, Any] | None] = deque()
        self._probes = make_probes(spec, loop, trace)
        self._pulse = Pulse(loop, trace, self._probes)
        self._begun_ns = 0

    def serve(self) -> None:
        """Carry out requests until `stop` or the end of the control connection. No connection is left
        open."""
        self._loop.add(self._control.fileno(), IN, self._take_request)
        try:
            while True:
                self._loop.run(lambda: self._requests)
                request = self._requests.popleft()
                if request is None:
                    return
                try:
                    answer = self._carry_out(request)
                except _Unable as error:
                    answer = {"error": f"{self.spec.name}: {error}"}
                send_message(self._control, answer)
                self._trace.flush()
                if "summary" in answer and request["do"] == "stop":
                    return
        except ControlError:
            return  # whoever runs the lab is gone, and so is the use of this process
        finally:
            for probe in self._probes:
                probe.abandon()

    def _take_request(self, _events: int) -> None:
        request = receive_message(self._control)
        self._requests.append(request)
        if request is None:
            self._loop.remove(self._control.fileno())

    def _carry_out(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("do"):
            case "start":
                return {"started": self._start(_deadline_ns(request))}
            case "heartbeat":
                return {"heartbeat": self._heartbeat()}
            case "beat":
                return {"beating": self._beat(request.get("every_ms"))}
            case "report":
                return {"summary": self._rest_and_report(request)}
            case "stop":
                return {"summary": self._stop(request)}
            case unknown:
                raise _Unable(f"unknown request {unknown!r}; known are start, heartbeat, beat, report, stop")

    def _start(self, deadline_ns: int) -> dict[str, Any]:
        """After a failure the connections that could be made are closed; the client can only be stopped
        then."""
        if self._begun_ns:
            raise _Unable("is started already")
        for probe in self._probes:
            probe.open()
        self._loop.run(lambda: not any(probe.opening() for probe in self._probes), deadline_ns)
        failed = [reason for probe in self._probes for reason in probe.not_opened()]
        total = sum(probe.connections() for probe in self._probes)
        if failed:
            for probe in self._probes:
                probe.abandon()
            reasons = ", ".join(sorted(set(failed)))
            raise _Unable(f"{len(failed)} of {total} connections not made: {reasons}")
        self._begun_ns = self._trace.event("probes-begin")
        self._begin()
        return {"t_ns": self._begun_ns, "connections": total}

    def _begin(self) -> None:
        start_ns = time.monotonic_ns() + _SETTLE_NS
        for probe in self._probes:
            probe.begin(start_ns)

    def _heartbeat(self) -> dict[str, Any]:
        return {"t_ns": time.monotonic_ns(), "probes": [probe.live() for probe in self._probes]}

    def _beat(self, every_ms: Any) -> dict[str, Any]:
        if not isinstance(every_ms, int) or (every_ms and not LEAST_BEAT_MS <= every_ms <= MOST_BEAT_MS):
            raise _Unable(f"`every_ms` must be 0 or {LEAST_BEAT_MS} to {MOST_BEAT_MS}, not {every_ms!r}")
        self._pulse.beat_every(every_ms * 1_000_000)
        return {"t_ns": time.monotonic_ns()}

    def _end(self, deadline_ns: int) -> None:
        """No more is asked; what is due has come, or the deadline has."""
        for probe in self._probes:
            probe.end()
        self._loop.run(lambda: not any(probe.busy() for probe in self._probes), deadline_ns)

    def _rest_and_report(self, request: dict[str, Any]) -> dict[str, Any]:
        windows, deadline_ns = _windows(request), _deadline_ns(request)
        self._end(deadline_ns)
        summary = self._summary(windows)
        if request.get("save"):
            self._save(Path(request["save"]))
        if request.get("forget") and not any(probe.busy() for probe in self._probes):
            for probe in self._probes:
                probe.forget()
        self._begin()
        return summary

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """The deadline is granted twice: to replies that are due, then to the FINs of the guest."""
        windows, deadline_ns = _windows(request), _deadline_ns(request)
        self._end(deadline_ns)
        self._trace.event("probes-end")
        for probe in self._probes:
            probe.close()
        self._loop.run(lambda: not any(probe.closing() for probe in self._probes), _deadline_ns(request))
        for probe in self._probes:
            probe.abandon()
        if self.spec.samples is not None:
            self._save(self.spec.samples)
        return self._summary(windows)

    def _summary(self, windows: Sequence[Window]) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "name": self.spec.name,
            "begun_ns": self._begun_ns,
            "ended_ns": time.monotonic_ns(),
            "windows": [[window.begin_ns, window.end_ns] for window in windows],
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "probes": [probe.report(windows) for probe in self._probes],
        }

    def _save(self, path: Path) -> None:
        """All samples in one .npz: `sent_ns`, `received_ns`, `connection`, `answered`, `handled_ns` (0 where
        nobody said), `probe` (its number); of each probe its kind (`kinds`) and how often it sends
        (`intervals_ns`, 0 where it has no interval); and what a kind of probe has besides."""
        parts = [probe.samples() for probe in self._probes]
        more = {name: array for probe in self._probes for name, array in probe.arrays().items()}
        try:
            np.savez(
                path,
                sent_ns=np.concatenate([part.sent_ns for part in parts]),
                received_ns=np.concatenate([part.received_ns for part in parts]),
                connection=np.concatenate([part.connection for part in parts]),
                answered=np.concatenate([part.answered for part in parts]),
                handled_ns=np.concatenate([_handled(part) for part in parts]),
                probe=np.repeat(np.arange(len(parts)), [len(part.sent_ns) for part in parts]),
                kinds=np.array([probe.kind for probe in self._probes], dtype=np.str_),
                intervals_ns=np.array([getattr(probe, "interval_ns", 0) for probe in self._probes], np.int64),
                **more,
            )
        except OSError as error:
            Path(path).unlink(missing_ok=True)  # half a file is none
            raise _Unable(f"cannot save the samples: {error}") from error


def _handled(samples: Samples) -> NDArray[np.int64]:
    known = samples.handled_ns
    return known if known is not None else np.zeros(len(samples.sent_ns), dtype=np.int64)


class _Unable(Exception):
    """What was asked cannot be done, and why: becomes `{"error": ...}`."""


def make_probes(spec: ClientSpec, loop: Loop, trace: Trace) -> list[Probe]:
    """The probes of `spec`. Connections are numbered through the whole client, from 0."""
    probes: list[Probe] = []
    first = 0
    for probe_spec in spec.probes:
        probe = _make_probe(probe_spec, loop, trace, spec.name, first)
        probes.append(probe)
        first += getattr(probe_spec, "connections", 1)
    return probes


def _make_probe(spec: ProbeSpec, loop: Loop, trace: Trace, client: str, first: int) -> Probe:
    match spec:
        case ClosedLoopSpec():
            return ClosedLoop(spec, loop, trace, client, first)
        case OpenLoopSpec():
            return OpenLoop(spec, loop, trace, first)
        case RampSpec():
            return Ramp(spec, loop, trace, first)
        case ChurnSpec():
            return Churn(spec.target, spec.rate_per_s, spec.size, loop, trace, first)
        case HttpSpec():
            return http_probe(spec, loop, trace, client, first)
        case LedgerSpec():
            return LedgerProbe(spec, loop, trace, client, first)
        case DownloadSpec():
            return Download(loop, trace, spec, first)
        case UploadSpec():
            return Upload(loop, trace, spec, first)
        case UdpSpec():
            return UdpProbe(spec, loop, trace, first)
        case IcmpSpec():
            return IcmpProbe(spec, loop, trace, first)


def _windows(request: dict[str, Any]) -> list[Window]:
    try:
        windows = [Window(int(begin), int(end)) for begin, end in request.get("windows") or []]
    except (TypeError, ValueError) as error:
        raise _Unable(f"`windows` must be a list of [begin_ns, end_ns]: {error}") from None
    if any(later.begin_ns < earlier.end_ns for earlier, later in pairwise(windows)):
        raise _Unable("`windows` must be disjoint and ascending")
    return windows


def _deadline_ns(request: dict[str, Any]) -> int:
    """On the clock: when the `deadline_ms` that the request grants will be over."""
    deadline_ms = request.get("deadline_ms", _DEFAULT_DEADLINE_MS)
    if not isinstance(deadline_ms, int) or not 0 <= deadline_ms <= _MOST_DEADLINE_MS:
        raise _Unable(f"`deadline_ms` must be 0 to {_MOST_DEADLINE_MS}, not {deadline_ms!r}")
    return time.monotonic_ns() + deadline_ms * 1_000_000


def _prefer_precision() -> None:
    """Timers to the microsecond (the kernel may else add 50 us), and as many descriptors as are allowed."""
    _TIMER_SLACK.write_text("1")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
