"""Clients that are wrong in a known way. A calibration must find it out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from testbed.clients import closed_loop, stream
from testbed.clients import main as right
from testbed.clients.integrity import StreamChecker

AHEAD_NS = 20_000_000


def ahead(argument: dict[str, Any], fds: list[int]) -> int:
    """Its probe's clock is 20 ms ahead of everybody else's."""
    clock: Callable[[], int] = lambda: time.monotonic_ns() + AHEAD_NS  # noqa: E731
    stream.monotonic_ns = closed_loop.monotonic_ns = clock
    return right.main(argument, fds)


def blind(argument: dict[str, Any], fds: list[int]) -> int:
    """Counts what comes, and does not look at it."""
    StreamChecker.feed = _take  # type: ignore[method-assign]
    return right.main(argument, fds)


def _take(checker: StreamChecker, data: bytes, end: int | None = None) -> None:
    checker.position = checker.position + len(data) if end is None else end
