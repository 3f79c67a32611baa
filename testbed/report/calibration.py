"""A calibration on a terminal: a line for each thing that is tried, then the errors as tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from testbed.measure.calibration import Calibration, Condition, Count, Errors, Length, Pauses
from testbed.scenario.units import format_ms


class Progress:
    """Says what is tried, and how far a row of pauses is (on a terminal only). `quiet` says nothing."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        columns = (bars.BarColumn(40), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
        self._bars = bars.Progress(*columns, console=console, transient=True, disable=quiet)
        self._task: bars.TaskID | None = None

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(text, style="dim"))

    def advance(self, done: int, of: int) -> None:
        if self._task is None:
            self._task = self._bars.add_task("", total=of)
        self._bars.update(self._task, completed=done, total=of)
        if done == of:
            self._bars.remove_task(self._task)
            self._task = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._bars.stop()


def show_calibration(console: Console, calibration: Calibration, folder: str, kept: Path | None) -> None:
    """All of it, for a person. `kept` is where later runs find it; None where it was not kept for them."""
    if calibration.pauses:
        _show_pauses(console, calibration)
    if calibration.counts:
        _print(console, "\nbytes and writes that went wrong on purpose")
        console.print(_indented(_counts(calibration.counts)))
    if calibration.conditions:
        _print(console, "\nknown conditions of a link")
        console.print(_indented(_conditions(calibration.conditions)))
    for line in calibration.left_out:
        _print(console, f"  left out: {line}", "yellow")
    console.print()
    _print(console, "  " + verdict(calibration), "green" if calibration.holds else "red")
    _print(console, f"\n  {folder}/calibration.json", "dim")
    if kept is not None:
        _print(console, f"  kept for later runs in {kept}", "dim")


def verdict(calibration: Calibration) -> str:
    """What came out, in a sentence or two."""
    gap, bound = calibration.gap_error_ms, calibration.gap_bound_ms
    limit = format_ms(calibration.promised_gap_error_ms)
    wide = [one.name for one in calibration.pauses if not one.holds]
    tried: list[Count | Condition] = [*calibration.counts, *calibration.conditions]
    wrong = [f"{one.name} ({one.what})" for one in tried if not one.holds]
    told = []
    if gap is not None:
        told.append(f"the gap's error is {_signed(gap.median)} ms at the median, {gap.p95:.2f} ms at p95")
    if bound is not None:
        told.append(f"with the guest's first steps and the network {_signed(bound.median)} ms")
    if wide:
        told.append(f"over the promised {limit} at the median: {', '.join(wide)}")
    if wrong:
        told.append(f"not as it was done: {', '.join(wrong)}")
    return ("✓ " if calibration.holds else "✗ ") + "; ".join(told or ["all as it was done"])


VIEWS: tuple[tuple[str, Callable[[Pauses], Errors | None], Callable[[Length], Errors | None]], ...] = (
    ("against the wire: what the probe itself adds", lambda one: one.own, lambda one: one.own),
    (
        "against the guest's word: its first steps and the way back too",
        lambda one: one.error,
        lambda one: one.error,
    ),
    (
        "against the pause: what falls between two requests is missed",
        lambda one: one.of_pause,
        lambda one: one.of_pause,
    ),
)


def _show_pauses(console: Console, calibration: Calibration) -> None:
    _print(console, "\nlongest waits in pauses of known length: error in ms, median of each length")
    for heading, of_all, of_length in VIEWS:
        _print(console, f"\n{heading}", "dim")
        console.print(_indented(_pauses(calibration.pauses, of_all, of_length)))


def _pauses(
    pauses: list[Pauses],
    of_all: Callable[[Pauses], Errors | None],
    of_length: Callable[[Length], Errors | None],
) -> Table:
    lengths = sorted({length.asked_ms for one in pauses for length in one.lengths})
    table = _table("probe", *(f"{length:g}" for length in lengths), "median", "p95", "max")
    for one in pauses:
        found = {length.asked_ms: of_length(length) for length in one.lengths}
        cells = [_cell(found.get(length)) for length in lengths]
        table.add_row(one.name, *cells, *_summary(of_all(one), "bold" if one.holds else "bold red"))
    return table


def _cell(errors: Errors | None) -> str:
    return "-" if errors is None else _signed(errors.median)


def _summary(total: Errors | None, style: str) -> list[Text]:
    if total is None:
        return [Text("-")] * 3
    return [Text(_signed(total.median), style=style), Text(f"{total.p95:.2f}"), Text(f"{total.largest:.2f}")]


def _counts(counts: list[Count]) -> Table:
    table = _table("probe", "what", "done", "found", "")
    table.columns[1].justify = "left"
    for one in counts:
        mark = Text("✓", style="green") if one.holds else Text("✗", style="red")
        table.add_row(one.name, one.what, str(one.done), str(one.found), mark)
    return table


def _conditions(conditions: list[Condition]) -> Table:
    table = _table("probe", "what", "asked", "true", "measured", "error", "allowed", "")
    table.columns[1].justify = "left"
    for one in conditions:
        mark = Text("✓", style="green") if one.holds else Text("✗", style="red")
        figures = [f"{value:.4g}" for value in (one.asked, one.true, one.measured)]
        bounds = (f"{one.error:+.3g}", f"{one.allowed:.3g}")
        table.add_row(one.name, f"{one.what}, {one.unit}" if one.unit else one.what, *figures, *bounds, mark)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _signed(value_ms: float) -> str:
    return f"{value_ms:+.2f}"


def _indented(what: Table) -> Padding:
    return Padding(what, (0, 0, 0, 2), expand=False)


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style))
