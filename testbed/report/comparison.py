"""A comparison for a person: a table with a column for each variant, and what differs, in sentences."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from testbed.measure.comparison import Comparison, Difference, Figure, Variant
from testbed.scenario.comparison import MEASURES
from testbed.scenario.units import format_ms


def show_comparison(console: Console, compared: Comparison, folder: str) -> None:
    """The whole of it: medians with the lowest and the highest run, and a sentence for each difference."""
    console.print()
    console.print(Padding(_table(compared), (0, 0, 0, 2)))
    for first, second in combinations(compared.variants, 2):
        pair = (first.label, second.label)
        _show_pair(console, [one for one in compared.differences if (one.first, one.second) == pair])
    for run in compared.runs:
        if run.outcome != "completed" or run.failed_checks:
            wrong = f"  ✗ {run.folder}: {run.outcome}; failed: {', '.join(run.failed_checks) or 'none'}"
            console.print(Text(wrong, style="red"))
    console.print(Text(f"\n  {folder}/comparison.json", style="dim"))


def _table(compared: Comparison) -> Table:
    heading = "one run each" if compared.repeats == 1 else f"of {compared.repeats} runs"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(Text(heading, style="dim"))
    for variant in compared.variants:
        table.add_column(Text(variant.label), justify="right", overflow="fold")
    for measure in MEASURES:
        figures = [one.figures[measure.key] for one in compared.variants]
        table.add_row(measure.noun, *(_cell(figure, measure.show) for figure in figures))
        if measure.key == "blackout_ms":
            _add_parts(table, compared.variants)
    return table


def _add_parts(table: Table, variants: list[Variant]) -> None:
    """What each blackout was spent on, which differs from mode to mode: medians."""
    for part in dict.fromkeys(name for one in variants for name in one.blackout_parts_ms):
        figures = [one.blackout_parts_ms.get(part) for one in variants]
        medians = [None if figure is None else figure.median for figure in figures]
        cells = ["-" if median is None else format_ms(median) for median in medians]
        table.add_row(f"  {part}", *cells, style="dim")


def _cell(figure: Figure, show: Callable[[float], str]) -> str:
    """The median and, of several runs that differ, the range."""
    if figure.median is None or figure.low is None or figure.high is None:
        return "-"
    if show(figure.low) == show(figure.high):
        return show(figure.median)
    low, low_unit = _parted(show(figure.low))
    high, high_unit = _parted(show(figure.high))
    spread = f"{low}-{high}" if low_unit == high_unit else f"{low} {low_unit}-{high} {high_unit}"
    return f"{show(figure.median)} ({spread})"


def _parted(shown: str) -> tuple[str, str]:
    number, _, unit = shown.partition(" ")
    return number, unit


def _show_pair(console: Console, differences: list[Difference]) -> None:
    """What is real of a pair, a sentence each; what is not, in one line."""
    console.print()
    for one in differences:
        if one.real or one.interval is None:
            console.print(Text(f"  {one.sentence}"))
    nouns = {measure.key: measure.noun for measure in MEASURES}
    alike = [nouns[one.figure] for one in differences if one.interval is not None and not one.real]
    if alike:
        pair = f"{differences[0].first} and {differences[0].second}"
        console.print(
            Text(f"  {pair}: no difference that these runs show in {', '.join(alike)}", style="dim")
        )
