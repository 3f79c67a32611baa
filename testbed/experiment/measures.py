"""What a comparison compares: each figure of a run, how people call it, and how they write it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from testbed.measure.result import Result
from testbed.scenario.units import format_ms, format_size


@dataclass(frozen=True)
class Measure:
    """What is compared: `of` takes it from a run's result, `show` writes it for people, `told` says by how
    much it is smaller, `more` and `less` what makes it greater or smaller. A count may be zero and is
    compared by difference, everything else by ratio. `is_time`: it depends on how busy the machine is.
    """

    key: str
    noun: str
    told: str
    more: str
    less: str
    show: Callable[[float], str]
    of: Callable[[Result], float | None]
    is_count: bool = False
    is_time: bool = False


def _count(value: float) -> str:
    return f"{value:,.10g}"


def _bytes(value: float) -> str:
    return format_size(round(value))


def _time(key: str, noun: str, whose: str, of: Callable[[Result], float | None]) -> Measure:
    return Measure(
        key,
        noun,
        f"{{smaller}}'s {whose} is {{by}} shorter than {{larger}}'s",
        f"makes the {whose} {{by}} longer",
        f"makes the {whose} {{by}} shorter",
        format_ms,
        of,
        is_time=True,
    )


MEASURES = (
    _time("blackout_ms", "blackout", "blackout", lambda run: run.blackout_ms),
    _time("longest_wait_ms", "longest wait", "clients' longest wait", lambda run: run.clients.gap_ms.max),
    _time("total_ms", "total time", "total time", lambda run: run.total_ms),
    Measure(
        "moved_bytes",
        "RAM moved",
        "{smaller} moves {by} less RAM than {larger}",
        "moves {by} more RAM",
        "moves {by} less RAM",
        _bytes,
        lambda run: run.ram.transferred_bytes,
    ),
    Measure(
        "retransmits",
        "retransmits",
        "{smaller} has {by} fewer retransmits than {larger}",
        "costs {by} more retransmits",
        "saves {by} retransmits",
        _count,
        lambda run: run.clients.retransmits,
        is_count=True,
    ),
    Measure(
        "broken",
        "broken connections",
        "{smaller} has {by} fewer broken connections than {larger}",
        "breaks {by} more connections",
        "breaks {by} fewer connections",
        _count,
        lambda run: run.clients.broken + run.clients.resets + run.clients.failed_connects,
        is_count=True,
    ),
)
"""In the order in which a person wants to know. `broken` counts resets and failed connects too."""
