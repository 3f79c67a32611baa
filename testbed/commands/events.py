"""``testbed events``: what has happened in a lab that stands, and what happens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.commands.ending import finish
from testbed.commands.standing import Lab, answered, the_lab

if TYPE_CHECKING:
    from testbed.standing.registry import Entry


def events(
    name: Lab = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, until the lab goes down or Ctrl-C.")
    ] = False,
    now: Annotated[bool, typer.Option("--now", help="Only what comes from now on; follows.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="For a person: seconds since the first event, who, what.")
    ] = False,
) -> None:
    """Print a lab's events, a JSON object a line: every process's, on one clock (t_ns: CLOCK_MONOTONIC). In
    the order in which they were told; a process tells some at a time."""
    entry = the_lab(name)
    try:
        _print_events(entry, follow=follow or now, from_now=now, plain=plain)
    except KeyboardInterrupt:
        finish(0)  # that is how one stops following
    finish(0)


def _print_events(entry: Entry, *, follow: bool, from_now: bool, plain: bool) -> None:
    from testbed.standing.client import Conversation
    from testbed.standing.journal import FILE, read
    from testbed.standing.protocol import Message

    with (Path(entry.folder) / FILE).open("rb") as file:
        first_ns: int | None = None
        if plain:
            first = file.readline()
            first_ns = int(json.loads(first)["t_ns"]) if first.endswith(b"\n") else None
        position = -1

        def show(message: Message) -> None:
            nonlocal position, first_ns
            if position < 0:
                position = message["log"] if from_now else 0
            for event in read(file, position, message["log"]):
                if first_ns is None:
                    first_ns = event["t_ns"]
                print(_readable(event, first_ns) if plain else json.dumps(event, separators=(",", ":")))
            position = max(position, message["log"])
            sys.stdout.flush()  # whoever follows through a pipe wants to see it now

        class _Enough(Exception):
            """All that has happened is printed."""

        def show_once(message: Message) -> None:
            show(message)
            raise _Enough

        with answered(), Conversation.with_lab(entry.name) as lab:
            try:
                show(lab.ask({"do": "follow"}, None, show if follow else show_once))
            except _Enough:
                return


def _readable(event: dict[str, Any], first_ns: int) -> str:
    told = {key: value for key, value in event.items() if key not in ("t_ns", "source", "event")}
    fields = "  ".join(f"{key}={_short(value)}" for key, value in told.items())
    return f"{(event['t_ns'] - first_ns) / 1e9:11.6f}  {event['source']:<12} {event['event']:<18} {fields}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
