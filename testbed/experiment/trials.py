"""What the instrument is tried on: for each kind of probe, what is done to it and what it should say. Pure.

A *trial* is one probe, the guest program that it talks to, and what its figures are held against. Three
kinds of truth are made (by :mod:`testbed.experiment.calibration`): pauses of known length, known bytes that
go wrong, known conditions of a link. Every kind of probe has a trial: a test fails where one has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from testbed.measure.accuracy import Definition

MS = 1_000_000
PAUSES_NS = (0, 1 * MS, 2 * MS, 5 * MS, 10 * MS, 50 * MS, 200 * MS)


@dataclass(frozen=True)
class PauseTrial:
    """`probe` against pauses of a guest that runs `program`; what its waits are, and the longest time in
    which it asks nothing."""

    name: str
    kind: str
    program: str
    probe: Mapping[str, Any]
    definition: Definition
    interval_ns: int

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


_FOUR = {"connections": 4, "interval_us": 1000}
_GRID_NS = 250_000
"""Four connections a millisecond take their turns so far apart (GRAIN_NS in testbed.clients.closed_loop)."""
_BRIDGED_NS = 25 * MS
"""A reader at 256 MiB/s goes on for so long from a receive buffer of 6 MiB, the most that there is by default
(net.ipv4.tcp_rmem): shorter pauses it need not notice."""

REQUEST, DELIVERY = Definition.REQUEST, Definition.DELIVERY

PAUSES = (
    PauseTrial("closed-loop", "closed-loop", "echo", {**_FOUR}, REQUEST, _GRID_NS),
    PauseTrial("closed-loop kv", "closed-loop", "kv", {"program": "kv", **_FOUR}, REQUEST, _GRID_NS),
    PauseTrial("closed-loop http", "closed-loop", "http", {"program": "http", **_FOUR}, REQUEST, _GRID_NS),
    PauseTrial("open-loop", "open-loop", "echo", {"rate_per_s": 1000.0}, DELIVERY, MS),
    PauseTrial("churn", "churn", "echo", {"rate_per_s": 200.0}, REQUEST, 5 * MS),
    PauseTrial("ledger", "ledger", "kv", {"program": "kv", **_FOUR}, REQUEST, _GRID_NS),
    PauseTrial("ramp", "ramp", "ramp", {"rate_bytes_per_s": 1 << 28}, REQUEST, _BRIDGED_NS),
)

_BYTES = {"bytes_lost": "lost", "bytes_duplicated": "doubled", "bytes_corrupted": "altered"}
_WRITES = {"writes_lost": "forgotten", "writes_phantom": "garbled"}
_LEDGER = {"program": "kv", "connections": 1, "interval_us": 1000, "keys": 2000}
"""So many keys that none is written twice: a forgotten write that another has covered is no loss."""
_FAULTY = "testbed.guest.programs.faulty:"

COUNTS = (
    CountTrial("closed-loop", "closed-loop", f"{_FAULTY}FaultyEcho", {**_FOUR}, _BYTES),
    CountTrial("open-loop", "open-loop", f"{_FAULTY}FaultyEcho", {"rate_per_s": 1000.0}, _BYTES),
    CountTrial("churn", "churn", f"{_FAULTY}FaultyEcho", {"rate_per_s": 300.0}, _BYTES),
    CountTrial("ramp", "ramp", f"{_FAULTY}FaultyRamp", {"connections": 2}, _BYTES),
    CountTrial("ledger", "ledger", f"{_FAULTY}FaultyStore", _LEDGER, _WRITES),
)


def kinds_tried() -> set[str]:
    """The kinds of probe that have a trial."""
    return {trial.kind for trial in (*PAUSES, *COUNTS)}
