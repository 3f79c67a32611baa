"""``testbed migrate``: a run of its own with options, or a migration in a lab that stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from testbed.commands import asked
from testbed.commands.ending import finish, status_of, wrong_request
from testbed.commands.inside import check_possible, inside_universe
from testbed.commands.options import given_options, takes_options
from testbed.commands.report import NoReport, leave_report
from testbed.commands.standing import lab_names, migrate_standing
from testbed.scenario.options import OptionError, Options

DEFAULT_NAME = "migrate"


@takes_options(of_run=True)
def migrate(
    options: Options,
    context: typer.Context,
    to: Annotated[
        str | None, typer.Option(help="The host to go to, in a lab that stands. If not given: the next one.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="A lab that stands (testbed up): its guest moves. If none of that name does, the options are "
            "of a run of its own, and the name goes into its folder's.",
            autocompletion=lab_names,
        ),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print result.json on standard output, nothing else.")
    ] = False,
    no_report: NoReport = False,
    quiet: asked.Quiet = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Migrate with options. Sizes as 256MiB, rates as 1gbit, durations as 300ms. With --name of a lab that
    stands, or with --to: the guest of that lab, as it was brought up."""
    lab = _lab_that_is_meant(name, to, given_options(context))
    if lab is not None:
        migrate_standing(lab, to, as_json=json_, quiet=quiet or json_, with_report=not no_report)
    name = name or DEFAULT_NAME
    with wrong_request():
        asked.check_name(name)
    finish(run_one(options, name, runs, as_json=json_, quiet=quiet or json_, with_report=not no_report))


def _lab_that_is_meant(name: str | None, to: str | None, given: list[str]) -> str | None:
    """The lab that stands whose guest is to move; None where a run of its own is wanted."""
    from testbed.standing import registry

    with wrong_request():
        stands = name is not None and name in [entry.name for entry in registry.standing()]
        if not stands and to is None:
            return None
        lab = registry.find(name)
        if given:
            raise OptionError(
                f"{', '.join(given)}: lab {lab.name!r} stands as it was brought up; leave this out, or take another "
                f"--name for a run of its own"
            )
    return lab.name


def run_one(
    options: Options, name: str, runs: Path, *, as_json: bool, quiet: bool, with_report: bool
) -> int:
    """Everything from the checks that need no lab to the exit status."""
    import_path = check_possible(options)

    def inside(folder: Path) -> int:
        return _show(
            options, name, folder, import_path, as_json=as_json, quiet=quiet, with_report=with_report
        )

    return inside_universe(runs, name, inside)


def _show(
    options: Options,
    name: str,
    folder: Path,
    import_path: list[str],
    *,
    as_json: bool,
    quiet: bool,
    with_report: bool,
) -> int:
    from rich.console import Console

    from testbed.experiment.run import run
    from testbed.report.terminal import Progress, show_summary

    console = Console(stderr=as_json, highlight=False)
    result = run(options, name, folder, Progress(console, quiet), import_path)
    if as_json:
        print((folder / "result.json").read_text(), end="")
    else:
        show_summary(console, result, str(folder))
    page = leave_report(folder) if with_report else None
    if page is not None and not as_json:
        console.print(f"  {page}", style="dim")
    return status_of(result)
