"""How a client's wait is shown: how tall, in what colour. The same in every picture on a terminal."""

from __future__ import annotations

import math

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
