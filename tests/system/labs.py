"""Runs for tests: a scenario's run without a terminal, in a folder of the test's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from testbed.experiment.run import run_options
from testbed.lab.lab import PRELOAD
from testbed.measure.result import Result
from testbed.scenario.options import Options

REPOSITORY = Path(__file__).parents[2]
SMALL = Options(
    ram_bytes=64 << 20,
    working_set_bytes=4 << 20,
    clients=2,
    connections=4,
    baseline_ns=300_000_000,
    churn_per_s=40,
    stream_rate_per_s=100,
)
"""A lab that is quick to run and still has every kind of probe, on IPv4 and IPv6."""

__all__ = ["PRELOAD", "SMALL", "Witness", "migrate"]


class Witness:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def say(self, text: str) -> None: ...

    def migration(self, source: str, target: str, number: int, of: int, vm: str | None = None) -> None: ...

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def migrate(folder: Path, witness: Witness | None = None, **options: Any) -> Result:
    """Run :data:`SMALL` with `options` changed; the result. The repository is on the guest's import path."""
    return run_options(replace(SMALL, **options), "test", folder, witness or Witness(), [str(REPOSITORY)])


def failed_checks(result: Result) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in result.checks if not check.passed]
