"""The baseline before a migration: normal service, while the guest's host watches how it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.experiment.foresight import Foresight
from testbed.lab.lab import Lab
from testbed.migration.overheads import Overheads
from testbed.scenario.options import Options

if TYPE_CHECKING:
    from testbed.experiment.run import Witness

WATCHED_SHARE = 2
"""One part in so many of the baseline is watched: the other is service with nothing in its way."""


def foresee(
    lab: Lab, options: Options, overheads: Overheads, on_event: Callable[[dict[str, Any]], None]
) -> Foresight:
    """Let the baseline pass, and foretell from what was seen in it. Raises what :meth:`Lab.sample` does."""
    end_s = time.monotonic() + options.baseline_ns / 1e9
    watched = lab.sample(options.baseline_ns // WATCHED_SHARE, on_event)
    lab.watch(end_s - time.monotonic(), on_event)
    return Foresight.of(options, watched, overheads)


def foreseen_in_a_lab(
    options: Options, folder: Path, import_path: Sequence[str], overheads: Overheads, witness: Witness
) -> Foresight:
    """Bring a lab up for it, with the guest and its clients, and down again. Nothing moves. Raises what
    brings a lab down."""
    with Lab(options, folder, witness.say) as lab:
        witness.say(f"guest: {options.program} on {lab.owner}")
        lab.boot(import_path)
        connections = lab.start_clients()
        witness.say(f"clients: {connections} connections; the guest is watched under their load")
        foresight = foresee(lab, options, overheads, witness.event)
        lab.stop_clients([])
    return foresight
