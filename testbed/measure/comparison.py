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

SCHEMA_VERSION = 2
SCHEMA_FILE = Path(__file__).with_name("comparison.schema.json")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True, frozen=True)


class Run(_Model):
    """One run: the whole of it is in ``result.json`` in `folder`, beside ``comparison.json``. `error` is what
    brought its lab down; there is no result then."""

    variant: str
    repeat: int
    folder: str
    outcome: Outcome
    failed_checks: list[str]
    error: str | None = None


class Figure(_Model):
    """A figure over a variant's runs: `median`, `low` and `high` of the known ones among `values`."""

    values: list[float | None]
    median: float | None
    low: float | None
    high: float | None


class Variant(_Model):
    """`options` are those of its first run, none where it comes of a scenario's file; the seed is one more in
    each run that follows. `levels` says of a grid which level of each factor this is."""

    label: str
    levels: dict[str, str] = {}
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
    `chance` is that to see sides so far apart where they do not differ, `adjusted_chance` the same after all
    that is judged in this comparison was taken into account (testbed.measure.significance). `real`: that is
    at most 5 %, and the interval excludes "no difference". Without an interval (one run a side) nothing is
    real.
    """

    figure: str
    first: str
    second: str
    kind: Literal["ratio", "difference"]
    value: float
    interval: Interval | None
    chance: float | None = None
    adjusted_chance: float | None = None
    real: bool
    sentence: str


class Effect(_Model):
    """What one factor of a grid does to one figure: by how much its median at `level` exceeds that at `than`,
    on average over all that else differs; `by` tells it for each of these. `everywhere`: it is the same in
    all of them as far as the runs show. The rest is as in a difference.
    """

    figure: str
    factor: str
    level: str
    than: str
    value: float
    interval: Interval | None
    by: dict[str, float]
    everywhere: bool
    chance: float | None
    adjusted_chance: float | None
    real: bool
    sentence: str


class Comparison(_Model):
    """`complete` is False where it was ended before all runs were over. With several `workers` labs ran
    beside each other: what was measured of time is spoiled then, and not compared. `method` says how
    differences were judged. `factors` are those of a grid with their levels, and `effects` what they do."""

    schema_version: int = SCHEMA_VERSION
    name: str
    started_at: str
    repeats: int
    seed: int
    """Of the first repeat, and of the bootstrap."""
    complete: bool = True
    workers: int = 1
    method: str = ""
    factors: dict[str, list[str]] = {}
    variants: list[Variant]
    effects: list[Effect] = []
    differences: list[Difference]
    runs: list[Run]
    environment: dict[str, Any]
    """Of the first run that has a result."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``comparison.json``, as it ships in :data:`SCHEMA_FILE`."""
    made = Comparison.model_json_schema(mode="serialization")  # what is written: defaults too
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(schema(), indent=2) + "\n")
