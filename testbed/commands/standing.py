"""Labs that stand, as several commands speak of them: which one is meant, its names for tab completion, a
migration in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from testbed.commands.ending import CHECK_FAILED, INTERRUPTED, fail, finish, status_of, tell, wrong_request
from testbed.commands.report import leave_report
from testbed.commands.showing import lent
from testbed.scenario.options import OptionError

if TYPE_CHECKING:
    from rich.console import Console

    from testbed.commands.showing import Show
    from testbed.report.live import Live
    from testbed.report.terminal import Progress
    from testbed.standing.client import Conversation
    from testbed.standing.protocol import Message
    from testbed.standing.registry import Entry


def lab_names(incomplete: str) -> list[str]:
    """For tab completion: the labs that stand."""
    from testbed.standing import registry

    return [entry.name for entry in registry.standing() if entry.name.startswith(incomplete)]


def node_names(context: typer.Context, incomplete: str) -> list[str]:
    """For tab completion: the nodes of the lab that is meant."""
    entry = _completed_for(context)
    return [] if entry is None else [node for node in entry.nodes if node.startswith(incomplete)]


def host_names(context: typer.Context, incomplete: str) -> list[str]:
    """For tab completion: the hosts of the lab that is meant."""
    return _of_kind(context, "host", incomplete)


def vm_names(context: typer.Context, incomplete: str) -> list[str]:
    """For tab completion: the guests of the lab that is meant."""
    return _of_kind(context, "vm", incomplete)


def _of_kind(context: typer.Context, kind: str, incomplete: str) -> list[str]:
    entry = _completed_for(context)
    nodes = {} if entry is None else entry.nodes
    return [node for node, its_kind in nodes.items() if its_kind == kind and node.startswith(incomplete)]


def link_names(context: typer.Context, incomplete: str) -> list[str]:
    """For tab completion: the links of the lab that is meant."""
    entry = _completed_for(context)
    return [] if entry is None else [link for link in entry.links if link.startswith(incomplete)]


def _completed_for(context: typer.Context) -> Entry | None:
    from testbed.standing import registry

    try:
        return registry.find(context.params.get("name"))
    except OptionError:
        return None


Lab = Annotated[
    str | None,
    typer.Option(
        "--name",
        help="The lab. If not given: the one that stands.",
        autocompletion=lab_names,
        show_default=False,
    ),
]


def the_lab(name: str | None) -> Entry:
    """The lab that is meant; ends the command where there is none. Labs that died are told, and forgotten."""
    from testbed.standing import registry

    with wrong_request():
        forget_the_dead()
        return registry.find(name)


def forget_the_dead() -> None:
    """Remove what labs that died have left in the registry, and say so."""
    from testbed.standing import registry

    for name in registry.bury():
        tell(f"lab {name!r} had died, without going down; nothing of it is left but its folder")


@contextmanager
def answered() -> Iterator[None]:
    """Ends the command with the server's reason if it refuses, and with a line if it is gone."""
    from testbed.standing.protocol import ProtocolError, Refused

    try:
        yield
    except Refused as refused:
        fail(refused.status, str(refused))
    except (ProtocolError, TimeoutError) as error:
        fail(CHECK_FAILED, str(error))


def leave(status: int) -> NoReturn:
    """End the command with a status that is not of a run: 130 of a program in a node says nothing of a
    lab."""
    sys.stdout.flush()
    raise SystemExit(status)


def _watched(lab: Conversation, step: dict[str, Any], show: Show, console: Console) -> Message:
    """Ask for the migration, and show how it goes: as a picture or in lines. The answer."""
    from testbed.report.live import Live
    from testbed.report.live_state import BEAT_MS, Cast
    from testbed.report.terminal import Progress

    request = {"do": "migrate", "step": step}
    if not show.live:
        progress = Progress(console, show.quiet)
        return lab.ask(request, None, lambda message: _pass_on(message, progress))
    found = lab.ask({"do": "ps"})
    guests = {vm: (found["owners"][vm], ram) for vm, ram in found["ram"].items()}
    cast = Cast(found["title"], tuple(found["hosts"]), guests, tuple(found["asking"]))
    with Live(console, cast) as view:
        return lab.ask(request | {"beat_ms": BEAT_MS}, None, lambda message: _pass_on(message, view))


def _pass_on(message: Message, witness: Live | Progress) -> None:
    if "say" in message:
        witness.say(str(message["say"]))
    elif "migration" in message:
        witness.migration(**message["migration"])
    elif "event" in message:
        witness.event(message["event"])


def migrate_standing(name: str, step: dict[str, Any], show: Show) -> NoReturn:
    """Do a step that migrates in a lab that stands, show how it goes and what came of it, and end the
    command."""
    from testbed.measure.result import Result
    from testbed.report.console import printer
    from testbed.report.terminal import show_summary
    from testbed.standing.client import Conversation

    console = printer(stderr=show.as_json)
    try:
        with answered(), Conversation.with_lab(name) as lab, lent(show.live):
            told = _watched(lab, step, show, console)
    except KeyboardInterrupt:
        tell(f"the migration goes on without being watched; testbed ps --name {name}")
        leave(INTERRUPTED)
    folder = Path(told["folder"])
    text = (folder / "result.json").read_text()
    result = Result.model_validate_json(text)
    if show.as_json:
        print(text, end="")
    else:
        show_summary(console, result, str(folder))
    page = leave_report(folder) if show.with_report else None
    if page is not None and not show.as_json:
        console.print(f"  {page}", style="dim")
    finish(status_of(result))
