"""``testbed compare``: variants on the same guest, in turns; one table, and what differs in sentences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.commands import asked
from testbed.commands.ending import CHECK_FAILED, finish, status_of_run, tell, worst, wrong_request
from testbed.commands.inside import check_possible, check_scenarios, inside_universe
from testbed.scenario.options import OptionError, Options

if TYPE_CHECKING:
    from testbed.experiment.compare import Request
    from testbed.measure.comparison import Comparison, Run

_DEFAULT = Options()
MOST_REPEATS = 1000
MOST_WORKERS = 64
SHORT = {"baseline": "500ms", "aftermath": "400ms"}
"""In a comparison a run is soon over: what it reports is waited for as it is, but normal service is watched
for no longer than tells it from a wait, and the announcements, which are no figure here, are not waited
for."""


def compare(
    variants: Annotated[
        list[str],
        typer.Argument(
            help="Two or more of: live, stop-and-copy, quick; KEY=VALUE[,KEY=VALUE] with the options of "
            "testbed migrate, as hold=no or mode=live,ram=1GiB; conditions of the clients' links, as "
            "delay=10ms or loss=0.001; a scenario (FILE.toml, or a name from testbed scenarios), and "
            "KEY=VALUE over it. Slashes make a grid of all combinations: hold=yes/no mac=keep/per-host."
        ),
    ],
    ram: asked.Ram = "256MiB",
    program: asked.Program = _DEFAULT.program,
    connections: asked.Connections = _DEFAULT.connections,
    dirty_rate: asked.DirtyRate = _DEFAULT.dirty_rate_pages_per_s,
    bandwidth: asked.Bandwidth = None,
    disk: asked.Disk = None,
    storage_rate: asked.StorageRate = None,
    durable: asked.Durable = False,
    with_: Annotated[
        str | None,
        typer.Option("--with", help="Any other options of testbed migrate, for all: KEY=VALUE[,KEY=VALUE]."),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(help="Runs of each variant, in blocks of each once, in an order drawn by the seed."),
    ] = 5,
    workers: Annotated[
        int,
        typer.Option(
            help="Labs beside each other, where timing is not the point: ALL TIMES ARE SPOILED then, and "
            "only counts and bytes are compared."
        ),
    ] = 1,
    seed: asked.Seed = _DEFAULT.seed,
    name: asked.Name = "compare",
    json_: Annotated[
        bool, typer.Option("--json", help="Print comparison.json on standard output, nothing else.")
    ] = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Run variants of a migration in turns on the same guest: one table, and how far they differ, in
    sentences and in comparison.html. Where one of them needs shared storage, all have it. Each run has
    500 ms of normal service first and 800 ms after it (testbed migrate: 1 s and 1.4 s); --with
    baseline=1s,aftermath=1s has it as there."""
    from testbed.experiment.compare import Request
    from testbed.scenario.variants import contenders, read_changes, read_variants

    with wrong_request():
        shared = {
            **SHORT,
            "ram": ram,
            "program": program,
            "connections": connections,
            "dirty-rate": dirty_rate,
            "bandwidth": bandwidth,
            "disk": disk,
            "storage-rate": storage_rate,
            "durable": durable,
            "seed": seed,
            **(read_changes(with_) if with_ is not None else {}),
        }
        compared = contenders(shared, read_variants(variants), lambda options: check_possible(*options))
        _check_range("--repeats", repeats, MOST_REPEATS)
        _check_range("--workers", workers, MOST_WORKERS)
        asked.check_name(name)
    request = Request(compared, repeats, name, workers)
    import_path = _check_all(request)

    def inside(folder: Path) -> int:
        return _show(request, folder, import_path, as_json=json_, quiet=quiet or json_)

    finish(inside_universe(runs, name, inside))


def _check_range(option: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise OptionError(f"{option}: {value} is not between 1 and {most}")


def _check_all(request: Request) -> list[str]:
    """That each can be run by itself, in memory and with its program; where the guest finds that."""
    import_path = check_scenarios(one.scenario for one in request.contenders)
    _check_memory_of_all(request)
    return import_path


def _check_memory_of_all(request: Request) -> None:
    """With several workers as many labs stand at once."""
    import psutil

    from testbed.commands.ending import WRONG_REQUEST, fail

    needs = max(
        sum(vm.ram_bytes for vm in one.scenario.vms) + one.scenario.most_moving_bytes
        for one in request.contenders
    )
    available = psutil.virtual_memory().available
    if needs * request.workers > available:
        fail(
            WRONG_REQUEST,
            f"--workers: {request.workers} labs take {needs * request.workers >> 20} MiB of memory, and "
            f"{available >> 20} MiB are free; allowed here: 1 to {max(1, available // needs)}",
        )


def _show(request: Request, folder: Path, import_path: list[str], *, as_json: bool, quiet: bool) -> int:
    from testbed.experiment.compare import COMPARISON, compare
    from testbed.report.comparison import leave_page, show_comparison
    from testbed.report.console import printer
    from testbed.report.figures import Silence
    from testbed.report.terminal import Progress

    console = printer(stderr=as_json)
    say = Progress(console, quiet).say
    if request.workers > 1:
        tell(
            f"--workers {request.workers}: labs run beside each other, ALL TIMES ARE SPOILED; "
            f"only counts and bytes are compared"
        )
    comparison = compare(request, folder, say, Silence(), import_path)
    page = leave_page(folder, comparison)
    if as_json:
        print((folder / COMPARISON).read_text(), end="")
    else:
        show_comparison(console, comparison, str(folder))
        console.print(f"  {page}", style="dim")
    return status_of_comparison(comparison)


def status_of_comparison(comparison: Comparison) -> int:
    """The worst of its runs'; a lab that failed is a check that failed."""
    return worst(_status_of(run) for run in comparison.runs)


def _status_of(run: Run) -> int:
    return CHECK_FAILED if run.error is not None else status_of_run(run.outcome, run.failed_checks)
