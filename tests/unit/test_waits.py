"""Which clients may have missed a wait."""

from __future__ import annotations

from testbed.report.page import words
from testbed.report.waits import Asked, missed


def test_a_client_that_slept_longer_than_it_waited_is_named() -> None:
    """In a blackout of 100 ms, and no wait of that length is among its own."""
    (line,) = missed([Asked("client1", 6.0, 95.0), Asked("client1", 5.8, 95.0), Asked("client2", 9.0, 1.0)])
    assert line.startswith("client1 asked up to 95 ms late")
    assert list(missed([Asked("client1", 100.0, 95.0), Asked("client1", 1.0, None)])) == []
    assert list(missed([Asked("client1", None, None), Asked("client1", None, 0.0)])) == []


def test_the_page_says_it_in_its_verdict() -> None:
    rows = [{"client": "client1", "longest_wait_ms": 6.0, "asked_late_ms": 95.0}]
    result = {"outcome": "completed", "checks": [], "clients": {"each": rows, "gap_ms": {"max": 6.0}}}
    text, passed = words.verdict(result)
    assert passed
    assert text.endswith("Client1 asked up to 95 ms late, for this machine was busy: it may have missed a "
                         "wait of that length.")  # fmt: skip
