"""Pictures of a comparison's figures as SVG text: each run a dot, medians as bars, and how runs are spread.

Colours come from the page's style sheet (classes v0, v1, ...), so the pictures are right in light and dark
and in print. Nothing is loaded from anywhere, and nothing but arithmetic is needed to draw them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 720, 210, 24, 30, 8, 34
HEIGHT_OF_STEPS = 200
LOG_FROM = 30.0
"""From this ratio of the greatest to the least value on, the axis is logarithmic."""
COLOURS = 8
LETTERS_OF_A_LABEL = 30


@dataclass(frozen=True)
class Line:
    """One variant: its label and a value for each run."""

    label: str
    values: Sequence[float]


class Axis:
    """From values to places on the picture."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        self.is_log = low > 0 and high / low >= LOG_FROM
        if self.is_log:
            self._low, self._high = math.log10(low) - 0.05, math.log10(high) + 0.05
        else:
            room = (high - low) * 0.06 or abs(high) * 0.5 or 1.0
            self._low, self._high = max(low - room, 0.0) if low >= 0 else low - room, high + room

    def at(self, value: float) -> float:
        place = math.log10(value) if self.is_log else value
        return LEFT + (place - self._low) / (self._high - self._low) * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[float]:
        """Round values, from two to nine of them."""
        if self.is_log:
            first, last = math.ceil(self._low), math.floor(self._high)
            decades = [10.0**power for power in range(first, last + 1)]
            return decades if len(decades) > 1 else [10**self._low * 1.2, 10**self._high / 1.2]
        step = 10 ** math.floor(math.log10(self._high - self._low))
        step = next(
            size for size in (step / 5, step / 2, step, step * 2) if (self._high - self._low) / size <= 8
        )
        return [
            number * step for number in range(math.ceil(self._low / step), math.floor(self._high / step) + 1)
        ]


def strip(noun: str, lines: Sequence[Line], show: Callable[[float], str]) -> str:
    """Each run a dot in its variant's row, the median a bar. Empty where no run has the figure."""
    known = [value for line in lines for value in line.values]
    if not known:
        return ""
    axis, height = Axis(known), TOP + ROW * len(lines) + BOTTOM
    parts = [_open(f"{noun}, each run a dot", height), *_axis(axis, height, show)]
    for number, line in enumerate(lines):
        y = TOP + ROW * number + ROW / 2
        colour = f"v{number % COLOURS}"
        parts.append(
            f'<text class="label" x="{LEFT - 10}" y="{y + 4:.1f}">{escape(_short(line.label))}</text>'
        )
        for run, value in enumerate(line.values):
            shift = ((run * 7) % 5 - 2) * ROW / 14  # so that equal runs do not hide each other
            told = f"{escape(line.label)}: {show(value)}"
            parts.append(
                f'<circle class="dot {colour}" cx="{axis.at(value):.1f}" cy="{y + shift:.1f}" r="4">'
                f"<title>{told}</title></circle>"
            )
        if line.values:
            x = axis.at(_median(line.values))
            place = f'x1="{x:.1f}" x2="{x:.1f}" y1="{y - 11:.1f}" y2="{y + 11:.1f}"'
            parts.append(f'<line class="median {colour}" {place}/>')
    return "".join([*parts, "</svg>"])


def steps(noun: str, lines: Sequence[Line], show: Callable[[float], str]) -> str:
    """The share of runs at or below each value, a staircase for each variant (an empirical distribution)."""
    known = [value for line in lines for value in line.values]
    if not known:
        return ""
    axis, height = Axis(known), TOP + HEIGHT_OF_STEPS + BOTTOM
    parts = [_open(f"{noun}: the share of runs at or below", height), *_axis(axis, height, show)]
    for share in (0.0, 0.5, 1.0):
        y = _share_at(share)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="label" x="{LEFT - 10}" y="{y + 4:.1f}">{share:.0%} of the runs</text>')
    for number, line in enumerate(lines):
        ordered = sorted(line.values)
        points = [f"{LEFT},{_share_at(0):.1f}"]
        for rank, value in enumerate(ordered):
            x = axis.at(value)
            points += [f"{x:.1f},{_share_at(rank / len(ordered)):.1f}"]
            points += [f"{x:.1f},{_share_at((rank + 1) / len(ordered)):.1f}"]
        if ordered:
            points.append(f"{WIDTH - RIGHT},{_share_at(1):.1f}")
            drawn = " ".join(points)
            parts.append(
                f'<polyline class="steps v{number % COLOURS}" points="{drawn}">'
                f"<title>{escape(line.label)}</title></polyline>"
            )
    return "".join([*parts, "</svg>"])


def _share_at(share: float) -> float:
    return TOP + HEIGHT_OF_STEPS * (1 - share)


def _open(title: str, height: float) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title>"
    )


def _axis(axis: Axis, height: float, show: Callable[[float], str]) -> list[str]:
    y = height - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>']
    for tick in axis.ticks():
        x = axis.at(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 18}">{escape(show(tick))}</text>')
    if axis.is_log:
        parts.append(f'<text class="label" x="{LEFT - 10}" y="{y + 18}">logarithmic</text>')
    return parts


def _short(label: str) -> str:
    return label if len(label) <= LETTERS_OF_A_LABEL else f"{label[: LETTERS_OF_A_LABEL - 1]}…"


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
