"""Run folders to one page. The only room of the report that writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from testbed.report.page import dots, words
from testbed.report.page import folder as run_folder
from testbed.report.page.folder import NotARun
from testbed.report.page.tables import Table
from testbed.report.page.view import View, view
from testbed.report.page.words import DEFINITIONS

PAGE = "report.html"
COMPARISON = "comparison.json"
MOST_DOTS_OF_ALL = 4 * dots.MOST_DOTS
"""Of several runs on one page, each tells so many fewer requests one by one."""
PARTS = Path(__file__).with_name("parts")
SCRIPTS = (
    "base.js",
    "requests.js",
    "rows.js",
    "timeline.js",
    "warp.js",
    "film.js",
    "stage.js",
    "replay.js",
    "page.js",
)


@dataclass(frozen=True)
class Beside:
    """What a comparison says above the runs that it compared."""

    title: str = ""
    sentences: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    method: str = ""


def write_report(
    folders: Sequence[Path], out: Path | None = None, tell: Callable[[str], None] = lambda _: None
) -> Path:
    """Make the page of these runs and say where it is: ``report.html`` in the folder of one run or
    comparison, in the folder that has all of several, or `out`. Raises NotARun, and OSError where it cannot
    be written. `tell` is given a line for each thing that is missing in a run, which the page says too.
    """
    text = page(folders, tell)
    path = out or _common(folders) / PAGE
    path.write_text(text)
    return path


def _common(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0]
    parents = [set(one.resolve().parents) for one in folders]
    return max(set.intersection(*parents), key=lambda one: len(one.parts))


def page(folders: Sequence[Path], tell: Callable[[str], None] = lambda _: None) -> str:
    """The page as text; `tell` as in :func:`write_report`."""
    runs, beside = _unfolded(folders)
    most_dots = min(dots.MOST_DOTS, MOST_DOTS_OF_ALL // max(len(runs), 1))
    views = [_viewed(one, most_dots) for one in runs]
    for folder, one in zip(runs, views, strict=True):
        for line in one.missing:
            tell(f"{folder}: {line}")
    return _rendered(views, beside)


def _viewed(path: Path, most_dots: int) -> View:
    """What the page says of a run. A result that has another shape than any that this testbed knows is left
    out and told: the events and samples beside it are still worth a look."""
    found = run_folder.read(path)
    try:
        return view(found, most_dots)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if found.result is None:
            raise
        strange = f"result.json is not understood ({type(error).__name__}: {error}). Figures are missing."
        return view(replace(found, result=None, missing=[*found.missing, strange]), most_dots)


def _unfolded(folders: Sequence[Path]) -> tuple[list[Path], Beside]:
    """A comparison's folder stands for the runs in it."""
    if len(folders) != 1 or not (folders[0] / COMPARISON).is_file():
        return list(folders), Beside()
    root = folders[0]
    try:
        told = json.loads((root / COMPARISON).read_text())
        entries = [one for one in told["runs"] if isinstance(one, dict)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotARun(f"{root / COMPARISON}: cannot be read as a comparison ({error})") from error
    there = [one for one in entries if (root / str(one.get("folder"))).is_dir()]
    if not there:
        raise NotARun(f"{root}: none of the {len(entries)} runs that {COMPARISON} names is there")
    names = [f"{one.get('variant')} {one.get('repeat')}" for one in there]
    return [root / str(one["folder"]) for one in there], _beside(told, names)


def _beside(told: dict[str, Any], names: list[str]) -> Beside:
    judged = [*words.dicts(told.get("effects")), *words.dicts(told.get("differences"))]
    sentences = [str(one.get("sentence")) for one in judged if one.get("real")]
    variants = words.dicts(told.get("variants"))
    title = f"{' and '.join(str(one.get('label')) for one in variants)}, {told.get('repeats')} runs each"
    missing = [
        f"{one.get('folder')}: {one['error']}" for one in words.dicts(told.get("runs")) if one.get("error")
    ]
    if told.get("complete") is False:
        missing.append("The comparison was ended before all runs were made: what there was is compared.")
    if int(told.get("workers") or 1) > 1:
        missing.append("Labs ran beside each other: their times are spoiled and not compared.")
    tables = [_medians(variants)] if variants else []
    return Beside(title, sentences, tables, names, missing, str(told.get("method") or ""))


def _medians(variants: Sequence[dict[str, Any]]) -> Table:
    """Each variant's median of each figure, with its lowest and highest run."""
    from testbed.experiment.comparison import MEASURES

    shows = {measure.key: measure for measure in MEASURES}
    keys = list(dict.fromkeys(key for one in variants for key in one.get("figures", {})))

    def cell(figure: dict[str, Any] | None, show: Any) -> str:
        if not figure or figure.get("median") is None:
            return "-"
        low, high, median = show(figure["low"]), show(figure["high"]), show(figure["median"])
        return median if low == high else f"{median} ({low} to {high})"

    rows = []
    for key in keys:
        show = shows[key].show if key in shows else str
        noun = shows[key].noun if key in shows else key
        rows.append([noun, *(cell(one.get("figures", {}).get(key), show) for one in variants)])
    return Table(
        "Medians, with the lowest and the highest run",
        ["", *(str(one.get("label")) for one in variants)],
        rows,
    )


def _rendered(views: Sequence[View], beside: Beside) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    keys = list(dict.fromkeys(key for one in views for key in one.summary))
    names = beside.names or [one.name for one in views]
    return environment.get_template("page.html").render(
        title=beside.title or (views[0].title if len(views) == 1 else f"{len(views)} runs side by side"),
        style=(PARTS / "style.css").read_text(),
        script="\n".join((PARTS / name).read_text() for name in SCRIPTS),
        views=views,
        names=names,
        keys=keys,
        beside=beside,
        definitions=DEFINITIONS,
    )
