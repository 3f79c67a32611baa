"""``testbed predict``: what a migration will come to, before anything moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.commands import asked
from testbed.commands.ending import PASSED, WRONG_REQUEST, fail, finish
from testbed.commands.inside import check_possible, inside_universe
from testbed.commands.options import takes_options
from testbed.scenario.options import Options

if TYPE_CHECKING:
    from testbed.experiment.foresight import Foresight

FromOptions = Annotated[
    bool,
    typer.Option(
        "--from-options",
        help="Bring nothing up: take the load that the options ask for as what the guest writes.",
    ),
]
Table = Annotated[
    Path | None,
    typer.Option(
        "--overheads",
        help="What this machine takes besides the pages, as testbed bench prediction leaves it. "
        "If not given: the table that ships.",
    ),
]


@takes_options(of_run=True)
def predict(
    options: Options,
    from_options: FromOptions = False,
    overheads: Table = None,
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print the prediction as JSON on standard output, nothing else."),
    ] = False,
    runs: asked.RunFolder = asked.DEFAULT_FOLDER,
) -> None:
    """Foretell rounds, bytes, total time and blackout of a migration, and whether it will converge: brings
    the guest up, watches how it writes to its RAM, and moves nothing."""
    from testbed.experiment.foresight import Foresight
    from testbed.migration.overheads import Overheads, OverheadsError
    from testbed.scenario.from_options import scenario_of

    try:
        table = Overheads.shipped() if overheads is None else Overheads.read(overheads)
    except (OSError, OverheadsError) as error:
        fail(WRONG_REQUEST, f"--overheads: {error}")
    scenario = scenario_of(options, "predict")
    if from_options:
        _show(Foresight.of(scenario, scenario.vms[0], None, table), as_json=json_)
        finish(PASSED)
    import_path = check_possible(options)

    def inside(folder: Path) -> int:
        from testbed.experiment.foreseeing import foreseen_in_a_lab
        from testbed.report.console import printer
        from testbed.report.terminal import Progress

        progress = Progress(printer(stderr=True), json_)
        _show(foreseen_in_a_lab(scenario, folder, import_path, table, progress), as_json=json_)
        return PASSED

    finish(inside_universe(runs, "predict", inside))


def _show(foresight: Foresight, *, as_json: bool) -> None:
    from testbed.report.console import printer
    from testbed.report.prediction import show_prediction

    foretold = foresight.foretold(0, foresight.scenario.manner())
    if as_json:
        print(json.dumps(foretold.told().model_dump(), indent=2))
    else:
        show_prediction(printer(), foretold.told(), foretold.prediction.course)
