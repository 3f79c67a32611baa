"""The command ``testbed``: reads options, runs things in a universe, shows what came out, exits as the
contract says.

Exit status: 0 migrated and every client unbroken; 1 a continuity or integrity check failed; 2 the request was
wrong; 3 this machine cannot do it, and what is missing is named; 4 rolled back, and the guest is alive.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from testbed.scenario.options import MIN_RAM_BYTES, OptionError, Options
from testbed.scenario.units import parse_duration, parse_rate, parse_size

if TYPE_CHECKING:
    from testbed.measure.result import Result

PASSED, CHECK_FAILED, WRONG_REQUEST, CANNOT, ROLLED_BACK = range(5)
INTERRUPTED = 128 + signal.SIGINT
ENDED_BY = {INTERRUPTED: "Ctrl-C", 128 + signal.SIGTERM: "SIGTERM", 128 + signal.SIGKILL: "SIGKILL"}
"""What exit statuses above the contract's mean: 128 and the number of the signal."""
DEFAULT_FOLDER = Path("testbed-runs")

app = typer.Typer(
    name="testbed",
    help="Live migration under the eyes of its clients, on one Linux machine.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_DEFAULT = Options()
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while it runs.")]
RunFolder = Annotated[Path, typer.Option("--runs", help="Where to put the run's folder.")]


@app.command()
def demo(quiet: Quiet = False, runs: RunFolder = DEFAULT_FOLDER) -> None:
    """Bring up a lab, migrate its guest live under load, and show what the clients saw. The place to
    begin."""
    _finish(_run(_DEFAULT, "demo", runs, as_json=False, quiet=quiet))


@app.command()
def migrate(
    mode: Annotated[
        str, typer.Option(help="live: rounds while it runs; stop-and-copy: all while stopped.")
    ] = "live",
    ram: Annotated[str, typer.Option(help="The guest's RAM.")] = "256MiB",
    fill: Annotated[float, typer.Option(help="Share of RAM that holds incompressible data, 0 to 0.9.")] = 0.5,
    program: Annotated[
        str, typer.Option(help="echo, kv, http, ramp, or your own: package.module:Class.")
    ] = "echo",
    clients: Annotated[int, typer.Option(help="Client machines.")] = _DEFAULT.clients,
    connections: Annotated[
        int, typer.Option(help="Connections that ask and wait, over all clients.")
    ] = _DEFAULT.connections,
    interval: Annotated[str, typer.Option(help="How often each of them asks.")] = "1ms",
    stream_rate: Annotated[
        int, typer.Option(help="Messages a second of the steady stream of each client (echo).")
    ] = _DEFAULT.stream_rate_per_s,
    churn: Annotated[
        int, typer.Option(help="Connections opened and closed a second, over all clients (echo).")
    ] = _DEFAULT.churn_per_s,
    family: Annotated[str, typer.Option(help="both, ipv4 or ipv6.")] = "both",
    dirty_rate: Annotated[
        int, typer.Option(help="Pages a second that the guest writes besides.")
    ] = _DEFAULT.dirty_rate_pages_per_s,
    working_set: Annotated[str, typer.Option(help="The RAM among which it writes them.")] = "16MiB",
    pattern: Annotated[str, typer.Option(help="uniform, hot-cold or sequential.")] = "uniform",
    bandwidth: Annotated[
        str | None, typer.Option(help="Rate of the wire between the hosts, as 1gbit. Unlimited if not given.")
    ] = None,
    max_bandwidth: Annotated[
        str | None, typer.Option(help="Cap on what the pre-copy rounds send; the switchover is not capped.")
    ] = None,
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
    migrations: Annotated[int, typer.Option(help="How many, there and back.")] = 1,
    baseline: Annotated[str, typer.Option(help="Normal service before the first one.")] = "1s",
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 1,
    name: Annotated[str, typer.Option(help="Goes into the name of the run's folder.")] = "migrate",
    json_: Annotated[
        bool, typer.Option("--json", help="Print result.json on standard output, nothing else.")
    ] = False,
    quiet: Quiet = False,
    runs: RunFolder = DEFAULT_FOLDER,
) -> None:
    """Migrate with options. Sizes as 256MiB, rates as 1gbit, durations as 300ms."""
    with _wrong_request():
        options = Options(
            mode=mode,  # type: ignore[arg-type]
            ram_bytes=_parsed("--ram", parse_size, ram),
            fill=fill,
            program=program,
            clients=clients,
            connections=connections,
            interval_ns=_parsed("--interval", parse_duration, interval),
            stream_rate_per_s=stream_rate,
            churn_per_s=churn,
            family=family,  # type: ignore[arg-type]
            dirty_rate_pages_per_s=dirty_rate,
            working_set_bytes=_parsed("--working-set", parse_size, working_set),
            pattern=pattern,  # type: ignore[arg-type]
            bandwidth_bits_per_s=_optional("--bandwidth", parse_rate, bandwidth),
            max_bandwidth_bits_per_s=_optional("--max-bandwidth", parse_rate, max_bandwidth),
            downtime_limit_ns=_parsed("--downtime-limit", parse_duration, downtime_limit),
            max_rounds=max_rounds,
            on_stall=on_stall,  # type: ignore[arg-type]
            announce=announce,  # type: ignore[arg-type]
            hold=hold,
            mac=mac,  # type: ignore[arg-type]
            tracker=tracker,  # type: ignore[arg-type]
            migrations=migrations,
            baseline_ns=_parsed("--baseline", parse_duration, baseline),
            seed=seed,
        )
        _check_name(name)
    _finish(_run(options, name, runs, as_json=json_, quiet=quiet or json_))


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="switchover, connections, churn, copy, lab, endurance; all if none is named."),
    ] = None,
    migrations: Annotated[int, typer.Option(help="Migrations for each median.")] = 20,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, nothing else.")] = False,
    quiet: Quiet = False,
    runs: RunFolder = DEFAULT_FOLDER,
) -> None:
    """Measure what this testbed promises on this machine: medians, and ratios to peers. Takes some
    minutes."""
    from testbed.scenario.bench import BENCHES, Figure, Setting

    chosen = names or list(BENCHES)
    with _wrong_request():
        for unknown in (one for one in chosen if one not in BENCHES):
            raise OptionError(f"bench: {unknown!r} is none of {', '.join(BENCHES)}")
        if not 1 <= migrations <= 10_000:
            raise OptionError(f"--migrations: {migrations} is not between 1 and 10000")

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

    _finish(_inside_universe(runs, "bench", inside))


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
        _fail(CANNOT, f"no demo can run here without {names} ({first.detail}). {first.remedy}")


