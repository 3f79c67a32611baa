"""The summary of a run, on a terminal and in a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from testbed.report.terminal import _kept_from_asking, _print_hanging
from tests.unit.test_spans import row

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


def test_a_client_that_slept_longer_than_it_waited_is_named() -> None:
    """In a blackout of 100 ms, and no wait of that length is among its own."""
    rows = [row(10, 6.0, asked_late_ms=95.0), row(10, 5.8, asked_late_ms=95.0)]
    (line,) = _kept_from_asking(rows)
    assert line.startswith("client1 asked up to 95 ms late")
    assert list(_kept_from_asking([row(10, 100.0, asked_late_ms=95.0), row(10, 1.0)])) == []
    assert list(_kept_from_asking([row(10, None), row(10, None, asked_late_ms=None)])) == []
