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


_EVERY_MS = {"interval_us": 1000}
_GRID_NS = 250_000
"""Eight connections a millisecond take their turns on a grid of this, see testbed.clients.closed_loop."""

PAUSES = (
    PauseTrial(
        "closed-loop", "closed-loop", "echo", {"connections": 8, **_EVERY_MS}, Definition.REQUEST, _GRID_NS
    ),
    PauseTrial(
        "open-loop", "open-loop", "echo", {"connections": 1, "rate_per_s": 1000.0}, Definition.DELIVERY, MS
    ),
    PauseTrial("churn", "churn", "echo", {"rate_per_s": 200.0}, Definition.REQUEST, 5 * MS),
    PauseTrial(
        "closed-loop kv",
        "closed-loop",
        "kv",
        {"program": "kv", "connections": 8, **_EVERY_MS},
        Definition.REQUEST,
        _GRID_NS,
    ),
    PauseTrial(
        "ledger", "ledger", "kv", {"program": "kv", "connections": 4, **_EVERY_MS}, Definition.REQUEST, _GRID_NS
    ),
    PauseTrial(
        "closed-loop http",
        "closed-loop",
        "http",
        {"program": "http", "connections": 8, **_EVERY_MS},
        Definition.REQUEST,
        _GRID_NS,
    ),
    PauseTrial(
        "ramp",
        "ramp",
        "ramp",
        {"connections": 1, "rate_bytes_per_s": 1 << 30},
        Definition.REQUEST,
        MS,
    ),
)

_BYTES = {"bytes_lost": "lost", "bytes_duplicated": "doubled", "bytes_corrupted": "altered"}
_FAULTY = "testbed.guest.programs.faulty:"

COUNTS = (
    CountTrial("closed-loop", "closed-loop", f"{_FAULTY}FaultyEcho", {"connections": 4, **_EVERY_MS}, _BYTES),
    CountTrial("open-loop", "open-loop", f"{_FAULTY}FaultyEcho", {"rate_per_s": 1000.0}, _BYTES),
    CountTrial("churn", "churn", f"{_FAULTY}FaultyEcho", {"rate_per_s": 300.0}, _BYTES),
    CountTrial("ramp", "ramp", f"{_FAULTY}FaultyRamp", {"connections": 2}, _BYTES),
    CountTrial(
        "ledger",
        "ledger",
        f"{_FAULTY}FaultyStore",
        {"program": "kv", "connections": 1, "keys": 2000, **_EVERY_MS},
        {"writes_lost": "forgotten", "writes_phantom": "garbled"},
    ),
)


def kinds_tried() -> set[str]:
    """The kinds of probe that have a trial."""
    return {trial.kind for trial in (*PAUSES, *COUNTS)}
