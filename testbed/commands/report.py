"""``testbed report``: the page of a run, made again, or of several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from testbed.commands.ending import CANNOT, WRONG_REQUEST, fail, tell

NoReport = Annotated[bool, typer.Option("--no-report", help="Leave out report.html.")]


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of runs, or the folder of one testbed compare. Several are shown side by side.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The file to write. If not given: report.html in the run's folder, or in the folder that "
            "holds all of several runs.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make the page of a run (report.html): timeline, replay, figures in one file that needs nothing else. Of
    a run that was cut short it shows what is there, and what is missing is told on standard error too."""
    from testbed.report.page.folder import NotARun
    from testbed.report.page.render import write_report

    try:
        path = write_report(runs, out, tell)
    except NotARun as error:
        fail(WRONG_REQUEST, str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        fail(CANNOT, f"the report cannot be written: {error.strerror or error}{where}")
    print(path)


def leave_report(folder: Path) -> Path | None:
    """The page of a run that has just ended; None where it could not be made, which is told in one line: the
    run stands, whatever becomes of its picture."""
    from testbed.report.page.render import write_report

    try:
        return write_report([folder])
    except Exception as error:
        tell(f"no report of {folder}: {type(error).__name__}: {error}; `testbed report {folder}` tries again")
        return None
