"""Runs for tests: a scenario's run without a terminal, in a folder of the test's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from testbed.experiment.run import run
from testbed.faults.kinds import Fault
from testbed.lab.lab import PRELOAD, Lab, OnEvent
from testbed.lab.migrations import Move
from testbed.measure.result import Result
from testbed.scenario.from_options import scenario_of
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

DEADLINE_S = 60

__all__ = ["PRELOAD", "SMALL", "Answers", "Witness", "ignored", "lab_of", "migrate", "move"]

Answers = tuple[dict[str, Any], dict[str, Any]]


class Witness:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def say(self, text: str) -> None: ...

    def migration(self, source: str, target: str, number: int, of: int, vm: str | None = None) -> None: ...

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def migrate(
    folder: Path, witness: Witness | None = None, *, aftermath_ns: int = 10**9, **options: Any
) -> Result:
    """Run :data:`SMALL` with `options` changed; the result. The repository is on the guest's import path."""
    asked = replace(SMALL, **options)
    scenario = scenario_of(asked, "test").model_copy(update={"aftermath_ns": aftermath_ns})
    return run(scenario, folder, witness or Witness(), [str(REPOSITORY)], asked)


def ignored(_: dict[str, Any]) -> None:
    """What happens meanwhile."""


def lab_of(options: Options, folder: Path, **more: Any) -> Lab:
    """A lab that stands, of what `options` ask for."""
    return Lab(scenario_of(options), folder, **more)


def move(
    lab: Lab,
    on_event: OnEvent = ignored,
    *,
    import_path: Sequence[str] = (),
    fault: Fault | None = None,
) -> Answers:
    """The lab's first guest goes to the next host, as its scenario says; what source and target answer."""
    wanted = Move(lab.vm.name, lab.vm.next_host(), lab.scenario.manner(), fault)
    (moved,) = lab.migrate([wanted], on_event, DEADLINE_S, import_path)
    return moved.source_answer, moved.target_answer


def failed_checks(result: Result) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in result.checks if not check.passed]
