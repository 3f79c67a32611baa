"""Goes through all features and says which are there.

The kernel's are tried inside one universe, in a process of their own that writes what it found into a memfd:
whatever a probe leaves behind goes with the universe. Where there can be no universe, they are not tried.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from netns import universe
from testbed.doctor import features
from testbed.doctor.features import Feature, Group
from testbed.scenario.units import format_size


@dataclass(frozen=True)
class Finding:
    """One feature here. `there` is None where it could not be tried; `detail` says how that showed."""

    name: str
    group: Group
    there: bool | None
    detail: str
    lost: str
    remedy: str


def examine() -> list[Finding]:
    """Every finding, in the order in which a person wants to know. Takes about a second, leaves nothing.

    Call it while this process has no other threads: it forks.
    """
    try:
        told = _tried(features.KERNEL)
    except universe.UniverseUnavailable as error:
        first = _universe(False, error.what, error.remedy)
        untried = f"not tried without {features.UNIVERSE}"
        kernel = [_finding(feature, None, untried) for feature in features.KERNEL]
    else:
        first = _universe(True, "", "")
        kernel = [_finding(one, *told.get(one.name, (None, _ENDED))) for one in features.KERNEL]
    return [first, _memory(), *kernel, *map(_tool, features.TOOLS)]


def missing(findings: Sequence[Finding]) -> list[Finding]:
    """Those without which no demo can run, and those of which one cannot say. Empty: one can."""
    return [one for one in findings if one.group == "needed" and not one.there]


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """For scripts: `can_run_demo`, and the findings as they are."""
    return {
        "schema_version": 1,
        "can_run_demo": not missing(findings),
        "findings": [asdict(one) for one in findings],
    }


_ENDED = "the process that tried it has ended"


def _tried(kernel: Sequence[Feature]) -> dict[str, tuple[bool, str]]:
    """Each feature's name with whether it is there and what there is to say. UniverseUnavailable."""
    with os.fdopen(os.memfd_create("findings"), "w+") as told:

        def main() -> int:
            for feature in kernel:
                told.write(json.dumps([feature.name, *_try(feature)]) + "\n")
                told.flush()
            return 0

        if universe.run(main) == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        told.seek(0)
        return {name: (there, detail) for name, there, detail in map(json.loads, told)}


def _try(feature: Feature) -> tuple[bool, str]:
    """Whatever a probe raises is its finding: the feature cannot be used, and this is why."""
    try:
        return True, feature.probe()
    except Exception as error:
        return False, str(error) or type(error).__name__


def _finding(feature: Feature, there: bool | None, detail: str) -> Finding:
    return Finding(feature.name, feature.group, there, detail, feature.lost, feature.remedy)


def _universe(there: bool, detail: str, remedy: str) -> Finding:
    return Finding(features.UNIVERSE, "needed", there, detail, features.UNIVERSE_LOST, remedy)


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    there = available >= features.DEMO_BYTES
    detail = f"{format_size(available)} free of the {format_size(features.DEMO_BYTES)} that it takes"
    return Finding(features.MEMORY, "needed", there, detail, features.MEMORY_LOST, features.MEMORY_REMEDY)


def _tool(tool: features.Tool) -> Finding:
    path = shutil.which(tool.name)
    remedy = f"the package {tool.package}, as in: apt install {tool.package}"
    return Finding(tool.name, "tool", path is not None, path or "not in PATH", tool.lost, remedy)
