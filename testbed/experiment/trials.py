"""What the instrument is tried on: for each kind of probe, what is done to it and what it should say. Pure.

A *trial* is one probe, the guest program that it talks to, and what its figures are held against. Three
kinds of truth are made (by :mod:`testbed.experiment.calibration`): pauses of known length, known bytes that
go wrong, known conditions of a link. Every kind of probe has a trial: a test fails where one has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from netns.link_figures import DirectionFigures, LinkFigures
from testbed.measure.accuracy import Definition
from testbed.measure.calibration import Family, Still
from testbed.scenario.parts import Conditions

MS = 1_000_000
PAUSES_NS = (0, 1 * MS, 2 * MS, 5 * MS, 10 * MS, 50 * MS, 200 * MS)


@dataclass(frozen=True)
class PauseTrial:
    """`probe` against pauses of a guest that runs `program`; what its waits are, and the longest time in
    which it asks nothing. A guest's kernel answers pings though its program is stopped: for them it is the
    way to the guest that stands `still`, by which frames are held and released, as in a switchover."""

    name: str
    kind: str
    program: str
    probe: Mapping[str, Any]
    definition: Definition
    interval_ns: int
    on_wire: bool = True
    """Whether its waits can be found again in a capture: not where a kernel's buffer lies in between."""
    still: Still = "guest"
    family: Family = "ipv4"

    @property
    def request(self) -> dict[str, Any]:
        """The probe as its client is told of it, but for the address."""
        return {"kind": self.kind, **self.probe}


@dataclass(frozen=True)
class CountTrial:
    """`probe` against a guest `program` that does wrong on purpose and counts it. `counts`: the name of each
    count in the probe's report, and under which name the program has it in its stats."""

    name: str
    kind: str
    program: str
    probe: Mapping[str, Any]
    counts: Mapping[str, str]

    @property
    def request(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.probe}


Truth = Callable[[LinkFigures, LinkFigures], float | None]


@dataclass(frozen=True)
class Reading:
    """A figure at `path` of a probe's report, and what it should say by the word of who brought the
    conditions about, as told in the end and earlier (None where that one does not say). It is meant as it
    stands, or as more than it was `before`: without conditions (``plain``: what they add), or when they were
    set (``set``: of a count that goes on). An error of at most `allowed` holds; `scale` is what a unit is in
    the report's.
    """

    what: str
    unit: str
    path: tuple[str | int, ...]
    true: Truth
    allowed: float
    scale: float = 1.0
    before: Literal["plain", "set"] | None = None

    def of(self, report: Mapping[str, Any]) -> float:
        found: Any = report
        for name in self.path:
            found = found[name]
        return float(found) / self.scale


@dataclass(frozen=True)
class ConditionTrial:
    """`probe` on a client whose link has `conditions`, in words `told`, and as a figure, in the unit of the
    readings, `asked`."""

    name: str
    kind: str
    program: str
    probe: Mapping[str, Any]
    conditions: Conditions
    told: str
    asked: float
    readings: tuple[Reading, ...]

    @property
    def request(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.probe}


_FOUR = {"connections": 4, "interval_us": 1000}
_GRID_NS = 250_000
"""Four connections a millisecond take their turns so far apart (GRAIN_NS in testbed.clients.closed_loop)."""
_BRIDGED_NS = 150 * MS
"""A reader at 256 MiB/s goes on for so long from a receive buffer of 32 MiB and a send buffer of 4 MiB, the
most that there are by default (net.ipv4.tcp_rmem, tcp_wmem): shorter pauses it need not notice."""

_PINGS = {"rate_per_s": 1000.0}
_READ = {"rate_bytes_per_s": 1 << 28}
_MODEST = {"rate_bytes_per_s": 16 << 20}
_BUCKET_NS = 2 * MS
"""A silence within one millisecond is not told, see testbed.clients.throughput."""

REQUEST, DELIVERY, SILENCE = Definition.REQUEST, Definition.DELIVERY, Definition.SILENCE

