"""``testbed calibrate``: the instrument against known pauses, known wrong bytes and known conditions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.commands import asked
from testbed.commands.ending import CHECK_FAILED, PASSED, finish, tell, wrong_request
from testbed.commands.inside import inside_universe
from testbed.scenario.options import OptionError

if TYPE_CHECKING:
    from testbed.experiment.calibration import Request

MOST_REPEATS = 1000


def calibrate(
    repeats: Annotated[int, typer.Option(help="How often each length of pause is made.")] = 10,
    probe: Annotated[
        list[str] | None, typer.Option(help="Only this kind of probe; may be given several times.")
    ] = None,
    seed: asked.Seed = 1,
    name: asked.Name = "calibrate",
    json_: Annotated[
        bool, typer.Option("--json", help="Print calibration.json on standard output, nothing else.")
    ] = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Hold each kind of probe against what was really done: pauses of known length, bytes that go wrong on
    purpose, known delay, loss and rate. Exit status 1 where the error is larger than promised. Every later
    run on this machine carries the error found. Takes two to three minutes."""
    with wrong_request():
        if not 1 <= repeats <= MOST_REPEATS:
            raise OptionError(f"--repeats: {repeats} is not between 1 and {MOST_REPEATS}")
        asked.check_name(name)
        kinds = _kinds(probe or [])

    def inside(folder: Path) -> int:
        from testbed.experiment.calibration import Request

        request = Request(repeats=repeats, seed=seed).only(kinds)
        return _show(request, name, folder, as_json=json_, quiet=quiet or json_)

    finish(inside_universe(runs, name, inside))


def _kinds(asked_for: list[str]) -> tuple[str, ...]:
    from testbed.clients.spec import KINDS

    for unknown in (one for one in asked_for if one not in KINDS):
        raise OptionError(f"--probe: {unknown!r} is none of {', '.join(KINDS)}")
    return tuple(asked_for)


def _show(request: Request, name: str, folder: Path, *, as_json: bool, quiet: bool) -> int:
    from testbed.experiment.calibration import calibrate as do_all
    from testbed.experiment.machine import keep
    from testbed.report.calibration import Progress, show_calibration
    from testbed.report.console import printer

    console = printer(stderr=as_json)
    with Progress(console, quiet) as progress:
        calibration = do_all(request, name, folder, progress)
    kept = None
    if request.is_whole:
        try:
            kept = keep(calibration)
        except OSError as error:
            tell(f"cannot keep the calibration for later runs: {error}")
    if as_json:
        print((folder / "calibration.json").read_text(), end="")
    else:
        show_calibration(console, calibration, str(folder), kept)
    return PASSED if calibration.holds else CHECK_FAILED