def main() -> NoReturn:
    """Run the command that the process was started with, and exit as the contract says."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except _UsageError as error:
        _tell(_what_is_wrong(error))
        status = WRONG_REQUEST
    if status in ENDED_BY:
        with suppress(OSError):  # the terminal may be what is gone
            _tell(f"ended by {ENDED_BY[status]}; nothing of the lab is left")
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


class _wrong_request:  # noqa: N801 - reads as a statement
    """Turns what is wrong with a request into its one line and exit status 2."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, OptionError):
            _fail(WRONG_REQUEST, str(error))


def _parsed(option: str, parser: Callable[[str], int], text: str) -> int:
    try:
        return parser(text)
    except ValueError as error:
        raise OptionError(f"{option}: {error}") from error


def _optional(option: str, parser: Callable[[str], int], text: str | None) -> int | None:
    return None if text is None else _parsed(option, parser, text)


def _check_name(name: str) -> None:
    if not name.isprintable() or not name or "/" in name or name.startswith(".") or len(name) > 100:
        allowed = "at most 100 characters, no slash, no dot first"
        raise OptionError(f"--name: {name!r} cannot be part of a folder's name: {allowed}")


def _tell(text: str) -> None:
    """One line on standard error, whatever `text` quotes."""
    print("testbed:", " ".join(text.split()), file=sys.stderr)


def _fail(status: int, text: str) -> NoReturn:
    _tell(text)
    raise typer.Exit(status)


def _finish(status: int) -> NoReturn:
    raise typer.Exit(status)


def _run(options: Options, name: str, runs: Path, *, as_json: bool, quiet: bool) -> int:
    """Everything from the checks that need no lab to the exit status."""
    from testbed.guest.program import ProgramError, load_program

    _check_memory(options)
    import_path = [str(Path.cwd())]
    sys.path[:0] = import_path
    try:
        load_program(options.program)
    except ProgramError as error:
        _fail(WRONG_REQUEST, f"--program: {error}")

    def inside(folder: Path) -> int:
        return _show_run(options, name, folder, import_path, as_json=as_json, quiet=quiet)

    return _inside_universe(runs, name, inside)