PAUSES = (
    PauseTrial("closed-loop", "closed-loop", "echo", {**_FOUR}, REQUEST, _GRID_NS),
    PauseTrial("kv", "closed-loop", "kv", {"program": "kv", **_FOUR}, REQUEST, _GRID_NS),
    PauseTrial("http", "http", "http", {**_FOUR}, REQUEST, _GRID_NS),
    PauseTrial("http, new", "http", "http", {"kept": False, "interval_us": 5000}, REQUEST, 5 * MS),
    PauseTrial("open-loop", "open-loop", "echo", {"rate_per_s": 1000.0}, DELIVERY, MS),
    PauseTrial("churn", "churn", "echo", {"rate_per_s": 200.0}, REQUEST, 5 * MS),
    PauseTrial("ledger", "ledger", "kv", {"program": "kv", **_FOUR}, REQUEST, _GRID_NS),
    PauseTrial("udp", "udp", "echo", {"rate_per_s": 1000.0}, DELIVERY, MS),
    PauseTrial("icmp", "icmp", "echo", _PINGS, DELIVERY, MS, still="way"),
    PauseTrial("icmp, IPv6", "icmp", "echo", _PINGS, DELIVERY, MS, still="way", family="ipv6"),
    PauseTrial("download", "download", "bulk", {}, SILENCE, _BRIDGED_NS),
    PauseTrial("upload", "upload", "bulk", _MODEST, SILENCE, _BUCKET_NS),
    PauseTrial("ramp", "ramp", "ramp", _READ, REQUEST, _BRIDGED_NS, False),
)

_BYTES = {"bytes_lost": "lost", "bytes_duplicated": "doubled", "bytes_corrupted": "altered"}
_DATAGRAMS = {"lost": "datagrams_lost", "duplicated": "datagrams_doubled", "corrupted": "datagrams_altered"}
_ALTERED = {"bytes_corrupted": "altered"}
_WRITES = {"writes_lost": "forgotten", "writes_phantom": "garbled"}
_LEDGER = {"program": "kv", "connections": 1, "interval_us": 1000, "keys": 2000}
"""So many keys that none is written twice: a forgotten write that another has covered is no loss."""
_FAULTY = "testbed.guest.programs.faulty:"

COUNTS = (
    CountTrial("closed-loop", "closed-loop", f"{_FAULTY}FaultyEcho", {**_FOUR}, _BYTES),
    CountTrial("open-loop", "open-loop", f"{_FAULTY}FaultyEcho", {"rate_per_s": 1000.0}, _BYTES),
    CountTrial("churn", "churn", f"{_FAULTY}FaultyEcho", {"rate_per_s": 300.0}, _BYTES),
    CountTrial("http", "http", f"{_FAULTY}FaultyHttp", {**_FOUR}, _ALTERED),
    CountTrial("udp", "udp", f"{_FAULTY}FaultyEcho", {"rate_per_s": 1000.0}, _DATAGRAMS),
    CountTrial("ramp", "ramp", f"{_FAULTY}FaultyRamp", {"connections": 2}, _BYTES),
    CountTrial("download", "download", f"{_FAULTY}FaultyBulk", _MODEST, _BYTES),
    CountTrial("upload", "upload", f"{_FAULTY}FaultyBulk", _MODEST, _ALTERED),
    CountTrial("ledger", "ledger", f"{_FAULTY}FaultyStore", _LEDGER, _WRITES),
)


DELAY_MS = 10.0
DELAY_ALLOWED_MS = 0.5
RATE_MBIT = 50.0
RATE_ALLOWED_MBIT = 1.0
_HEADERS_BYTES = 66
"""Of each frame of a stream: Ethernet 14, IPv4 20, TCP 20 and its timestamps 12."""
LOSS = 0.02
LOSS_ALLOWED = 2.0
"""Frames of others on the link (ARP, and the probe's own that are not counted) may be among the lost."""


def _there_ms(told: LinkFigures, _earlier: LinkFigures) -> float | None:
    return None if told.forward.delay_p50_ns is None else told.forward.delay_p50_ns / MS


def _back_ms(told: LinkFigures, _earlier: LinkFigures) -> float | None:
    return None if told.backward.delay_p50_ns is None else told.backward.delay_p50_ns / MS


def _both_ms(told: LinkFigures, _earlier: LinkFigures) -> float | None:
    there, back = _there_ms(told, _earlier), _back_ms(told, _earlier)
    return None if there is None or back is None else there + back


def _lost(told: LinkFigures, _earlier: LinkFigures) -> float | None:
    there, back = told.forward.lost, told.backward.lost
    return None if there is None or back is None else there + back


