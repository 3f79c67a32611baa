"""The comparison of variants: the models behind ``comparison.json`` and its JSON Schema.

Units stand last in the names of figures. Each figure of a variant has one value a run, in the order of the
runs, and None for a run that did not complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from testbed.measure.result import Outcome

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("comparison.schema.json")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True, frozen=True)


class Run(_Model):
    """One run: the whole of it is in ``result.json`` in `folder`, beside ``comparison.json``."""

    variant: str
    repeat: int
    folder: str
    outcome: Outcome
    failed_checks: list[str]


class Figure(_Model):
    """A figure over a variant's runs: `median`, `low` and `high` of the known ones among `values`."""

    values: list[float | None]
    median: float | None
    low: float | None
    high: float | None


class Variant(_Model):
    """`options` are those of its first run; the seed is one more in each that follows."""

    label: str
    options: dict[str, Any]
    figures: dict[str, Figure]
    blackout_parts_ms: dict[str, Figure]


class Interval(_Model):
    low: float
    high: float
    level: float
    """1 less the share of comparisons in which equal variants would seem to differ."""


class Difference(_Model):
    """How one figure of two variants differs.

    `value` is the median of `first` divided by that of `second`, or, where a run has zero, less it (`kind`).
    `real`: the interval excludes "no difference". Without an interval (one run a side) nothing is real.
    """

    figure: str
    first: str
    second: str
    kind: Literal["ratio", "difference"]
    value: float
    interval: Interval | None
    real: bool
    sentence: str


class Comparison(_Model):
    schema_version: int = SCHEMA_VERSION
    name: str
    started_at: str
    repeats: int
    seed: int
    """Of the first repeat, and of the bootstrap."""
    variants: list[Variant]
    differences: list[Difference]
    runs: list[Run]
    environment: dict[str, Any]
    """Of the first run."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``comparison.json``, as it ships in :data:`SCHEMA_FILE`."""
    made = Comparison.model_json_schema(mode="serialization")  # what is written: defaults too
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(schema(), indent=2) + "\n")
