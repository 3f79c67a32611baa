"""The figures of a bench as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from testbed.experiment.bench import Figure


class Silence:
    """A witness that says nothing: printing costs time on the processors that are being measured."""

    def say(self, text: str) -> None: ...

    def migration(self, source: str, target: str, number: int, of: int, vm: str | None = None) -> None: ...

    def event(self, event: dict[str, Any]) -> None: ...


def show_figures(console: Console, figures: Sequence[Figure]) -> None:
    """One row a figure: median, spread, what was promised, and whether it holds."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("figure", "median", "from", "to", "promised", ""):
        table.add_column(name, justify="left" if name in ("figure", "") else "right")
    bench = ""
    for one in figures:
        if one.bench != bench:
            bench = one.bench
            table.add_row(f"[bold]{bench}[/bold]")
        promise = "" if one.limit is None else f"{'≤' if one.at_most else '≥'} {one.limit:g}"
        held = "" if one.limit is None else "[green]✓[/green]" if one.holds else "[red]✗[/red]"
        unit = f" {one.unit}" if one.unit else ""
        table.add_row(
            f"  {one.name}", f"{one.value:.4g}{unit}", f"{one.low:.4g}", f"{one.high:.4g}", promise, held
        )
    console.print(table)
