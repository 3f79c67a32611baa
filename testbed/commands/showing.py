"""A run of a scenario as a command shows it: progress, summary, page, and the exit status that it earns."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.commands.ending import status_of
from testbed.commands.report import leave_report

if TYPE_CHECKING:
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


def run_shown(
    scenario: Scenario,
    folder: Path,
    import_path: Sequence[str],
    show: Show,
    options: Options | None = None,
) -> int:
    """Run `scenario` inside a universe; its exit status. `options` where it comes of some."""
    from rich.console import Console

    from testbed.experiment.run import run
    from testbed.report.live import Live
    from testbed.report.live_state import BEAT_MS
    from testbed.report.terminal import Progress, show_summary

    console = Console(stderr=show.as_json, highlight=False)
    if show.live:
        with Live(console, cast_of(scenario)) as view:
            result = run(scenario, folder, view, import_path, options, show.pcap, BEAT_MS)
    else:
        result = run(scenario, folder, Progress(console, show.quiet), import_path, options, show.pcap)
    if show.silent:
        pass
    elif show.as_json:
        print((folder / "result.json").read_text(), end="")
    else:
        show_summary(console, result, str(folder))
    page = leave_report(folder) if show.with_report else None
    if page is not None and not show.as_json:
        console.print(f"  {page}", style="dim")
    return status_of(result)


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
