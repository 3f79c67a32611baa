"""What of a run's events is marked in its captures: the moments at which the network's story turns. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from netns.capture_file import Mark

MARKED = {
    "paused": "pause: the guest stands still at {source}",
    "state-saved": "saved: all of the guest lies on the LUN",
    "dismounted": "dismount: {source} has let go of the LUN",
    "mounted": "mount: {source} has the LUN",
    "committed": "commit: {source} has given the guest away for good",
    "announced": "announcement: {source} tells the network that the guest is here",
    "frames-released": "release: {source} has given the guest the {frames} frames that were held",
    "resumed": "resume: the guest runs at {source}",
}
"""By the name of the mark in the trace."""


def marks(events: Iterable[dict[str, Any]]) -> list[Mark]:
    """The marks that `events` of any order come to, in the order of their times."""
    found = [Mark(event["t_ns"], text) for event in events if (text := _text(event)) is not None]
    return sorted(found, key=lambda mark: mark.t_ns)


def _text(event: dict[str, Any]) -> str | None:
    known = {"frames": 0} | event
    guest = f"{event['vm']}: " if "vm" in event else ""
    match event["event"]:
        case "mark" if event["name"] in MARKED:
            return guest + MARKED[event["name"]].format(**known)
        case "announced":
            return guest + MARKED["announced"].format(**known)
        case "rolled-back":
            return f"{guest}rolled back: the guest goes on at {event['source']}: {event['reason']}"
    return None
