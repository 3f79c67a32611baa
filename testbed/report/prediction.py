"""A prediction for a person: the rounds that are to come, what they add up to, and a sentence."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from testbed.measure.result import Predicted
from testbed.migration.prediction import Course
from testbed.report.terminal import foretold_line, round_line

MOST_ROUNDS = 12


def show_prediction(console: Console, foretold: Predicted, course: Course) -> None:
    """The likely course round by round, then the figures with their spans."""
    console.print()
    for one in course.rounds[:MOST_ROUNDS]:
        console.print(Text(f"  {round_line(asdict(one))}"))
    if (left := len(course.rounds) - MOST_ROUNDS) > 0:
        console.print(Text(f"  and {left} rounds more", style="dim"))
    if not course.gives_up:
        console.print(Text(f"  pause     {course.final_pages:>7} pages"))
    style = "bold red" if foretold.converges is False else "bold green"
    console.print(Text(f"\n{foretold.sentence}", style=style))
    console.print(Text(f"  {foretold_line(foretold)}"))
    if foretold.why is not None:
        console.print(Text(f"  from the options only: {foretold.why}", style="yellow"))
    console.print()