def _payload_mbit(told: DirectionFigures, earlier: DirectionFigures) -> float | None:
    """What passed since, less the headers of its frames, over the time that it took."""
    bytes_, frames, active_ns = (
        None if now is None or then is None else now - then
        for now, then in (
            (told.passed_bytes, earlier.passed_bytes),
            (told.passed_frames, earlier.passed_frames),
            (told.active_ns, earlier.active_ns),
        )
    )
    if bytes_ is None or frames is None or not active_ns:
        return None
    return (bytes_ - frames * _HEADERS_BYTES) * 8e3 / active_ns


def _down_mbit(told: LinkFigures, earlier: LinkFigures) -> float | None:
    return _payload_mbit(told.backward, earlier.backward)


def _up_mbit(told: LinkFigures, earlier: LinkFigures) -> float | None:
    return _payload_mbit(told.forward, earlier.forward)


def _delay(what: str, true: Truth, *path: str) -> Reading:
    return Reading(what, "ms", path, true, DELAY_ALLOWED_MS, MS, "plain")


_ROUND_TRIP = _delay("round trip", _both_ms, "waits", "p50_ns")
_PING = _delay("round trip", _both_ms, "round_trip", "p50_ns")
_CONNECT = _delay("connect", _both_ms, "connect", "waits", "p50_ns")
_ONE_WAY = (
    _delay("one way there", _there_ms, "one_way", "there", "p50_ns"),
    _delay("one way back", _back_ms, "one_way", "back", "p50_ns"),
)
_LOSSES = (Reading("lost", "", ("lost",), _lost, LOSS_ALLOWED, before="set"),)
_RATE = ("per_connection", 0, "rate_mbit", "after")
"""After the window in which it still reads what came while it was asked for a report."""
_DOWN = (Reading("rate", "Mbit/s", _RATE, _down_mbit, RATE_ALLOWED_MBIT),)
_UP = (Reading("rate", "Mbit/s", _RATE, _up_mbit, RATE_ALLOWED_MBIT),)
_SLOW = (
    Conditions(rate_bits_per_s=round(RATE_MBIT * 1e6), delay_ns=100_000),
    f"{RATE_MBIT:g} Mbit/s",
    RATE_MBIT,
)
"""With a delay, so that who does it counts frames of a wire."""
_DELAYED = Conditions(delay_ns=round(DELAY_MS * MS)), f"{DELAY_MS:g} ms each way"
_FAR, _FAR_THERE_AND_BACK = (*_DELAYED, DELAY_MS), (*_DELAYED, 2 * DELAY_MS)
_LOSSY = (Conditions(loss=LOSS), f"{LOSS:.0%} of all frames lost", LOSS)

CONDITIONS = (
    ConditionTrial("closed-loop", "closed-loop", "echo", {**_FOUR}, *_FAR_THERE_AND_BACK, (_ROUND_TRIP,)),
    ConditionTrial("http", "http", "http", {**_FOUR}, *_FAR_THERE_AND_BACK, (_ROUND_TRIP,)),
    ConditionTrial("churn", "churn", "echo", {"rate_per_s": 200.0}, *_FAR_THERE_AND_BACK, (_CONNECT,)),
    ConditionTrial(
        "ledger", "ledger", "kv", {"program": "kv", **_FOUR}, *_FAR_THERE_AND_BACK, (_ROUND_TRIP,)
    ),
    ConditionTrial("udp", "udp", "echo", {"rate_per_s": 1000.0}, *_FAR, _ONE_WAY),
    ConditionTrial("udp", "udp", "echo", {"rate_per_s": 1000.0}, *_LOSSY, _LOSSES),
    ConditionTrial("download", "download", "bulk", {}, *_SLOW, _DOWN),
    ConditionTrial("upload", "upload", "bulk", {}, *_SLOW, _UP),
    ConditionTrial("icmp", "icmp", "echo", _PINGS, *_FAR_THERE_AND_BACK, (_PING,)),
    ConditionTrial("icmp", "icmp", "echo", {"rate_per_s": 500.0}, *_LOSSY, _LOSSES),
)


def kinds_tried() -> set[str]:
    """The kinds of probe that have a trial."""
    return {trial.kind for trial in (*PAUSES, *COUNTS, *CONDITIONS)}
