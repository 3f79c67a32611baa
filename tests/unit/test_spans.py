"""A life of clients, cut into spans and put together again."""

from __future__ import annotations

from typing import Any

from testbed.experiment.spans import span, together
from testbed.measure.result import Clients, Connection, Gap

NO_GAP = Gap(p50=None, p99=None, max=None)


def row(requests: int, wait: float | None, *, broken: str | None = None, **more: Any) -> Connection:
    return Connection(
        client="client1", probe="closed-loop", address="10.7.0.10", requests=requests, longest_wait_ms=wait,
        longest_wait_at_ms=None, baseline_wait_ms=1.0, retransmits=0, broken=broken, **more,
    )  # fmt: skip


def clients(*rows: Connection, **counts: int) -> Clients:
    names = [name for name, field in Clients.model_fields.items() if field.annotation is int]
    given = dict.fromkeys(names, 0) | {"connections": len(rows), "requests": sum(r.requests for r in rows)}
    return Clients(**(given | counts), gap_ms=NO_GAP, baseline_gap_ms=NO_GAP, each=list(rows))


FIRST = clients(row(10, 3.0, lost=1), row(5, None), broken=0)
SECOND = clients(row(25, 7.0, lost=1), row(9, 2.0, broken="reset"), broken=1, resets=1)
THIRD = clients(row(30, 1.0, lost=4), row(9, None, broken="reset"), broken=1, resets=1)


def test_a_span_has_what_is_new_in_it_and_its_own_waits() -> None:
    new = span(FIRST, SECOND)
    assert (new.requests, new.broken, new.resets, new.connections) == (19, 1, 1, 2)
    assert [one.requests for one in new.each] == [15, 4]
    assert [one.longest_wait_ms for one in new.each] == [7.0, 2.0]
    assert new.each[0].lost == 0


def test_what_was_broken_before_is_not_broken_again() -> None:
    new = span(SECOND, THIRD)
    assert (new.broken, new.resets) == (0, 0)
    assert [one.broken for one in new.each] == [None, None]
    assert new.each[0].lost == 3


def test_the_first_span_is_all_so_far() -> None:
    assert span(None, FIRST) == FIRST


def test_spans_together_are_the_whole() -> None:
    whole = together([FIRST, span(FIRST, SECOND), span(SECOND, THIRD)])
    assert (whole.requests, whole.broken, whole.connections) == (THIRD.requests, 1, 2)
    assert [one.requests for one in whole.each] == [30, 9]
    assert [one.longest_wait_ms for one in whole.each] == [7.0, 2.0]
    assert [one.broken for one in whole.each] == [None, "reset"]
    assert whole.each[0].lost == 4
    assert whole.gap_ms.max == 7.0
    late = [clients(row(1, 2.0, asked_late_ms=late_ms)) for late_ms in (3.0, 9.0, 4.0)]
    assert together(late).each[0].asked_late_ms == 9.0
    assert together([together([FIRST, span(FIRST, SECOND)]), span(SECOND, THIRD)]) == whole
