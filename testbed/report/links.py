"""Links under conditions, for a person: what was asked of each direction, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from testbed.scenario.units import format_ms, format_rate

DIRECTIONS = {"forward": "from node", "backward": "to node"}
_COUNTS = {"passed_frames": "frames passed", "lost": "lost", "queue_dropped": "for whom the queue was full"}
_SHARES = {"loss": "lost", "duplicate": "doubled", "reorder": "overtaking"}


def show_links(console: Console, links: Iterable[Mapping[str, Any]]) -> None:
    """`links` as :class:`testbed.measure.result.LinkFigures` says them in JSON."""
    for link in links:
        by = "" if link["backend"] == "none" else f", by {link['backend']}"
        console.print(Text(f"{link['name']}{by}", style="bold").append(f"  {link['why']}", style="dim"))
        for key, words in DIRECTIONS.items():
            told = link[key]
            console.print(Text(f"  {words:<10} {_asked(told['asked'])}"))
            if figures := _figures(told):
                console.print(Text(f"  {'':<10} {figures}", style="dim"))


def _figures(told: Mapping[str, Any]) -> str:
    """What is known of a direction; nothing of one in whose way nothing is."""
    words = [f"{told[key]} {name}" for key, name in _COUNTS.items() if told[key] is not None]
    if told["delay_p50_ms"] is not None:
        words.append(f"delay p50 {format_ms(told['delay_p50_ms'])}, p99 {format_ms(told['delay_p99_ms'])}")
    return ", ".join(words)


def _asked(asked: Mapping[str, Any]) -> str:
    words = []
    if asked["rate_mbit"] is not None:
        words.append(format_rate(asked["rate_mbit"] * 1e6))
    if asked["delay_ms"]:
        jitter = f" ± {format_ms(asked['jitter_ms'])} {asked['distribution']}" if asked["jitter_ms"] else ""
        words.append(f"{format_ms(asked['delay_ms'])}{jitter}")
    words += [f"{100 * asked[key]:.3g} % {name}" for key, name in _SHARES.items() if asked[key]]
    if asked["queue_frames"] is not None:
        words.append(f"queue of {asked['queue_frames']}")
    return ", ".join(words) or "nothing"
