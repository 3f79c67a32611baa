"""A figure that is not known for sure: its likely value, and from where to where it may lie. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.memory.dirty_curve import Side


@dataclass(frozen=True)
class Span:
    """`low` <= `likely` <= `high`."""

    low: float
    likely: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> Span:
        """The first of `values` is the likely one; the others stretch the span."""
        return cls(min(values), values[0], max(values))

    @classmethod
    def of(cls, values: Sequence[float]) -> Span:
        """The median of what was measured, and its quartiles. ValueError without a value."""
        ordered = sorted(values)
        if not ordered:
            raise ValueError("no value, no span")
        low, likely, high = (ordered[round((len(ordered) - 1) * share)] for share in (0.25, 0.5, 0.75))
        return cls(low, likely, high)

    @classmethod
    def exactly(cls, value: float) -> Span:
        return cls(value, value, value)

    def at(self, side: Side) -> float:
        return float(getattr(self, side))
