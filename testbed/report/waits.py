"""How a client's wait is shown: how tall, in what colour, the same in every picture on a terminal; and which
clients may have missed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from testbed.scenario.units import format_ms

_TALLER_MS = (0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 200.0)
_STYLES = ((3.0, "green"), (20.0, "yellow"), (199.0, "dark_orange"), (math.inf, "bold red"))
"""Up to so many ms. Red is what a lost frame costs: a retransmission takes 200 ms at least."""


def wait_level(wait_ns: int) -> int:
    """How tall a wait's bar is, 0 to 7."""
    return sum(wait_ns / 1e6 > least for least in _TALLER_MS)


def wait_style(wait_ns: int) -> str:
    return next(style for most_ms, style in _STYLES if wait_ns / 1e6 <= most_ms)


def short_ms(wait_ns: int) -> str:
    """A wait in eight columns at most, to a tenth of a millisecond."""
    ms = wait_ns / 1e6
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


class Asked(NamedTuple):
    """Of one row of a client: the longest that it waited, and how late it was at most to ask (ms); None where
    that is not known."""

    client: str
    waited_ms: float | None
    late_ms: float | None


def missed(rows: Iterable[Asked]) -> Iterator[str]:
    """A sentence for each client that may have slept through more than it has seen."""
    known = list(rows)
    for client in sorted({row.client for row in known}):
        late_ms = max(row.late_ms or 0.0 for row in known if row.client == client)
        if late_ms > max(row.waited_ms or 0.0 for row in known if row.client == client):
            yield (
                f"{client} asked up to {format_ms(late_ms)} late, for this machine was busy: it may have "
                f"missed a wait of that length"
            )
