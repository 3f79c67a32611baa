"""``testbed bench``: what is promised, measured on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from testbed.commands import asked
from testbed.commands.ending import CANNOT, CHECK_FAILED, PASSED, fail, finish, tell, wrong_request
from testbed.commands.inside import inside_universe
from testbed.scenario.options import OptionError


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
        from testbed.report.console import printer
        from testbed.report.figures import Silence, show_figures

        say = printer(stderr=True, quiet=quiet).print
        figures: list[Figure] = []
        for one in chosen:
            say(f"{one}: {BENCHES[one].__doc__}", style="dim")
            figures += BENCHES[one](Setting(folder, Silence(), migrations))
        (folder / "figures.json").write_text(json.dumps([one.as_dict() for one in figures], indent=2) + "\n")
        if json_:
            print((folder / "figures.json").read_text(), end="")
        else:
            show_figures(printer(), figures)
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