def _inside_universe(runs: Path, name: str, inside: Callable[[Path], int]) -> int:
    """Run `inside` in a universe, with a folder of its own below `runs`; its exit status, or that of what
    went wrong."""
    from netns import universe
    from netns.paths import RUN
    from testbed.scenario.lab import PRELOAD
    from testbed.scenario.run import give_to_caller, make_folder

    if runs.resolve().is_relative_to(RUN):
        _fail(WRONG_REQUEST, f"--runs: {runs} cannot be used: every run has a {RUN} of its own; use another")
    runs_were_there = runs.exists()
    try:
        folder = make_folder(runs, name)
    except OSError as error:
        _fail(CANNOT, f"cannot make the run's folder in {runs}: {error.strerror}")

    def guarded() -> int:
        try:
            status = inside(folder)
            give_to_caller(folder)
            return status
        except Exception as error:
            return _explained(error, folder)

    try:
        return universe.run(guarded, preload=PRELOAD)
    except universe.UniverseUnavailable as error:
        _fail(CANNOT, f"{error.what}: {error.cost}. {error.remedy}")
    finally:
        _remove_if_mute(folder)
        if not runs_were_there:
            with suppress(OSError):  # there is a run in it
                runs.rmdir()


def _remove_if_mute(folder: Path) -> None:
    """Remove the folder of a run that left nothing to read: no file, or logs without a line."""
    left = list(folder.iterdir())
    if all(path.is_file() and not path.stat().st_size for path in left):
        for path in left:
            path.unlink()
        folder.rmdir()


def _check_memory(options: Options) -> None:
    """Both hosts hold the guest's RAM at the same time."""
    import psutil

    available = psutil.virtual_memory().available
    if 2 * options.ram_bytes > available:
        least, most = MIN_RAM_BYTES >> 20, available // 2 >> 20
        _fail(
            WRONG_REQUEST,
            f"--ram: {options.ram_bytes >> 20} MiB on two hosts are more than the {available >> 20} MiB "
            f"of memory that are free; allowed here: {least} to {most} MiB",
        )


def _show_run(
    options: Options, name: str, folder: Path, import_path: list[str], *, as_json: bool, quiet: bool
) -> int:
    from rich.console import Console

    from testbed.report.terminal import Progress, show_summary
    from testbed.scenario.run import run

    console = Console(stderr=as_json, highlight=False)
    result = run(options, name, folder, Progress(console, quiet), import_path)
    if as_json:
        print((folder / "result.json").read_text(), end="")
    else:
        show_summary(console, result, str(folder))
    return status_of(result)


def status_of(result: Result) -> int:
    """The exit status that a result earns."""
    if result.outcome == "rolled-back":
        clients_unbroken = all(
            check.passed for check in result.checks if check.name not in ("migrated", "verified")
        )
        return ROLLED_BACK if clients_unbroken else CHECK_FAILED
    passed = result.outcome == "completed" and all(check.passed for check in result.checks)
    return PASSED if passed else CHECK_FAILED


def _explained(error: Exception, folder: Path) -> int:
    """One line for what brought a run down, and its exit status. What nobody foresaw keeps its traceback."""
    from netns.apply import TopologyError
    from netns.forkserver import NotReady, ProcessDied, SpawnError
    from testbed.clients.control import ClientFailed
    from testbed.clients.control import ControlError as ClientControlError
    from testbed.host.control import CommandFailed, ControlError

    if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
        _tell(f"no room for the run's folder {folder}: {error}")
        return CANNOT
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        _tell(f"{error.strerror or error}{where}")
        return CANNOT
    foreseen: tuple[type[Exception], ...] = (TopologyError, NotReady, ProcessDied, SpawnError, ClientFailed)
    foreseen += (ClientControlError, CommandFailed, ControlError)
    if not isinstance(error, foreseen):
        raise error
    _tell(str(error))
    return CANNOT if isinstance(error, TopologyError) or _is_missing(error) else CHECK_FAILED


def _is_missing(error: Exception) -> bool:
    return getattr(error, "kind", "") == "TrackerUnavailable"
