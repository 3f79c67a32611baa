"""``testbed predict``: what a migration will come to, before anything moves."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.commands import asked
from testbed.commands.ending import PASSED, WRONG_REQUEST, fail, finish, wrong_request
from testbed.commands.inside import check_possible, inside_universe
from testbed.scenario.options import Options
from testbed.scenario.words import KEYS, options_from

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
_NOT_OF_A_PREDICTION = ("fault", "migrations", "name", "quiet")


def command_like(migrate: Callable[..., Any]) -> Callable[..., None]:
    """The command ``predict`` with the very options of ``migrate``, and its own besides."""
    own = (
        _parameter("from_options", False, FromOptions),
        _parameter("overheads", None, Table),
    )
    theirs = inspect.signature(migrate, eval_str=True).parameters.values()
    kept = [one for one in theirs if one.name not in _NOT_OF_A_PREDICTION]
    parameters = [one if one.name != "json_" else one.replace(annotation=_Json) for one in kept]

    def predict(**given: Any) -> None:
        _predict(given)

    predict.__doc__ = (
        "Foretell rounds, bytes, total time and blackout of a migration, and whether it will converge: "
        "brings the guest up, watches how it writes to its RAM, and moves nothing."
    )
    predict.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]
    predict.__annotations__ = {one.name: one.annotation for one in (*parameters, *own)} | {"return": None}
    return predict


_Json = Annotated[
    bool, typer.Option("--json", help="Print the prediction as JSON on standard output, nothing else.")
]


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _predict(given: dict[str, Any]) -> None:
    from testbed.migration.overheads import Overheads, OverheadsError

    runs, as_json, path = given.pop("runs"), given.pop("json_"), given.pop("overheads")
    from_options = given.pop("from_options")
    with wrong_request():
        options = options_from(
            {key: given[key.replace("-", "_")] for key in KEYS if key.replace("-", "_") in given}
        )
    try:
        table = Overheads.shipped() if path is None else Overheads.read(path)
    except (OSError, OverheadsError) as error:
        fail(WRONG_REQUEST, f"--overheads: {error}")
    if from_options:
        from testbed.experiment.foresight import Foresight

        _show(Foresight.of(options, None, table), as_json=as_json)
        finish(PASSED)
    import_path = check_possible(options)
    asked.check_name("predict")

    def inside(folder: Path) -> int:
        _show(_watched(options, folder, import_path, table, quiet=as_json), as_json=as_json)
        return PASSED

    finish(inside_universe(runs, "predict", inside))


def _watched(options: Options, folder: Path, import_path: list[str], table: Any, *, quiet: bool) -> Foresight:
    """What the guest shows of itself under its clients' load."""
    from rich.console import Console

    from testbed.experiment.foreseeing import foreseen_in_a_lab
    from testbed.report.terminal import Progress

    return foreseen_in_a_lab(options, folder, import_path, table, Progress(Console(stderr=True), quiet))


def _show(foresight: Foresight, *, as_json: bool) -> None:
    from rich.console import Console

    from testbed.report.prediction import show_prediction

    told = foresight.told(foresight.prediction())
    if as_json:
        print(json.dumps(told.model_dump(), indent=2))
    else:
        show_prediction(Console(highlight=False), told, foresight.prediction().course)
