"""The findings as a table that fits a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from testbed.doctor.examination import Finding, missing

TITLES = {"needed": "needed", "optional": "better with", "tool": "tools, for more"}


def show(console: Console, findings: Sequence[Finding]) -> None:
    """A row each: whether it is there, and what is lost without it; where it is missing, also why it is said
    to be and how to get it. Then the verdict.
    """
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("feature", no_wrap=True)
    table.add_column("without it one loses")
    group = ""
    for one in findings:
        if one.group != group:
            group = one.group
            table.add_row("", Text(TITLES[group], style="bold"), "")
        table.add_row(_mark(one), one.name, _words(one))
    console.print(table)
    if not missing(findings):
        console.print(Text("\nThis machine can run testbed demo.", style="bold green"))


def _mark(one: Finding) -> Text:
    if one.there:
        return Text("yes", style="green")
    if one.there is None:
        return Text("?", style="dim")
    return Text("NO", style="bold red") if one.group == "needed" else Text("no", style="yellow")


def _words(one: Finding) -> Text:
    words = Text(one.lost, style="dim" if one.there else "")
    if one.there is False:
        words.append(f"\nhere: {one.detail}", style="yellow")
        words.append(f"\nto get it: {one.remedy}")
    return words
