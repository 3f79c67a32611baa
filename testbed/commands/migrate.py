"""``testbed migrate``: a run of its own with options, or a migration in a lab that stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.commands import asked
from testbed.commands.ending import finish, tell, wrong_request
from testbed.commands.inside import check_possible, inside_universe
from testbed.commands.options import STEP_KEYS, given_options, takes_options
from testbed.commands.report import NoReport
from testbed.commands.showing import Show, is_live, lent, run_shown
from testbed.commands.standing import host_names, lab_names, migrate_standing, vm_names
from testbed.scenario.options import OptionError, Options
from testbed.scenario.pcap import DEFAULT_LIMIT

if TYPE_CHECKING:
    from testbed.scenario.model import Scenario

DEFAULT_NAME = "migrate"


@takes_options(of_run=True)
def migrate(
    options: Options,
    context: typer.Context,
    pcap: asked.PcapLinks = None,
    pcap_snap: asked.PcapSnap = None,
    pcap_limit: asked.PcapLimit = DEFAULT_LIMIT,
    to: Annotated[
        str | None,
        typer.Option(
            help="In a lab that stands: the host to go to. If not given: the next one.",
            autocompletion=host_names,
        ),
    ] = None,
    vm: Annotated[
        list[str] | None,
        typer.Option(
            help="In a lab that stands with several guests: which; given several times, they move at "
            "once.",
            autocompletion=vm_names,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="A lab that stands (testbed up): its guest moves. If none of that name does: goes into the "
            "name of the run's folder.",
            autocompletion=lab_names,
        ),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print result.json on standard output, nothing else.")
    ] = False,
    pause_on_failure: asked.PauseOnFailure = False,
    no_report: NoReport = False,
    plain: asked.Plain = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Migrate with options, in a lab that is there for this alone. Sizes as 256MiB, rates as 1gbit, durations
    as 300ms. With --name of a lab that stands, or with --to or --vm: in that lab, as it was brought up; of
    the options --mode, --downtime-limit, --max-rounds, --on-stall, --max-bandwidth, --migrations and --fault
    can be given then, for this time."""
    quiet = quiet or json_
    live = is_live(plain=plain, quiet=quiet)
    show = Show(as_json=json_, quiet=quiet, with_report=not no_report, live=live)
    lab = _lab_that_is_meant(name, anyway=to is not None or bool(vm))
    if lab is not None:
        with wrong_request():
            _refuse_of_a_run(lab, pcap=pcap is not None, pause_on_failure=pause_on_failure)
            step = _step(lab, given_options(context))
        step |= {"migrate": vm} if vm else {}
        step |= {"to": to} if to is not None else {}
        migrate_standing(lab, step, show)
    name = DEFAULT_NAME if name is None else name
    with wrong_request():
        asked.check_name(name)
        captured = asked.captured(pcap, pcap_snap, pcap_limit, lambda: [scenario(options, name)])
    finish(run_one(options, name, runs, replace(show, pcap=captured, pause=pause_on_failure)))


def scenario(options: Options, name: str) -> Scenario:
    """The scenario that the options stand for."""
    from testbed.scenario.from_options import scenario_of

    return scenario_of(options, name)


def run_one(options: Options, name: str, runs: Path, show: Show) -> int:
    """Everything from the checks that need no lab to the exit status."""
    import_path = check_possible(options)

    def inside(folder: Path) -> int:
        return run_shown(scenario(options, name), folder, import_path, show, options)

    with lent(show.live):
        return inside_universe(runs, name, inside)


def _lab_that_is_meant(name: str | None, *, anyway: bool) -> str | None:
    """The lab that stands whose guest is to move; None where a run of its own is wanted. `anyway`: it is a
    lab that is meant, named or not."""
    from testbed.standing import registry

    standing = [entry.name for entry in registry.standing()]
    if name not in standing and not anyway:
        if name is not None and standing:
            tell(f"--name: no lab {name!r} stands ({', '.join(standing)}): this is a run of its own")
        return None
    with wrong_request():
        return registry.find(name).name


def _refuse_of_a_run(lab: str, *, pcap: bool, pause_on_failure: bool) -> None:
    """OptionError for what only a run of its own does, with what does it in a lab that stands."""
    if pcap:
        raise OptionError(f"--pcap: lab {lab!r} stands already; its links: testbed capture --name {lab} ...")
    if pause_on_failure:
        raise OptionError(
            f"--pause-on-failure: lab {lab!r} stands anyway; to be in it: testbed shell --name {lab} ..."
        )


def _step(lab: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options as a step of a scenario. Raises OptionError for one that is not of a migration."""
    alien = [f"--{name.replace('_', '-')}" for name in given if name not in STEP_KEYS]
    if alien:
        raise OptionError(
            f"{', '.join(alien)}: lab {lab!r} stands as it was brought up; leave this out, or take another "
            f"--name for a run of its own"
        )
    return {STEP_KEYS[name]: value for name, value in given.items()}
