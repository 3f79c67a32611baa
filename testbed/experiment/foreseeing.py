"""The baseline before a migration: normal service, while the guests' hosts watch how they write."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.experiment.foresight import Foresight
from testbed.lab.lab import Lab
from testbed.migration.overheads import Overheads
from testbed.scenario.model import Scenario
from testbed.scenario.units import format_count

if TYPE_CHECKING:
    from testbed.experiment.course import Witness

WATCHED_SHARE = 2
"""One part in so many of the baseline is watched: the other is service with nothing in its way."""


def foresee(
    lab: Lab, overheads: Overheads, on_event: Callable[[dict[str, Any]], None]
) -> dict[str, Foresight]:
    """Let the baseline pass, and learn in it what each guest's migrations are foretold from. Raises what
    :meth:`Lab.sample` does."""
    scenario = lab.scenario
    end_s = time.monotonic() + scenario.baseline_ns / 1e9
    share_ns = scenario.baseline_ns // WATCHED_SHARE // len(lab.vms)
    watched = {name: lab.sample(name, share_ns, on_event) for name in lab.vms}
    lab.watch(end_s - time.monotonic(), on_event)
    return {
        name: Foresight.of(scenario, scenario.vm(name), told, overheads) for name, told in watched.items()
    }


def foreseen_in_a_lab(
    scenario: Scenario, folder: Path, import_path: Sequence[str], overheads: Overheads, witness: Witness
) -> Foresight:
    """Bring a lab up for it, with the guest and its clients, and down again; the first guest's. Nothing
    moves. Raises what brings a lab down."""
    with Lab(scenario, folder, witness.say) as lab:
        witness.say(f"guest: {lab.vm.vm.guest_program} on {lab.vm.owner}")
        lab.boot(import_path)
        connections = format_count(lab.start_clients(), "connection")
        witness.say(f"clients: {connections}; the guest is watched under their load")
        foresight = foresee(lab, overheads, witness.event)[lab.vm.name]
        lab.stop_clients([])
    return foresight
