"""The summary of a run, on a terminal and in a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from testbed.report.terminal import _print_hanging

LONG = "✓ " + ", ".join(f"check number {number}" for number in range(12))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_long_line_hangs_on_a_terminal_and_is_whole_in_a_pipe(is_terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=60, color_system=None)
    _print_hanging(console, Text(LONG))
    first, *others = file.getvalue().splitlines()
    assert first.startswith("  ✓ check number 0")
    if not is_terminal:
        assert (first, others) == (f"  {LONG}", [])
        return
    assert others
    assert all(line.startswith("    ") and len(line) <= 60 for line in others)
    assert " ".join(line.strip() for line in (first, *others)) == LONG
