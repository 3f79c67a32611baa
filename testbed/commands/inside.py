"""The way of a command into a universe: what can be checked without a lab, a folder for what comes out, and
nothing left of it when nothing did.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.commands.ending import CANNOT, WRONG_REQUEST, explained, fail, tell
from testbed.scenario.options import MIN_RAM_BYTES, Options

if TYPE_CHECKING:
    from netns.universe import UniverseUnavailable
    from testbed.scenario.model import Scenario


def check_possible(*runs: Options) -> list[str]:
    """What needs no lab: the memory is there, and the programs can be loaded. Returns where a guest finds
    them, too. Exits with status 2 otherwise.
    """
    import_path = _import_path()
    for options in runs:
        _check_memory(options)
        _check_program(options.program, "--program")
    return import_path


def check_scenarios(scenarios: Iterable[Scenario]) -> list[str]:
    """The same of scenarios."""
    import_path = _import_path()
    for scenario in scenarios:
        _check_scenario_memory(scenario)
        for vm in scenario.vms:
            _check_program(vm.program, f"{scenario.name}: vm[{vm.name}].program")
        _check_commands(scenario)
    return import_path


def _import_path() -> list[str]:
    """Where a guest finds programs of the user's, besides what is installed: where the command was given."""
    import_path = [str(Path.cwd())]
    sys.path[:0] = import_path
    return import_path


def _check_program(program: str, where: str) -> None:
    from testbed.guest.program import ProgramError, load_program

    try:
        load_program(program)
    except ProgramError as error:
        fail(WRONG_REQUEST, f"{where}: {error}")


def _check_commands(scenario: Scenario) -> None:
    """Programs that the scenario runs in nodes are this machine's: what is missing is told before anything
    stands."""
    wanted = [
        (client.name, program.command[0], program.environment)
        for client in scenario.clients
        for program in client.programs
    ]
    wanted += [(str(step.on), step.run[0], step.environment) for step in scenario.steps if step.run]
    missing = [
        f"{scenario.name}: {node}: cannot run {name}: not found, or not executable"
        for node, name, environment in wanted
        if shutil.which(name, path=environment.get("PATH", os.environ.get("PATH"))) is None
    ]
    for line in missing[:-1]:
        tell(line)
    if missing:
        fail(CANNOT, missing[-1])


def _check_scenario_memory(scenario: Scenario) -> None:
    """Guests that move are on two hosts at the same time; the storage keeps its LUN in memory too."""
    import psutil

    from testbed.lab.storage import lun_bytes

    standing = sum(vm.ram_bytes for vm in scenario.vms)
    needed = standing + scenario.most_moving_bytes + (lun_bytes(scenario) if scenario.has_storage else 0)
    available = psutil.virtual_memory().available
    if needed > available:
        fail(
            WRONG_REQUEST,
            f"{scenario.name}: vm.ram: the guests' RAM, with that of those who move at both hosts, and their "
            f"disks come to {needed >> 20} MiB, and {available >> 20} MiB of memory are free",
        )


def _check_memory(options: Options) -> None:
    """Both hosts hold the guest's RAM at the same time, and the storage target its LUN, in memory too."""
    import psutil

    available = psutil.virtual_memory().available
    lun = _lun_bytes(options)
    if options.disk_bytes > available:
        fail(
            WRONG_REQUEST,
            f"--disk: {options.disk_bytes >> 20} MiB are more than the {available >> 20} MiB of memory that "
            f"are free, and the storage keeps them there",
        )
    if 2 * options.ram_bytes + lun > available:
        for_each = 3 if options.mode == "quick" else 2  # its saved RAM is in the LUN
        disk = max(0, lun - (for_each - 2) * options.ram_bytes)
        least, most = MIN_RAM_BYTES >> 20, max(0, available - disk) // for_each >> 20
        beside = f" and a LUN of {lun >> 20} MiB" if lun else ""
        fail(
            WRONG_REQUEST,
            f"--ram: {options.ram_bytes >> 20} MiB on two hosts{beside} are more than the {available >> 20} "
            f"MiB of memory that are free; allowed here: {least} to {most} MiB",
        )


def _lun_bytes(options: Options) -> int:
    if not options.has_storage:
        return 0
    from testbed.lab.storage import lun_bytes
    from testbed.scenario.from_options import scenario_of

    return lun_bytes(scenario_of(options))


def inside_universe(
    runs: Path, name: str, inside: Callable[[Path], int], afterwards: Callable[[Path], None] = lambda _: None
) -> int:
    """Run `inside` in a universe, with a folder of its own below `runs`; its exit status, or that of what
    went wrong. `afterwards` sees the folder when the universe has ended."""
    from netns import universe
    from testbed.experiment.run import give_to_caller
    from testbed.lab.lab import PRELOAD

    folder = RunFolder(runs, name)

    def guarded() -> int:
        try:
            status = inside(folder.path)
            give_to_caller(folder.path)
            return status
        except Exception as error:
            return explained(error, folder.path)

    try:
        status = universe.run(guarded, preload=PRELOAD)
        afterwards(folder.path)
        return status
    except universe.UniverseUnavailable as error:
        fail(CANNOT, why_no_universe(error))
    finally:
        folder.leave()


def why_no_universe(error: UniverseUnavailable) -> str:
    """One line: what failed, what it costs, what to do."""
    return f"{error.what}: {error.cost}. {error.remedy}"


class RunFolder:
    """A new folder for a run, below `runs`; ends the command where it cannot be made. A folder in which there
    is nothing to read when it is left is removed, and so is one for runs that was not there before."""

    def __init__(self, runs: Path, name: str) -> None:
        from netns.paths import RUN
        from testbed.experiment.run import make_folder

        if runs.resolve().is_relative_to(RUN):
            what = f"every run has a {RUN} of its own; use another"
            fail(WRONG_REQUEST, f"--runs: {runs} cannot be used: {what}")
        self._runs = runs
        try:
            self._runs_were_there = runs.exists()  # it may not be for us to know
            self.path = make_folder(runs, name)
        except OSError as error:
            fail(CANNOT, f"cannot make the run's folder in {runs}: {error.strerror}")

    def leave(self) -> None:
        _remove_if_mute(self.path)
        if not self._runs_were_there:
            with suppress(OSError):  # there is a run in it
                self._runs.rmdir()


def _remove_if_mute(folder: Path) -> None:
    """Remove the folder of a run that left nothing to read: no file, or logs without a line."""
    for below in [path for path in folder.iterdir() if path.is_dir()]:
        _remove_if_mute(below)
    left = list(folder.iterdir())
    if all(path.is_file() and not path.stat().st_size for path in left):
        for path in left:
            path.unlink()
        folder.rmdir()
