"""A sweep of faults for a person: a line for each as it is made, and a table of them all."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from testbed.experiment.sweep import Cell
from testbed.migration.phases import Phase

MARKS = {"completed": "→", "rolled-back": "←", "restarted": "↻", "failed": "✗"}
NAMED_PHASES = 4
"""So many phases fit beside the kinds by their names; more of them get numbers."""
LEGEND = (
    "→ runs at the target             ← runs on at the source",
    "↻ died, booted from its disk     ✗ not as it must be",
)


def show_cell(console: Console, cell: Cell, number: int, of: int) -> None:
    """One line, as soon as it is known."""
    where = " and ".join(cell.owners) or "nowhere"
    what = f"{cell.fault:<36} {cell.outcome:<12} {where:<7}"
    text = Text(f"  {number:>3}/{of}  {what} {cell.duration_s:5.1f} s")
    if cell.wrong:
        text.append(f"  ✗ {'; '.join(cell.wrong)}", style="red")
    console.print(text)


def show_faults(console: Console, cells: Sequence[Cell], folder: str) -> None:
    """The matrix: kinds down, phases across; then the sums, and each cell that is not as it must be."""
    by_place = {tuple(cell.fault.split(":")): cell for cell in cells}
    phases = [phase.value for phase in Phase if any(phase.value == place[0] for place in by_place)]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("  fault", no_wrap=True)
    heads = phases if len(phases) <= NAMED_PHASES else [str(number) for number in range(1, len(phases) + 1)]
    for head in heads:
        table.add_column(head, justify="center", no_wrap=True, min_width=3)
    for kind in dict.fromkeys(place[1] for place in by_place):
        table.add_row(f"  {kind}", *(_mark(by_place.get((phase, kind))) for phase in phases))
    console.print()
    console.print(table)
    legend = list(LEGEND)
    if heads is not phases:
        numbered = [f"{number:>2} {phase:<12}" for number, phase in zip(heads, phases, strict=True)]
        legend = ["".join(numbered[at : at + 5]) for at in range(0, len(numbered), 5)] + legend
    console.print()
    for line in legend:
        console.print(Text(f"  {line}", style="dim"))
    console.print()
    alive = [cell for cell in cells if cell.outcome != "restarted"]
    for line in (
        f"{len(cells)} faults: two owners in {sum(len(cell.owners) > 1 for cell in cells)}, "
        f"writes or bytes lost in {sum(any('lost' in one for one in cell.wrong) for cell in cells)}",
        f"connections of a guest that lived broken: {sum(cell.broken for cell in alive)}",
        f"next migration clean: {sum(cell.clean for cell in cells)} of {len(cells)}",
    ):
        console.print(Text(f"  {line}"))
    for cell in cells:
        if cell.wrong:
            console.print(Text(f"  ✗ {cell.fault}: {'; '.join(cell.wrong)}", style="red"))
    console.print(Text(f"\n  {folder}/faults.json", style="dim"))


def _mark(cell: Cell | None) -> Text:
    if cell is None:
        return Text("")
    return Text("✗", style="red") if cell.wrong else Text(MARKS[cell.outcome], style="green")
