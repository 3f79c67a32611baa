"""The summary of a run, on a terminal and in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from testbed.measure.result import Predicted, Result, Span
from testbed.report.console import printer
from testbed.report.terminal import _print_hanging, show_summary
from testbed.scenario.units import format_size
from tests.unit.test_comparison import result
from tests.unit.test_outcome import made
from tests.unit.test_spans import clients, row

FEW = Span(low=1.0, likely=2.0, high=3.0)
FORETOLD = Predicted(
    basis="sampled", why=None, rounds=FEW, transferred_bytes=FEW, total_ms=FEW, blackout_ms=FEW,
    converges=True, sentence="", dirty_pages=[], error=None,
)  # fmt: skip
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


def shown(result: Result) -> str:
    file = io.StringIO()
    show_summary(Console(file=file, width=200, color_system=None), result, None)
    return file.getvalue()


def of_guests(*vms: str) -> Result:
    """A migration of each, the last with the longest blackout."""
    migrations = [
        made().model_copy(update={"vm": vm, "blackout_ms": 10.0 + number, "predicted": FORETOLD})
        for number, vm in enumerate(vms)
    ]
    return result(10.0 + len(vms) - 1).model_copy(update={"migrations": migrations})


def test_of_several_guests_each_figure_says_whose_it_is() -> None:
    text = shown(of_guests("vm1", "vm2"))
    assert "a blackout of 11 ms (the longest, vm2's)" in text
    assert re.findall(r"(RAM of \w+|foretold of \w+)", text) == [
        "RAM of vm1", "RAM of vm2", "foretold of vm1", "foretold of vm2",
    ]  # fmt: skip


def test_of_one_guest_its_name_is_left_out_and_what_crossed_is_summed() -> None:
    several = of_guests("vm1", "vm1", "vm1")
    crossed = 3 * several.migrations[0].ram.transferred_bytes
    text = shown(several)
    assert "a blackout of 12 ms (the longest)" in text
    assert f"{format_size(crossed)} crossed the wire in 3 migrations" in text
    assert "vm1" not in text
    assert text.count("foretold") == 1


def test_a_client_that_may_have_slept_through_a_wait_is_named() -> None:
    slept = clients(row(10, 6.0, asked_late_ms=95.0))
    assert "client1 asked up to 95 ms late" in shown(result(5.0).model_copy(update={"clients": slept}))


# ---- off a terminal


def test_what_goes_to_a_file_is_as_wide_as_the_widest_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    printer().print("x" * 110)
    assert capsys.readouterr().out == "x" * 110 + "\n"


def test_columns_decides_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    printer(stderr=True).print("x" * 110)
    assert [len(line) for line in capsys.readouterr().err.splitlines()] == [40, 40, 30]
