"""What clients saw in a part of their life, and in several parts together. Pure.

Clients count from their first request to their last. A lab that stands for hours has migrations in between,
and each of them is to be judged by what happened around it: so a life is cut into spans. Where one ends, the
clients sum up and let go of their samples (:meth:`testbed.clients.control.ClientControl.report`); waits are
then of the span alone, counts of all so far, and what the span has of them is a difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from testbed.experiment.outcome import gap
from testbed.measure.result import Clients, Connection

_STATE = ("connections",)
"""Numbers that are no counts: how many there are now."""
_ROW_COUNTS = ("requests", "retransmits", "lost", "duplicated", "reordered")
_ROW_WAITS = ("longest_wait_ms", "baseline_wait_ms", "asked_late_ms")


def span(before: Clients | None, now: Clients) -> Clients:
    """What is new in `now` since `before` (None: everything). A connection that was broken before is not
    broken again."""
    if before is None or len(before.each) != len(now.each):
        return now
    counts = {name: getattr(now, name) - getattr(before, name) for name in _counts(now)}
    rows = [_new_in(old, row) for old, row in zip(before.each, now.each, strict=True)]
    return now.model_copy(update={**counts, "each": rows})


def together(spans: Sequence[Clients]) -> Clients:
    """Several spans of the same clients as one, of at least one. Counts are summed, of waits it is the
    longest."""
    last = spans[-1]
    counts = {name: sum(getattr(one, name) for one in spans) for name in _counts(last)}
    same = [one for one in spans if len(one.each) == len(last.each)]
    rows = [_joined(parts) for parts in zip(*(one.each for one in same), strict=True)]
    gaps = {
        "gap_ms": gap(row.longest_wait_ms for row in rows),
        "baseline_gap_ms": gap(row.baseline_wait_ms for row in rows),
    }
    return last.model_copy(update={**counts, **gaps, "each": rows})


def _counts(clients: Clients) -> list[str]:
    return [name for name, value in clients if isinstance(value, int) and name not in _STATE]


def _new_in(old: Connection, row: Connection) -> Connection:
    counts = {
        name: now - was
        for name in _ROW_COUNTS
        if (now := getattr(row, name)) is not None and (was := getattr(old, name)) is not None
    }
    return row.model_copy(update={**counts, "broken": None if old.broken else row.broken})


def _joined(parts: Sequence[Connection]) -> Connection:
    worst = max(parts, key=lambda one: one.longest_wait_ms or 0.0)
    update: dict[str, object] = {
        name: sum(getattr(one, name) or 0 for one in parts)
        for name in _ROW_COUNTS
        if getattr(worst, name) is not None
    }
    for name in _ROW_WAITS:
        update[name] = max((w for one in parts if (w := getattr(one, name)) is not None), default=None)
    update["longest_wait_at_ms"] = worst.longest_wait_at_ms
    update["broken"] = next((one.broken for one in parts if one.broken), None)
    return parts[-1].model_copy(update=update)
