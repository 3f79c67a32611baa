"""``testbed faults``: every fault, one after the other, and a table of what came of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from testbed.commands import asked
from testbed.commands.ending import CHECK_FAILED, PASSED, finish, wrong_request
from testbed.commands.inside import check_possible, inside_universe
from testbed.faults.kinds import Fault, FaultError, chosen
from testbed.scenario.options import OptionError, Options
from testbed.scenario.words import options_from


def faults(
    faults: Annotated[
        list[str] | None,
        typer.Argument(help="PHASE:KIND, where * stands for anything, as verify:*. All if none is given."),
    ] = None,
    ram: asked.Ram = "16MiB",
    mode: Annotated[str, typer.Option(help="live, stop-and-copy or quick.")] = "live",
    storage: Annotated[
        bool, typer.Option(help="Shared storage decides who owns the guest; without it nobody can always.")
    ] = True,
    every: Annotated[int, typer.Option(help="Only every so many-th fault, for a look.")] = 1,
    seed: asked.Seed = 1,
    name: asked.Name = "faults",
    json_: Annotated[bool, typer.Option("--json", help="Print the cells as JSON, nothing else.")] = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Make every fault at every phase of a migration: who has the guest afterwards, what its clients lost,
    and whether the next migration is clean."""
    with wrong_request():
        options = options_for(ram, mode, seed, storage=storage)
        if every < 1:
            raise OptionError(f"--every: {every} is not 1 or more")
        try:
            wanted = chosen(faults or ["*:*"], storage=storage)[::every]
        except FaultError as error:
            raise OptionError(str(error)) from error
        asked.check_name(name)
    import_path = check_possible(options)

    def inside(folder: Path) -> int:
        return _sweep(options, wanted, folder, import_path, as_json=json_, quiet=quiet or json_)

    finish(inside_universe(runs, name, inside))


def options_for(ram: str, mode: str, seed: int, *, storage: bool) -> Options:
    """A small lab in which every kind of client has something to lose."""
    words: dict[str, str | float | bool | None] = {"ram": ram, "mode": mode, "seed": seed, "baseline": "0ms"}
    words |= {"clients": 2, "connections": 4, "working-set": "1MiB", "dirty-rate": 1000}
    if storage:
        return options_from(words | {"program": "kv", "durable": True, "disk": "16MiB"})
    return options_from(words | {"program": "echo", "churn": 20, "stream-rate": 100})


def _sweep(
    options: Options,
    wanted: list[Fault],
    folder: Path,
    import_path: list[str],
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    from testbed.experiment.sweep import Sweep
    from testbed.report.console import printer
    from testbed.report.faults import show_cell, show_faults

    console = printer(stderr=as_json)
    cells = []
    path = folder / "faults.json"
    with Sweep(options, folder, import_path) as sweep:
        for cell in sweep.run(wanted):
            cells.append(cell)
            # Each time: whoever ends a sweep half-way keeps what it has found.
            path.write_text(json.dumps([one.as_dict() for one in cells], indent=2) + "\n")
            if not quiet:
                show_cell(console, cell, len(cells), len(wanted))
    if as_json:
        print(path.read_text(), end="")
    else:
        show_faults(console, cells, str(folder))
    return PASSED if not any(cell.wrong for cell in cells) else CHECK_FAILED
