"""``testbed predict``: what a migration will come to, before anything moves."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.commands.ending import PASSED, WRONG_REQUEST, fail, finish, wrong_request
from testbed.commands.inside import check_possible, inside_universe
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
_NOT_OF_A_PREDICTION = {
    *("fault", "migrations", "name", "quiet"),
    *("pcap", "pcap_snap", "pcap_limit", "no_report"),
}


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
    from testbed.experiment.foresight import Foresight
    from testbed.migration.overheads import Overheads, OverheadsError
    from testbed.scenario.from_options import scenario_of

    with wrong_request():
        words = {key: key.replace("-", "_") for key in KEYS}
        options = options_from({key: given[name] for key, name in words.items() if name in given})
    try:
        path = given["overheads"]
        table = Overheads.shipped() if path is None else Overheads.read(path)
    except (OSError, OverheadsError) as error:
        fail(WRONG_REQUEST, f"--overheads: {error}")
    scenario, as_json = scenario_of(options, "predict"), given["json_"]
    if given["from_options"]:
        _show(Foresight.of(scenario, scenario.vms[0], None, table), as_json=as_json)
        finish(PASSED)
    import_path = check_possible(options)

    def inside(folder: Path) -> int:
        from rich.console import Console

        from testbed.experiment.foreseeing import foreseen_in_a_lab
        from testbed.report.terminal import Progress

        progress = Progress(Console(stderr=True), as_json)
        _show(foreseen_in_a_lab(scenario, folder, import_path, table, progress), as_json=as_json)
        return PASSED

    finish(inside_universe(given["runs"], "predict", inside))


def _show(foresight: Foresight, *, as_json: bool) -> None:
    from rich.console import Console

    from testbed.report.prediction import show_prediction

    foretold = foresight.foretold(0, foresight.scenario.manner())
    if as_json:
        print(json.dumps(foretold.told().model_dump(), indent=2))
    else:
        show_prediction(Console(highlight=False), foretold.told(), foretold.prediction.course)
