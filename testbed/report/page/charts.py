"""Pictures that need no script: inline SVG, coloured by the page's style, with a title for who cannot see
them.

Pure. Every function returns one ``<svg>`` element as text, or "" where there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from testbed.scenario.units import format_ms

WIDTH = 760
SHORTEST_MS = 0.01
"""Waits below it stand at the left edge of their picture."""
PARTS = 10
"""So many colours of parts the style has."""


@dataclass(frozen=True)
class Strip:
    """One row of the waits' picture: what a client's probe waited normally (percentiles, ms), and the longest
    wait of each of its connections during migrations (ms)."""

    label: str
    client: int
    normal: Mapping[str, float]
    during: Sequence[float]


def blackout_bar(parts: Mapping[str, float], total_ms: float) -> str:
    """The blackout as one bar, cut into its parts, with a legend that names each."""
    if not parts or total_ms <= 0:
        return ""
    at, pieces = 0.0, []
    for number, (name, ms) in enumerate(parts.items()):
        width = WIDTH * ms / total_ms
        title = f"<title>{escape(name)}: {format_ms(ms)}</title>"
        pieces.append(
            f'<rect class="part{number % PARTS}" x="{at:.2f}" y="0" width="{max(width - 1, 0.4):.2f}" '
            f'height="44" rx="2">{title}</rect>'
        )
        if width > 66:
            pieces.append(f'<text class="on-part" x="{at + width / 2:.1f}" y="19">{escape(name)}</text>')
            pieces.append(
                f'<text class="on-part strong" x="{at + width / 2:.1f}" y="34">{format_ms(ms)}</text>'
            )
        at += width
    told = ", ".join(f"{name} {format_ms(ms)}" for name, ms in parts.items())
    return _svg(44, f"The blackout of {format_ms(total_ms)} in its parts: {told}", pieces)


def rounds_chart(rounds: Sequence[Mapping[str, float]], bandwidth: float | None) -> str:
    """For each round how fast pages crossed, and how fast the guest dirtied others meanwhile (bit/s), on a
    logarithmic axis. A round is as wide as it lasted, but never too narrow to see."""
    if not rounds:
        return ""
    height, left, bottom = 230, 84, 200
    rates = [one["rate"] for one in rounds if one["rate"] > 0] + [
        one["dirty"] for one in rounds if one["dirty"] > 0
    ]
    if bandwidth:
        rates.append(bandwidth)
    if not rates:
        return ""
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)) + 1e-9)
    high = max(high, low + 1)

    def y(rate: float) -> float:
        return bottom - (math.log10(rate) - low) / (high - low) * (bottom - 14)

    pieces = []
    for power in range(low, high + 1):
        pieces.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH}" y1="{y(10**power):.1f}" y2="{y(10**power):.1f}"/>'
        )
        pieces.append(
            f'<text class="axis end" x="{left - 8}" y="{y(10**power) + 4:.1f}">{_bits(10**power)}</text>'
        )
    room, total = WIDTH - left, sum(one["ms"] for one in rounds)
    least = min(58.0, room / len(rounds))
    shares = [least + (room - least * len(rounds)) * one["ms"] / max(total, 1e-9) for one in rounds]
    at = float(left)
    for one, share in zip(rounds, shares, strict=True):
        bar = max((share - 8) / 2, 1.5)
        for offset, key, kind in ((4.0, "rate", "copied"), (4.0 + bar, "dirty", "dirtied")):
            if one[key] > 0:
                top = y(one[key])
                title = f"<title>round {one['number']:.0f}: {kind} {_bits(one[key])}</title>"
                pieces.append(
                    f'<rect class="{kind}" x="{at + offset:.1f}" y="{top:.1f}" width="{bar:.1f}" '
                    f'height="{max(bottom - top, 1):.1f}">{title}</rect>'
                )
        if share >= 20:
            pieces.append(
                f'<text class="axis mid" x="{at + share / 2:.1f}" y="{bottom + 16}">'
                f"{one['number']:.0f}</text>"
            )
        if share >= 40:
            ms = format_ms(one["ms"])
            pieces.append(
                f'<text class="axis mid dim" x="{at + share / 2:.1f}" y="{bottom + 29}">{ms}</text>'
            )
        at += share
    if bandwidth:
        pieces.append(
            f'<line class="limit" x1="{left}" x2="{WIDTH}" y1="{y(bandwidth):.1f}" y2="{y(bandwidth):.1f}"/>'
            f'<text class="axis end" x="{WIDTH - 4}" y="{y(bandwidth) - 5:.1f}">'
            f"the wire: {_bits(bandwidth)}</text>"
        )
    told = "; ".join(
        f"round {one['number']:.0f} {_bits(one['rate'])}, dirtied {_bits(one['dirty'])}"
        for one in rounds[:12]
    )
    return _svg(
        height, f"How fast each round copied, and how fast the guest dirtied pages meanwhile: {told}", pieces
    )


def wait_strips(strips: Sequence[Strip]) -> str:
    """A row for each client's probe on one logarithmic axis of time: grey what it waits normally (median to
    99th percentile thick, to its longest thin), a dot for the longest wait of each connection in a
    migration."""
    strips = [one for one in strips if one.normal or one.during]
    values = [value for one in strips for value in (*one.normal.values(), *one.during) if value > 0]
    if not values:
        return ""
    left, row, top = 190, 24, 8
    bottom = top + row * len(strips)
    low, high = (
        math.log10(max(min(values), SHORTEST_MS)) - 0.05,
        math.log10(max(*values, 10 * SHORTEST_MS)) + 0.08,
    )
    ticks = _ticks(low, high)

    def x(ms: float) -> float:
        return left + (math.log10(max(ms, 10**low)) - low) / (high - low) * (WIDTH - left - 12)

    pieces = []
    for tick in ticks:
        pieces.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        pieces.append(f'<text class="axis mid" x="{x(tick):.1f}" y="{bottom + 16}">{format_ms(tick)}</text>')
    for number, one in enumerate(strips):
        middle = top + row * number + row / 2
        pieces.append(
            f'<text class="axis end" x="{left - 10}" y="{middle + 4:.1f}">{escape(one.label)}</text>'
        )
        pieces += _normal(one.normal, middle, x)
        for ms in one.during:
            title = f"<title>{escape(one.label)}: longest wait of a connection {format_ms(ms)}</title>"
            pieces.append(
                f'<circle class="client{one.client % 8}" cx="{x(ms):.1f}" cy="{middle:.1f}" r="4.5">'
                f"{title}</circle>"
            )
    longest = max((max(one.during) for one in strips if one.during), default=0.0)
    return _svg(
        bottom + 24,
        f"Waits of each client, normally and in a migration; the longest is {format_ms(longest)}",
        pieces,
    )


def _normal(normal: Mapping[str, float], middle: float, x: Callable[[float], float]) -> list[str]:
    if "max" not in normal:
        return []
    pieces = []
    if "p50" in normal and "p99" in normal:
        begin, end, most = (x(normal[key]) for key in ("p50", "p99", "max"))
        title = f"normally: median {format_ms(normal['p50'])}, 99th percentile {format_ms(normal['p99'])}"
        pieces.append(
            f'<line class="normal thin" x1="{end:.1f}" x2="{most:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        )
        pieces.append(
            f'<rect class="normal" x="{begin:.1f}" y="{middle - 5:.1f}" width="{max(end - begin, 2):.1f}" '
            f'height="10" rx="2"><title>{title}</title></rect>'
        )
    at = x(normal["max"])
    title = f"<title>normally at most {format_ms(normal['max'])}</title>"
    pieces.append(
        f'<line class="floor" x1="{at:.1f}" x2="{at:.1f}" y1="{middle - 8:.1f}" y2="{middle + 8:.1f}">'
        f"{title}</line>"
    )
    return pieces


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten, as many as have room."""
    steps = (1, 2, 5) if high - low < 3 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [
        step * 10.0**power
        for power in powers
        for step in steps
        if low <= math.log10(step * 10.0**power) <= high
    ]


def _bits(rate: float) -> str:
    for unit, factor in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if rate >= factor:
            return f"{rate / factor:.3g} {unit}"
    return f"{rate:.3g} bit/s"


def _svg(height: float, title: str, pieces: Sequence[str]) -> str:
    return (
        f'<svg class="chart{" slim" if height < 60 else ""}" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">'
        f"{''.join(pieces)}</svg>"
    )
