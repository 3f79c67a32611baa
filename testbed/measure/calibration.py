"""The calibration of the instrument: the models behind ``calibration.json`` and its JSON Schema.

What is meant by an error is said in :mod:`testbed.measure.accuracy`. Times are milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("calibration.schema.json")
GAP_ERROR_MS = 0.5
"""What is promised: the error of the gap of every kind of probe is below this, at the median."""


Still = Literal["guest", "way"]
Family = Literal["ipv4", "ipv6"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True, frozen=True)


class Errors(_Model):
    """Measured less true. `median`, `low` and `high` have their signs; `p95` and `largest` are of the
    magnitude; in `too_long` of `count` the instrument said more than was true."""

    count: int
    median: float
    p95: float
    largest: float
    low: float
    high: float
    too_long: int


class Length(_Model):
    """All pauses that were asked for with one length, as one probe saw them. `true_ms` and `measured_ms` are
    medians. `unnoticed` of them met no request; they are in `of_pause`, but not in `error`."""

    asked_ms: float
    true_ms: float
    measured_ms: float
    unnoticed: int
    error: Errors | None
    own: Errors | None
    of_pause: Errors


class Pauses(_Model):
    """One probe against pauses of known length. `error`, `own` and `of_pause` are of all that were not zero
    (`own` is null where a capture cannot tell the probe's frames), `late` is by how much its stamps lag;
    `interval_ms` is the longest time in which the probe asks nothing; `noise_ms` is the median of its longest
    wait in 10 ms in which nothing was done. `probe` is what its client was told; `still` stood the guest, or
    the way to it."""

    name: str
    kind: str
    program: str
    probe: dict[str, Any]
    still: Still
    family: Family
    interval_ms: float
    noise_ms: float | None
    lengths: list[Length]
    error: Errors | None
    own: Errors | None
    late: Errors | None
    of_pause: Errors | None
    holds: bool


class Count(_Model):
    """So many of `what` were `done` by a guest on purpose, and so many `found` by the probe."""

    name: str
    kind: str
    what: str
    done: int
    found: int
    holds: bool


class Condition(_Model):
    """A known condition of the network, as one probe saw it: the `true` value (what was really done to the
    frames, where that can be known), the `measured` one, and the `error`, which is to be at most
    `allowed`."""

    name: str
    kind: str
    what: str
    unit: str
    asked: float
    true: float
    measured: float
    error: float
    allowed: float
    holds: bool


class Machine(_Model):
    """What a calibration is good for: one machine, as it is, and one version of what measures.
    `instrument` is a digest of the code that takes and reads the times."""

    host: str
    processor: str
    processors: int
    kernel: str
    version: str
    instrument: str


class Calibration(_Model):
    """Over all probes and pauses (not of length zero): `gap_error_ms` is the instrument's own error, against
    the wire; `gap_bound_ms` its bound by the guest's word alone. `promised` bounds the size of the median of
    each probe's own error (of its `error`, where its frames cannot be told); `holds` says that, and that
    every count was exact and every condition within what is allowed."""

    schema_version: int = SCHEMA_VERSION
    name: str
    started_at: str
    machine: Machine
    repeats: int
    seed: int
    gap_error_ms: Errors | None
    gap_bound_ms: Errors | None
    promised_gap_error_ms: float = GAP_ERROR_MS
    pauses: list[Pauses]
    counts: list[Count]
    conditions: list[Condition]
    left_out: list[str]
    """What this machine could not do, and why."""
    holds: bool
    environment: dict[str, Any]


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``calibration.json``, as it ships in :data:`SCHEMA_FILE`."""
    made = Calibration.model_json_schema(mode="serialization")  # what is written: defaults too
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(schema(), indent=2) + "\n")
