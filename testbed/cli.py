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
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

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
from testbed.commands.faults import faults
from testbed.commands.inside import check_possible, inside_universe
from testbed.commands.predict import command_like
from testbed.commands.report import NoReport, report
from testbed.commands.run import run, scenarios, validate
from testbed.commands.showing import Show, is_live, lent, run_shown
from testbed.scenario.options import OptionError, Options
from testbed.scenario.pcap import DEFAULT_LIMIT
from testbed.scenario.words import options_from

if TYPE_CHECKING:
    from testbed.scenario.model import Scenario

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
    no_report: NoReport = False,
    plain: asked.Plain = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Bring up a lab, migrate its guest live under load, and show what the clients saw. The place to
    begin."""
    with wrong_request():
        captured = asked.captured(pcap, pcap_snap, pcap_limit, lambda: [_scenario(_DEFAULT, "demo")])
    live = is_live(plain=plain, quiet=quiet)
    show = Show(quiet=quiet, with_report=not no_report, pcap=captured, live=live)
    finish(_run(_DEFAULT, "demo", runs, show))


@app.command()
def migrate(
    mode: Annotated[
        str,
        typer.Option(
            help="live: rounds while it runs; stop-and-copy: all while stopped; quick: while stopped, RAM to "
            "a file on shared storage and back, and the LUN moved in between."
        ),
    ] = "live",
    ram: asked.Ram = "256MiB",
    fill: Annotated[float, typer.Option(help="Share of RAM that holds incompressible data, 0 to 0.9.")] = 0.5,
    program: asked.Program = _DEFAULT.program,
    clients: Annotated[int, typer.Option(help="Client machines.")] = _DEFAULT.clients,
    connections: asked.Connections = _DEFAULT.connections,
    interval: Annotated[str, typer.Option(help="How often each of them asks.")] = "1ms",
    stream_rate: Annotated[
        int, typer.Option(help="Messages a second of the steady stream of each client (echo).")
    ] = _DEFAULT.stream_rate_per_s,
    churn: Annotated[
        int, typer.Option(help="Connections opened and closed a second, over all clients (echo).")
    ] = _DEFAULT.churn_per_s,
    family: Annotated[str, typer.Option(help="both, ipv4 or ipv6.")] = "both",
    dirty_rate: asked.DirtyRate = _DEFAULT.dirty_rate_pages_per_s,
    working_set: Annotated[str, typer.Option(help="The RAM among which it writes them.")] = "16MiB",
    pattern: Annotated[str, typer.Option(help="uniform, hot-cold or sequential.")] = "uniform",
    bandwidth: asked.Bandwidth = None,
    max_bandwidth: Annotated[
        str | None, typer.Option(help="Cap on what the pre-copy rounds send; the switchover is not capped.")
    ] = None,
    disk: asked.Disk = None,
    storage_rate: asked.StorageRate = None,
    durable: asked.Durable = False,
    downtime_limit: Annotated[
        str, typer.Option(help="Switch over once the rest is expected to cross in this time.")
    ] = "300ms",
    max_rounds: Annotated[int, typer.Option(help="Most rounds before the stall is decided.")] = 30,
    on_stall: Annotated[str, typer.Option(help="switch anyway, or give-up and stay.")] = "switch",
    announce: Annotated[str, typer.Option(help="garp-request, garp-reply, rarp or none.")] = "garp-request",
    hold: Annotated[
        bool, typer.Option(help="Hold frames during the blackout and release them after.")
    ] = True,
    mac: Annotated[
        str, typer.Option(help="keep: the MAC moves along; per-host: each host has its own.")
    ] = "keep",
    tracker: Annotated[str, typer.Option(help="auto, userfaultfd, soft-dirty or digest.")] = "auto",
    storage_server: Annotated[
        str,
        typer.Option(
            help="testbed; or nbdkit, which knows no leases: NOBODY IS FENCED then, and a host that has lost "
            "the guest can still write to its disk."
        ),
    ] = "testbed",
    migrations: Annotated[int, typer.Option(help="How many, there and back.")] = 1,
    baseline: Annotated[str, typer.Option(help="Normal service before the first one.")] = "1s",
    fault: Annotated[
        str | None,
        typer.Option(help="PHASE:KIND, made in the first migration, as verify:target-agent-killed."),
    ] = None,
    seed: asked.Seed = _DEFAULT.seed,
    pcap: asked.PcapLinks = None,
    pcap_snap: asked.PcapSnap = None,
    pcap_limit: asked.PcapLimit = DEFAULT_LIMIT,
    name: asked.Name = "migrate",
    json_: Annotated[
        bool, typer.Option("--json", help="Print result.json on standard output, nothing else.")
    ] = False,
    no_report: NoReport = False,
    plain: asked.Plain = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Migrate with options. Sizes as 256MiB, rates as 1gbit, durations as 300ms."""
    with wrong_request():
        options = options_from(
            {
                "mode": mode,
                "ram": ram,
                "fill": fill,
                "program": program,
                "clients": clients,
                "connections": connections,
                "interval": interval,
                "stream-rate": stream_rate,
                "churn": churn,
                "family": family,
                "dirty-rate": dirty_rate,
                "working-set": working_set,
                "pattern": pattern,
                "bandwidth": bandwidth,
                "max-bandwidth": max_bandwidth,
                "disk": disk,
                "storage-rate": storage_rate,
                "durable": durable,
                "storage-server": storage_server,
                "fault": fault,
                "downtime-limit": downtime_limit,
                "max-rounds": max_rounds,
                "on-stall": on_stall,
                "announce": announce,
                "hold": hold,
                "mac": mac,
                "tracker": tracker,
                "migrations": migrations,
                "baseline": baseline,
                "seed": seed,
            }
        )
        asked.check_name(name)
        captured = asked.captured(pcap, pcap_snap, pcap_limit, lambda: [_scenario(options, name)])
    quiet = quiet or json_
    live = is_live(plain=plain, quiet=quiet)
    show = Show(as_json=json_, quiet=quiet, with_report=not no_report, pcap=captured, live=live)
    finish(_run(options, name, runs, show))


app.command("predict")(command_like(migrate))
app.command()(run)
app.command()(validate)
app.command()(scenarios)
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


def _scenario(options: Options, name: str) -> Scenario:
    from testbed.scenario.from_options import scenario_of

    return scenario_of(options, name)


def _run(options: Options, name: str, runs: Path, show: Show) -> int:
    """Everything from the checks that need no lab to the exit status."""
    import_path = check_possible(options)

    def inside(folder: Path) -> int:
        return run_shown(_scenario(options, name), folder, import_path, show, options)

    with lent(show.live):
        return inside_universe(runs, name, inside)
