"""``testbed compare``: variants on the same guest, in turns; one table, and what differs in sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from testbed.commands import asked
from testbed.commands.ending import finish, status_of_run, worst, wrong_request
from testbed.commands.inside import check_possible, inside_universe
from testbed.scenario.options import OptionError, Options
from testbed.scenario.variants import Contender, contenders, read_changes, read_variant

_DEFAULT = Options()
MOST_REPEATS = 1000


def compare(
    variants: Annotated[
        list[str],
        typer.Argument(
            help="Two or more of: live, stop-and-copy, quick, or KEY=VALUE[,KEY=VALUE] with the options of "
            "testbed migrate, as hold=no or mode=live,ram=1GiB."
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
    repeats: Annotated[int, typer.Option(help="Runs of each variant, in turns: A B C, A B C, A B C.")] = 3,
    seed: asked.Seed = _DEFAULT.seed,
    name: asked.Name = "compare",
    json_: Annotated[
        bool, typer.Option("--json", help="Print comparison.json on standard output, nothing else.")
    ] = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Run variants of a migration in turns on the same guest: one table, and how far they differ. Where one
    of them needs shared storage, all have it."""
    with wrong_request():
        shared = {
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
        compared = contenders(shared, [read_variant(word) for word in variants])
        if not 1 <= repeats <= MOST_REPEATS:
            raise OptionError(f"--repeats: {repeats} is not between 1 and {MOST_REPEATS}")
        asked.check_name(name)
    import_path = check_possible(*(one.options for one in compared))

    def inside(folder: Path) -> int:
        return _show(compared, repeats, name, folder, import_path, as_json=json_, quiet=quiet or json_)

    finish(inside_universe(runs, name, inside))


def _show(
    compared: list[Contender],
    repeats: int,
    name: str,
    folder: Path,
    import_path: list[str],
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    from rich.console import Console

    from testbed.experiment.compare import compare as run_all
    from testbed.report.comparison import show_comparison
    from testbed.report.figures import Silence
    from testbed.report.terminal import Progress

    console = Console(stderr=as_json, highlight=False)
    say = Progress(console, quiet).say
    comparison = run_all(compared, repeats, name, folder, say, Silence(), import_path)
    if as_json:
        print((folder / "comparison.json").read_text(), end="")
    else:
        show_comparison(console, comparison, str(folder))
    return worst(status_of_run(run.outcome, run.failed_checks) for run in comparison.runs)
