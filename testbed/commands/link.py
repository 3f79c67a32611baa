"""``testbed link`` and ``testbed capture``: the links of a lab that stands, while traffic flows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.commands.ending import PASSED, finish, wrong_request
from testbed.commands.standing import Lab, answered, link_names, the_lab
from testbed.scenario.options import OptionError
from testbed.scenario.pcap import DEFAULT_LIMIT, Pcap

if TYPE_CHECKING:
    from testbed.standing.protocol import Message

link = typer.Typer(
    name="link", help="The conditions of links, in a lab that stands: set, show, reset", no_args_is_help=True
)

Link = Annotated[
    str, typer.Argument(help="client1, host-a, migration, ...", autocompletion=link_names, metavar="LINK")
]
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@link.command("set")
def set_(
    link: Link,
    direction: Annotated[
        str, typer.Option(help="both, from-node or to-node: seen from the node that names the link.")
    ] = "both",
    rate: Annotated[str | None, typer.Option(help="As 100mbit.", show_default=False)] = None,
    delay: Annotated[str | None, typer.Option(help="One way, as 25ms.", show_default=False)] = None,
    jitter: Annotated[
        str | None, typer.Option(help="How far the delay strays, as 2ms.", show_default=False)
    ] = None,
    distribution: Annotated[
        str | None, typer.Option(help="Of the jitter: uniform, normal or pareto.", show_default=False)
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="Share of the frames, as 0.1% or 0.001.", show_default=False)
    ] = None,
    duplicate: Annotated[str | None, typer.Option(help="The same.", show_default=False)] = None,
    reorder: Annotated[
        str | None, typer.Option(help="The same; those do not wait for the delay.", show_default=False)
    ] = None,
    queue: Annotated[
        int | None, typer.Option(help="How many frames wait for the rate at most.", show_default=False)
    ] = None,
    name: Lab = None,
    json_: Json = False,
) -> None:
    """From now on these conditions hold on a link, in the direction that they name, and no others: what is
    not given is as on a link without conditions. netem does it where the kernel has that, else a relay."""
    given: dict[str, Any] = {"direction": direction, "rate": rate, "delay": delay, "jitter": jitter}
    given |= {"distribution": distribution, "loss": loss, "duplicate": duplicate, "reorder": reorder}
    given["queue"] = queue
    words = {key: value for key, value in given.items() if value is not None}
    with wrong_request():
        if words.keys() <= {"direction"}:
            raise OptionError("link set: give a condition, as --delay 25ms; link reset takes them away")
    _change({"link": link, **_numbers(words)}, name, json_)


@link.command()
def reset(link: Link, name: Lab = None, json_: Json = False) -> None:
    """Take a link's conditions away: it is as it was made."""
    _change({"link": link, "reset": True}, name, json_)


@link.command()
def show(
    link: Annotated[
        str | None,
        typer.Argument(
            help="If not given: every link that has had conditions.",
            autocompletion=link_names,
            metavar="[LINK]",
            show_default=False,
        ),
    ] = None,
    name: Lab = None,
    json_: Json = False,
) -> None:
    """What was asked of links, who does it, and what came of it so far."""
    entry = the_lab(name)
    told = _asked(entry.name, {"do": "figures", "link": link})
    if told["links"] or json_:
        _show(told, json_)
    else:
        print(f"{link or ', '.join(entry.links)}: no conditions have been set")
    finish(PASSED)


def capture(
    link: Link,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The file; if not given: LINK.pcapng in the lab's folder.", show_default=False
        ),
    ] = None,
    duration: Annotated[
        str | None, typer.Option(help="End by itself after so long, as 10s.", show_default=False)
    ] = None,
    snap: Annotated[
        str | None,
        typer.Option(help="How much of each frame is kept, as 128B; 0: all.", show_default=False),
    ] = None,
    limit: Annotated[str, typer.Option(help="How much is captured at most.")] = DEFAULT_LIMIT,
    name: Lab = None,
) -> None:
    """Capture a link until Ctrl-C: a file for Wireshark, with comments where a guest paused, committed, was
    announced and resumed meanwhile."""
    from testbed.scenario.units import parse_duration

    with wrong_request():
        pcap = Pcap.asked(link, snap, limit)
        try:
            seconds = None if duration is None else parse_duration(duration) / 1e9
        except ValueError as error:
            raise OptionError(f"--duration: {error}") from error
    assert pcap is not None
    entry = the_lab(name)
    file = _free_file(Path(entry.folder), link) if out is None else out.resolve()
    request = {"do": "capture", "link": link, "file": str(file), "limit_bytes": pcap.limit_bytes}
    told = _captured(entry.name, request | {"snap_bytes": pcap.snap_of(link)}, seconds)
    short = f"; {told['stopped']}" if told["stopped"] else ""
    lost = f", {told['dropped']} found no room" if told["dropped"] else ""
    print(f"{told['file']}: {told['frames']} frames, {told['bytes']} bytes{lost}{short}")
    finish(PASSED)


def _captured(lab: str, request: Message, seconds: float | None) -> Message:
    """Capture until Ctrl-C, the end of the lab, or so many seconds; what the server says of it."""
    from testbed.standing.client import Conversation

    with answered(), Conversation.with_lab(lab) as line:
        try:
            return line.ask(request, seconds, lambda message: print(f"{message['say']}; Ctrl-C ends it"))
        except (KeyboardInterrupt, TimeoutError):
            return line.ask({"do": "stop"})


def _free_file(folder: Path, link: str) -> Path:
    number = 1
    while (file := folder / (f"{link}.pcapng" if number == 1 else f"{link}-{number}.pcapng")).exists():
        number += 1
    return file


def _numbers(words: dict[str, Any]) -> dict[str, Any]:
    """Shares may be typed as numbers; a scenario's step wants those as such."""
    found = dict(words)
    for key in ("loss", "duplicate", "reorder"):
        try:
            found[key] = float(words[key])
        except (KeyError, ValueError):
            continue  # not given, or a text as "0.1%", which the step reads
    return found


def _change(step: dict[str, Any], name: str | None, as_json: bool) -> None:
    told = _asked(the_lab(name).name, {"do": "link", "step": step})
    _show(told, as_json)
    finish(PASSED)


def _show(told: Message, as_json: bool) -> None:
    from testbed.report.console import printer
    from testbed.report.links import show_links

    if as_json:
        print(json.dumps(told["links"], indent=2))
    else:
        show_links(printer(), told["links"])


def _asked(lab: str, request: Message) -> Message:
    from testbed.standing.client import Conversation

    with answered(), Conversation.with_lab(lab) as line:
        return line.ask(request)
