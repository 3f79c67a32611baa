"""A scenario's own checks, and what it waives."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.experiment.thresholds import figures, held, waived
from testbed.measure.result import Check, Result
from testbed.scenario.files import parse

DOCUMENT: dict[str, Any] = {
    "blackout_ms": 4.5,
    "outcome": "completed",
    "clients": {"gap_ms": {"max": 12.0, "p50": None}, "broken": 0},
    "ram": {"bytes": 1 << 20, "verified": True},
    "migrations": [{"blackout_ms": 4.5}, {"blackout_ms": 3.0}, {"blackout_ms": None}],
}


class Document(Result):
    """A result of which only its figures matter here."""

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return DOCUMENT


RESULT = Document.model_construct()


def verdict(check: str) -> tuple[bool, str, str]:
    (made,) = held(parse(f"[[check]]\n{check}".encode(), "f").checks, RESULT)
    return made.passed, made.name, made.detail


@pytest.mark.parametrize(
    ("check", "passed", "name", "detail"),
    [
        ("figure='blackout_ms'\nat_most=5", True, "blackout_ms ≤ 5 ms", "4.5 ms"),
        ("figure='blackout_ms'\nat_most='4ms'", False, "blackout_ms ≤ 4 ms", "blackout_ms is 4.5 ms"),
        (
            "figure='blackout_ms'\nat_least='1ms'\nat_most='0.005s'",
            True,
            "blackout_ms ≤ 5 ms and ≥ 1 ms",
            "4.5 ms",
        ),
        ("figure='clients.broken'\nequals=0", True, "clients.broken = 0", "0"),
        ("figure='outcome'\nequals='completed'", True, "outcome = completed", "completed"),
        ("figure='ram.verified'\nequals=false", False, "ram.verified = False", "ram.verified is True"),
        ("figure='ram.bytes'\nequals='1MiB'", True, "ram.bytes = 1048576 bytes", "1048576 bytes"),
        (
            "figure='clients.gap_ms.p50'\nat_most=1",
            False,
            "clients.gap_ms.p50 ≤ 1 ms",
            "clients.gap_ms.p50 is not known",
        ),
        ("figure='migrations.1.blackout_ms'\nat_most=3", True, "migrations.1.blackout_ms ≤ 3 ms", "3 ms"),
        ("figure='migrations.-2.blackout_ms'\nat_most=3", True, "migrations.-2.blackout_ms ≤ 3 ms", "3 ms"),
        (
            "figure='migrations.7.blackout_ms'\nat_most=3",
            False,
            "migrations.7.blackout_ms ≤ 3 ms",
            "the result has no such figure",
        ),
        (
            "figure='migrations.*.blackout_ms'\nat_most=4\nwhy='Slow.'",
            False,
            "migrations.*.blackout_ms ≤ 4 ms",
            "migrations.0.blackout_ms is 4.5 ms, and 1 more of 3; Slow.",
        ),
    ],
)
def test_a_check_is_held_against_the_result(check: str, passed: bool, name: str, detail: str) -> None:
    assert verdict(check) == (passed, name, detail)


def test_every_figure_of_a_list_is_found() -> None:
    assert [path for path, _ in figures(DOCUMENT, "migrations.*.blackout_ms")] == [
        "migrations.0.blackout_ms",
        "migrations.1.blackout_ms",
        "migrations.2.blackout_ms",
    ]


def test_what_is_waived_has_passed_and_says_whether_it_failed() -> None:
    checks = [
        Check(name="migrated", passed=False, detail="0 of 1"),
        Check(name="no reset", passed=True, detail="none"),
        Check(name="verified", passed=False, detail="0 of 1"),
    ]
    shown, held_all_the_same, other = waived(checks, ["migrated", "no reset"])
    assert (shown.passed, shown.waived, shown.detail) == (
        True,
        True,
        "0 of 1 (waived, for this is what is shown)",
    )
    assert held_all_the_same.detail == "none (waived, and yet it held)"
    assert other == checks[2]
