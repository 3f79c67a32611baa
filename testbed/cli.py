"""The command ``testbed``: reads options, runs things in a universe, shows what came out, exits as the
contract says.

Exit status: 0 migrated and every client unbroken; 1 a continuity or integrity check failed; 2 the request was
wrong; 3 this machine cannot do it, and what is missing is named; 4 rolled back, and the guest is alive.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from testbed.commands import asked
from testbed.commands.calibrate import calibrate
from testbed.commands.compare import compare
from testbed.commands.ending import (
    CANNOT,
    CHECK_FAILED,
    ENDED_BY,
    INTERRUPTED,
    PASSED,
    WRONG_REQUEST,
    fail,
    finish,
    tell,
    wrong_request,
)
from testbed.commands.events import events
from testbed.commands.faults import faults
from testbed.commands.inside import inside_universe
from testbed.commands.link import capture, link
from testbed.commands.migrate import migrate, run_one, scenario
from testbed.commands.nodes import exec_, shell
from testbed.commands.predict import predict
from testbed.commands.ps import ps
from testbed.commands.report import NoReport, report
from testbed.commands.run import run, scenarios, validate
from testbed.commands.showing import Show, is_live
from testbed.commands.up import down, up
from testbed.scenario.options import OptionError, Options
from testbed.scenario.pcap import DEFAULT_LIMIT

app = typer.Typer(
    name="testbed",
    help="Live migration under the eyes of its clients, on one Linux machine.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEFAULT = Options()


@app.command()
def demo(
    pcap: asked.PcapLinks = None,
    pcap_snap: asked.PcapSnap = None,
    pcap_limit: asked.PcapLimit = DEFAULT_LIMIT,
    pause_on_failure: asked.PauseOnFailure = False,
    no_report: NoReport = False,
    plain: asked.Plain = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Bring up a lab, migrate its guest live under load, and show what the clients saw. The place to
    begin."""
    with wrong_request():
        captured = asked.captured(pcap, pcap_snap, pcap_limit, lambda: [scenario(_DEFAULT, "demo")])
    live = is_live(plain=plain, quiet=quiet)
    show = Show(quiet=quiet, with_report=not no_report, pcap=captured, live=live, pause=pause_on_failure)
    finish(run_one(_DEFAULT, "demo", runs, show))


app.command()(migrate)
app.command()(predict)
app.command()(run)
app.command()(validate)
app.command()(scenarios)
app.command()(up)
app.command()(ps)
app.command("exec")(exec_)
app.command()(shell)
app.command()(events)
app.add_typer(link, name="link")
app.command()(capture)
app.command()(down)
app.command()(compare)
app.command()(faults)
app.command()(report)
app.command()(calibrate)


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="switchover, connections, churn, copy, lab, endurance, storage, durable, quick, relay, "
            "probing, prediction, report; all if none is named."
        ),
    ] = None,
    migrations: Annotated[int, typer.Option(help="Migrations for each median.")] = 20,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, nothing else.")] = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Measure what this testbed promises on this machine: medians, and ratios to peers. Takes a quarter of an
    hour."""
    from testbed.experiment.bench import Figure, Setting
    from testbed.report.bench import BENCHES

    chosen = names or list(BENCHES)
    with wrong_request():
        for unknown in (one for one in chosen if one not in BENCHES):
            raise OptionError(f"bench: {unknown!r} is none of {', '.join(BENCHES)}")
        if not 1 <= migrations <= 10_000:
            raise OptionError(f"--migrations: {migrations} is not between 1 and 10000")
    chosen = _with_room(chosen, named=bool(names))

    def inside(folder: Path) -> int:
        from rich.console import Console

        from testbed.report.figures import Silence, show_figures

        say = Console(stderr=True, highlight=False, quiet=quiet).print
        figures: list[Figure] = []
        for one in chosen:
            say(f"{one}: {BENCHES[one].__doc__}", style="dim")
            figures += BENCHES[one](Setting(folder, Silence(), migrations))
        (folder / "figures.json").write_text(json.dumps([one.as_dict() for one in figures], indent=2) + "\n")
        if json_:
            print((folder / "figures.json").read_text(), end="")
        else:
            show_figures(Console(highlight=False), figures)
        return PASSED if all(one.holds for one in figures) else CHECK_FAILED

    finish(inside_universe(runs, "bench", inside))


def _with_room(benches: list[str], *, named: bool) -> list[str]:
    """Those for which there is memory; one that was asked for by name and has none ends the command."""
    import psutil

    from testbed.experiment.bench import NEEDS_BYTES
    from testbed.scenario.units import format_size

    available = psutil.virtual_memory().available
    for one in (one for one in benches if NEEDS_BYTES.get(one, 0) > available):
        needs, free = format_size(NEEDS_BYTES[one]), format_size(available)
        if named:
            fail(CANNOT, f"bench {one}: needs {needs} of memory, and {free} are free")
        tell(f"bench {one} is left out: it needs {needs} of memory, and {free} are free")
    return [one for one in benches if NEEDS_BYTES.get(one, 0) <= available]


@app.command()
def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Try what a run needs of this machine: whether it is there, what is lost without it, how to get it."""
    from rich.console import Console

    from testbed.doctor.examination import as_json, examine, missing
    from testbed.doctor.table import show

    findings = examine()
    if json_:
        print(json.dumps(as_json(findings), indent=2))
    else:
        show(Console(highlight=False), findings)
    absent = missing(findings)
    if absent:
        first = absent[0]
        names = ", ".join(one.name for one in absent if one.there is False) or first.name
        fail(CANNOT, f"no demo can run here without {names} ({first.detail}). {first.remedy}")


def main() -> NoReturn:
    """Run the command that the process was started with, and exit as the contract says."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = app(asked.completed(sys.argv[1:]) or ["--help"], standalone_mode=False)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except _UsageError as error:
        tell(_what_is_wrong(error))
        status = WRONG_REQUEST
    if status in ENDED_BY:
        with suppress(OSError):  # the terminal may be what is gone
            tell(f"ended by {ENDED_BY[status]}; nothing of the lab is left")
        _let_go_of_the_terminal()
    sys.exit(status)


def _let_go_of_the_terminal() -> None:
    """What a terminal that is gone did not take, Python would write again at its end, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_UsageError: Any = typer.BadParameter.__base__
"""Whatever is wrong with the words of a command line; typer itself names only this one kind."""


def _what_is_wrong(error: Any) -> str:
    """What is wrong with a command line, and where to read what is allowed."""
    what = error.format_message().rstrip(".")
    context = error.ctx
    if context is None:
        return f"{what}; see testbed --help"
    if hasattr(context.command, "list_commands"):
        return f"{what}: use {', '.join(context.command.list_commands(context))}"
    return f"{what}; see {context.command_path} --help"
