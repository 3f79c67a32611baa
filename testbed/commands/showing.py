"""A run of a scenario as a command shows it: progress, summary, page, and the exit status that it earns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.commands.ending import status_of
from testbed.commands.report import leave_report

if TYPE_CHECKING:
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
    from testbed.report.terminal import Progress, show_summary

    console = Console(stderr=show.as_json, highlight=False)
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
