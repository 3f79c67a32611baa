"""A run of a scenario as a command shows it: progress, summary, page, and the exit status that it earns."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.commands.ending import status_of, tell
from testbed.commands.report import leave_report

if TYPE_CHECKING:
    from testbed.experiment.run import Witness
    from testbed.lab.lab import Lab
    from testbed.measure.result import Result
    from testbed.report.live_state import Cast
    from testbed.scenario.model import Scenario
    from testbed.scenario.options import Options
    from testbed.scenario.pcap import Pcap


@dataclass(frozen=True)
class Show:
    """What of a run is shown. With `as_json` nothing but result.json goes to standard output."""

    as_json: bool = False
    quiet: bool = False
    silent: bool = False
    """Not even the result: somebody else shows it."""
    with_report: bool = True
    live: bool = False
    """As a picture that moves, on a terminal that :func:`testbed.report.screen.lent` has lent."""
    pcap: Pcap | None = None
    pause: bool = False
    """Where a check has failed and a terminal is there: the lab stands until the person there ends it."""


def run_shown(
    scenario: Scenario,
    folder: Path,
    import_path: Sequence[str],
    show: Show,
    options: Options | None = None,
) -> int:
    """Run `scenario` inside a universe; its exit status. `options` where it comes of some."""
    from testbed.experiment.run import run
    from testbed.report.console import printer
    from testbed.report.live import Live
    from testbed.report.live_state import BEAT_MS
    from testbed.report.terminal import Progress, show_summary

    console = printer(stderr=show.as_json)
    with ExitStack() as screen:
        if show.live:
            view: Witness = screen.enter_context(Live(console, cast_of(scenario)))
        else:
            view = Progress(console, show.quiet)

        def paused(lab: Lab, failed: Result) -> None:
            screen.close()
            show_summary(console, failed, str(folder))
            _pause(lab)

        beat_ms = BEAT_MS if show.live else 0
        pauses = show.pause and not show.as_json
        on_failure = paused if pauses else _go_on
        result = run(
            scenario, folder, view, import_path, options, show.pcap, beat_ms, on_failure=on_failure
        )
    if show.silent:
        pass
    elif show.as_json:
        print((folder / "result.json").read_text(), end="")
    elif not (pauses and any(not check.passed for check in result.checks)):
        show_summary(console, result, str(folder))
    page = leave_report(folder) if show.with_report else None
    if page is not None and not show.as_json:
        console.print(f"  {page}", style="dim")
    return status_of(result)


def _go_on(_lab: Lab, _failed: Result) -> None:
    """Nobody wants to look into it."""


def _pause(lab: Lab) -> None:
    from testbed.standing.pausing import is_possible, pause

    if is_possible():
        pause(lab, lab.scenario.name)
    else:
        tell("--pause-on-failure: there is no terminal to be asked at; what was to be seen is in evidence/")


def lent(wanted: bool) -> AbstractContextManager[None]:
    """The terminal, lent to whoever draws in the universe, if that is `wanted`."""
    if not wanted:
        return nullcontext()
    from testbed.report.screen import lent as lent_by_screen

    return lent_by_screen()


def is_live(*, plain: bool, quiet: bool) -> bool:
    """Whether a run is to be shown as a picture: standard output is a terminal that can do that, is large
    enough, and nobody asked for something else."""
    if plain or quiet or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):  # no terminal, or no standard output at all
        return False
    from testbed.report.live_view import fits

    return fits(size.columns, size.lines)


def cast_of(scenario: Scenario) -> Cast:
    """Who is there in the picture."""
    from testbed.report.live_state import Cast

    return Cast(
        title=scenario.name,
        hosts=scenario.hosts,
        guests={vm.name: (vm.host, vm.ram_bytes) for vm in scenario.vms},
        clients=tuple(client.name for client in scenario.clients),
    )
