"""How a command ends: the exit statuses of the contract, and one line for whatever is wrong.

Exit status: 0 migrated and every client unbroken; 1 a continuity or integrity check failed; 2 the request was
wrong; 3 this machine cannot do it, and what is missing is named; 4 rolled back, and the guest is alive.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from testbed.scenario.options import OptionError

if TYPE_CHECKING:
    from testbed.measure.result import Outcome, Result

PASSED, CHECK_FAILED, WRONG_REQUEST, CANNOT, ROLLED_BACK = range(5)
INTERRUPTED = 128 + signal.SIGINT
ENDED_BY = {INTERRUPTED: "Ctrl-C", 128 + signal.SIGTERM: "SIGTERM", 128 + signal.SIGKILL: "SIGKILL"}
"""What exit statuses above the contract's mean: 128 and the number of the signal."""


def tell(text: str) -> None:
    """One line on standard error, whatever `text` quotes."""
    print("testbed:", " ".join(text.split()), file=sys.stderr)


def fail(status: int, text: str) -> NoReturn:
    tell(text)
    raise typer.Exit(status)


def finish(status: int) -> NoReturn:
    raise typer.Exit(status)


class wrong_request:  # noqa: N801 - reads as a statement
    """Turns what is wrong with a request into its one line and exit status 2."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, OptionError):
            fail(WRONG_REQUEST, str(error))


def status_of(result: Result) -> int:
    """The exit status that a result earns. Of a scenario that shows a migration not to complete, that is
    success."""
    shown = any(check.name == "migrated" and check.waived for check in result.checks)
    outcome: Outcome = "completed" if shown else result.outcome
    return status_of_run(outcome, [check.name for check in result.checks if not check.passed])


def status_of_run(outcome: Outcome, failed_checks: Collection[str]) -> int:
    """The exit status that a run earns by its outcome and the names of the checks that failed."""
    if outcome == "rolled-back":
        return CHECK_FAILED if set(failed_checks) - {"migrated", "verified"} else ROLLED_BACK
    return PASSED if outcome == "completed" and not failed_checks else CHECK_FAILED


def worst(statuses: Iterable[int]) -> int:
    """Of several runs' statuses the one that says most: that a run could not be, then a failed check, then a
    rollback, then success."""
    return max(statuses, key=(PASSED, ROLLED_BACK, CHECK_FAILED, CANNOT).index)


def explained(error: Exception, folder: Path) -> int:
    """Tell in one line what brought a run down; its exit status. What nobody foresaw keeps its traceback."""
    text, status = explanation(error, folder)
    tell(text)
    return status


def explanation(error: Exception, folder: Path) -> tuple[str, int]:
    """One line for what brought a run down, and its exit status. Raises what nobody foresaw."""
    from netns.apply import TopologyError
    from netns.capture import CaptureError
    from netns.forkserver import NotReady, ProcessDied, SpawnError
    from netns.link_figures import BackendMissing
    from netns.links import LinkError
    from netns.observe import ObserveError
    from netns.relayed import RelayDied
    from testbed.clients.control import ClientFailed
    from testbed.clients.control import ControlError as ClientControlError
    from testbed.experiment.bench import BenchFailed
    from testbed.experiment.yardstick import YardstickFailed
    from testbed.host.control import CommandFailed, ControlError
    from testbed.lab.programs import ProgramNotStarted
    from testbed.storage.nbdkit import NbdkitError
    from testbed.storage.volume_client import VolumeLost, VolumeRefused

    if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
        return f"no room for the run's folder {folder}: {error}", CANNOT
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{where}", CANNOT
    missing: tuple[type[Exception], ...] = (TopologyError, NbdkitError, ProgramNotStarted)
    missing += (BackendMissing, LinkError)
    foreseen = (*missing, NotReady, ProcessDied, SpawnError, ClientFailed, CaptureError)
    foreseen += (RelayDied, ObserveError)
    foreseen += (ClientControlError, CommandFailed, ControlError, VolumeRefused, VolumeLost)
    foreseen += (BenchFailed, YardstickFailed)
    if not isinstance(error, foreseen):
        raise error
    return str(error), CANNOT if isinstance(error, missing) or _is_missing(error) else CHECK_FAILED


def _is_missing(error: Exception) -> bool:
    return getattr(error, "kind", "") == "TrackerUnavailable"
