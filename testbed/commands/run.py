"""``testbed run``, ``validate`` and ``scenarios``: scenarios from files and from the shelf."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.commands import asked
from testbed.commands.ending import ENDED_BY, PASSED, WRONG_REQUEST, fail, finish, tell, worst, wrong_request
from testbed.commands.inside import check_scenarios, inside_universe
from testbed.commands.report import NoReport
from testbed.commands.showing import Show, is_live, lent, run_shown
from testbed.scenario.pcap import DEFAULT_LIMIT

if TYPE_CHECKING:
    from testbed.scenario.model import Scenario


def scenario_names(incomplete: str) -> list[str]:
    """Names of the shelf, for the shell."""
    from testbed.scenario.shelf import names

    return [name for name in names() if name.startswith(incomplete)]


Scenarios = Annotated[
    list[str],
    typer.Argument(
        metavar="SCENARIO...",
        help="Files (TOML), or names from the shelf: testbed scenarios lists them.",
        show_default=False,
        autocompletion=scenario_names,
    ),
]


def run(
    scenarios: Scenarios,
    seed: Annotated[
        int | None, typer.Option(help="In place of the scenario's own.", show_default=False)
    ] = None,
    json_: Annotated[
        bool,
        typer.Option(
            "--json", help="Print result.json on standard output, of several an array; nothing else."
        ),
    ] = False,
    pcap: asked.PcapLinks = None,
    pcap_snap: asked.PcapSnap = None,
    pcap_limit: asked.PcapLimit = DEFAULT_LIMIT,
    pause_on_failure: asked.PauseOnFailure = False,
    no_report: NoReport = False,
    plain: asked.Plain = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Run scenarios, one after the other. The exit status is the worst of them."""
    found = [one if seed is None else one.seeded(seed) for one in _loaded(scenarios)]
    import_path = check_scenarios(found)
    several = len(found) > 1
    with wrong_request():
        captured = asked.captured(pcap, pcap_snap, pcap_limit, lambda: found)
    quiet = quiet or json_
    live = is_live(plain=plain, quiet=quiet)
    show = Show(
        as_json=json_,
        quiet=quiet,
        with_report=not no_report,
        live=live,
        pcap=captured,
        pause=pause_on_failure,
    )
    statuses, results = [], []

    def kept(folder: Path) -> None:
        """Of several, the result is printed with the others."""
        path = folder / "result.json"
        if path.exists():
            results.append(path.read_text())

    for scenario in found:
        if not show.quiet:
            _introduce(scenario)
        statuses.append(_run_one(scenario, runs, import_path, show, several=several, kept=kept))
        if statuses[-1] in ENDED_BY:
            finish(statuses[-1])
    if several and json_:
        print(json.dumps([json.loads(text) for text in results], indent=2))
    finish(worst(statuses))


def _introduce(scenario: Scenario) -> None:
    """What it is for, before it runs."""
    from rich.padding import Padding

    from testbed.report.console import printer

    console = printer()
    console.print(f"\n{scenario.name}", style="bold")
    for text in filter(None, (scenario.shows, scenario.expect)):
        console.print(Padding(text, (0, 0, 0, 2)))
    console.print()


def _run_one(
    scenario: Scenario,
    runs: Path,
    import_path: Sequence[str],
    show: Show,
    *,
    several: bool,
    kept: Callable[[Path], None],
) -> int:
    printed = replace(show, silent=several and show.as_json)

    def inside(folder: Path) -> int:
        return run_shown(scenario, folder, import_path, printed)

    with lent(show.live):
        return inside_universe(runs, scenario.name, inside, kept)


def validate(scenarios: Scenarios) -> None:
    """Check scenario files: a line for each thing that is wrong, which names the key and what is allowed."""
    from testbed.scenario.files import ScenarioError, found

    status = PASSED
    for word in scenarios:
        try:
            scenario = found(word)
        except ScenarioError as error:
            for problem in error.problems:
                tell(problem)
            status = WRONG_REQUEST
        else:
            print(f"{word}: right: {_summary(scenario)}")
    finish(status)


def _summary(scenario: Scenario) -> str:
    counts = (
        (len(scenario.vms), "guest"),
        (len(scenario.hosts), "host"),
        (len(scenario.clients), "client"),
        (len(scenario.steps), "step"),
        (len(scenario.checks), "check of its own"),
    )
    return ", ".join(f"{count} {what if count == 1 else _plural(what)}" for count, what in counts)


def _plural(what: str) -> str:
    return "checks of its own" if what.startswith("check") else f"{what}s"


def scenarios(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Print the file of this one, to begin one's own with.",
            show_default=False,
            autocompletion=scenario_names,
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the scenarios that ship with the testbed, each with what it shows."""
    from testbed.scenario.files import ScenarioError, load, on_shelf
    from testbed.scenario.shelf import paths

    if name is not None:
        try:
            print(on_shelf(name).read_text(), end="")
        except ScenarioError as error:
            fail(WRONG_REQUEST, str(error))
        return
    shelf = [load(path) for path in paths()]
    if json_:
        print(
            json.dumps(
                [{"name": one.name, "shows": one.shows, "expect": one.expect} for one in shelf], indent=2
            )
        )
        return
    from rich.table import Table

    from testbed.report.console import printer

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for one in shelf:
        table.add_row(one.name, one.shows)
    printer().print(table)


def _loaded(words: Sequence[str]) -> list[Scenario]:
    """The scenarios; where one is wrong, its lines, and the command ends."""
    from testbed.scenario.files import ScenarioError, found

    scenarios: list[Scenario] = []
    wrong: list[str] = []
    for word in words:
        try:
            scenarios.append(found(word))
        except ScenarioError as error:
            wrong += error.problems
    for problem in wrong[:-1]:
        tell(problem)
    if wrong:
        fail(WRONG_REQUEST, wrong[-1])
    return scenarios
