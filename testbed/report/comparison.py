"""A comparison for a person: a table with a column for each variant, and what differs, in sentences."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from testbed.experiment.measures import MEASURES
from testbed.measure.comparison import Comparison, Difference, Figure, Variant
from testbed.report.comparison_page import page
from testbed.scenario.units import format_ms

PAGE = "comparison.html"


def leave_page(folder: Path, compared: Comparison) -> Path:
    """Write the comparison's page into its folder. OSError."""
    path = folder / PAGE
    path.write_text(page(compared))
    return path


def show_comparison(console: Console, compared: Comparison, folder: str) -> None:
    """The whole of it: medians with the lowest and the highest run, and a sentence for each difference; of a
    grid, for what each factor does."""
    console.print()
    console.print(_indented(_table(compared)))
    if compared.effects:
        _show_effects(console, compared)
    else:
        for first, second in combinations(compared.variants, 2):
            pair = (first.label, second.label)
            _show_pair(console, [one for one in compared.differences if (one.first, one.second) == pair])
    for run in compared.runs:
        wrong = f"✗ {run.folder}: {run.outcome}; failed: {', '.join(run.failed_checks)}"
        if run.error is not None:
            wrong = f"✗ {run.folder}: the lab failed: {run.error}"
        if run.error is not None or run.outcome != "completed" or run.failed_checks:
            console.print(_indented(Text(wrong, style="red")))
    console.print(_indented(Text(f"\n{compared.method}", style="dim")))
    console.print(Text(f"\n  {folder}/comparison.json", style="dim"))


def _show_effects(console: Console, compared: Comparison) -> None:
    """What each factor does, a sentence each; what it does not, in one line."""
    nouns = {measure.key: measure.noun for measure in MEASURES}
    for factor in compared.factors:
        console.print()
        ours = [one for one in compared.effects if one.factor == factor]
        for one in ours:
            if one.real:
                console.print(_indented(Text(one.sentence)))
        alike = dict.fromkeys(nouns[one.figure] for one in ours if not one.real)
        if alike:
            told = f"{factor}: no difference that these runs show in {', '.join(alike)}"
            console.print(_indented(Text(told, style="dim")))


def _table(compared: Comparison) -> Table:
    """A column for each variant; for each figure its median, and from where to where the runs lie."""
    heading = "one run each" if compared.repeats == 1 else f"of {compared.repeats} runs"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(Text(heading, style="dim"), no_wrap=True)
    for variant in compared.variants:
        table.add_column(Text(variant.label), justify="right", overflow="fold")
    for measure in MEASURES:
        figures = [one.figures[measure.key] for one in compared.variants]
        spoiled = compared.workers > 1 and measure.is_time
        noun = f"{measure.noun} (spoiled)" if spoiled else measure.noun
        table.add_row(noun, *(_median(figure, measure.show) for figure in figures))
        ranges = [_range(figure, measure.show) for figure in figures]
        if any(ranges):
            table.add_row("  from, to", *ranges, style="dim")
        if measure.key == "blackout_ms":
            _add_parts(table, compared.variants)
    return table


def _add_parts(table: Table, variants: list[Variant]) -> None:
    """What each blackout was spent on, which differs from mode to mode: medians."""
    for part in merged([list(one.blackout_parts_ms) for one in variants]):
        figures = [one.blackout_parts_ms.get(part) for one in variants]
        table.add_row(f"  of it {part}", *(_median(figure, format_ms) for figure in figures), style="dim")


def merged(orders: list[list[str]]) -> list[str]:
    """All names once, the longest order as it is, what else there is after its forerunner."""
    found: list[str] = []
    for order in sorted(orders, key=len, reverse=True):
        place = 0
        for name in order:
            if name not in found:
                found.insert(place, name)
            place = found.index(name) + 1
    return found


def _median(figure: Figure | None, show: Callable[[float], str]) -> str:
    return "-" if figure is None or figure.median is None else show(figure.median)


def _range(figure: Figure, show: Callable[[float], str]) -> str:
    """The lowest and the highest run; nothing where they read the same. The unit stands once if it can."""
    if figure.low is None or figure.high is None:
        return ""
    low, high = show(figure.low), show(figure.high)
    number, _, unit = low.partition(" ")
    return "" if low == high else f"{number}-{high}" if high.endswith(f" {unit}") else f"{low}-{high}"


def _show_pair(console: Console, differences: list[Difference]) -> None:
    """What is real of a pair, a sentence each; what is not, in one line."""
    console.print()
    hints = [one for one in differences if not one.real and "not shown" in one.sentence]
    for one in differences:
        if one.real or one.interval is None:
            console.print(_indented(Text(one.sentence)))
        elif one in hints:
            console.print(_indented(Text(one.sentence, style="dim")))
    nouns = {measure.key: measure.noun for measure in MEASURES}
    alike = [
        nouns[one.figure]
        for one in differences
        if one.interval is not None and not one.real and one not in hints
    ]
    if alike:
        pair = f"{differences[0].first} and {differences[0].second}"
        told = f"{pair}: no difference that these runs show in {', '.join(alike)}"
        console.print(_indented(Text(told, style="dim")))


def _indented(what: Text | Table) -> Padding:
    return Padding(what, (0, 0, 0, 2), expand=False)
