"""``testbed ps``: which labs stand, or what is in one of them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.commands.ending import PASSED, finish
from testbed.commands.standing import Lab, answered, forget_the_dead, the_lab

if TYPE_CHECKING:
    from rich.console import Console

    from testbed.standing.protocol import Message
    from testbed.standing.registry import Entry


def ps(
    name: Lab = None,
    json_: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Which labs stand; with --name what is in one: its nodes with their processes, its guest and where that
    is, and what its clients see just now."""
    from testbed.report.console import printer
    from testbed.standing import registry
    from testbed.standing.client import Conversation

    if name is not None:
        entry = the_lab(name)
        with answered(), Conversation.with_lab(entry.name) as lab:
            told = lab.ask({"do": "ps", "processes": True})
        if json_:
            print(json.dumps(_as_json(entry) | told, indent=2))
        else:
            _show_one(printer(), entry, told)
        finish(PASSED)
    forget_the_dead()
    rows = [(entry, _asked(entry)) for entry in registry.standing()]
    if json_:
        print(json.dumps([_as_json(entry) | told for entry, told in rows], indent=2))
    else:
        _show_all(printer(), rows)
    finish(PASSED)


def _asked(entry: Entry) -> Message:
    """What a lab says of itself; of one that does not answer, that."""
    from testbed.standing.client import Conversation
    from testbed.standing.protocol import ProtocolError

    try:
        with Conversation.with_lab(entry.name) as lab:
            return lab.ask({"do": "ps"})
    except (ProtocolError, TimeoutError) as error:
        return {"trouble": str(error)}


def _as_json(entry: Entry) -> dict[str, Any]:
    told = {"name": entry.name, "first_pid": entry.first_pid, "nodes": entry.nodes}
    return told | {"links": list(entry.links)}


# ---- for a person


def _show_all(console: Console, rows: list[tuple[Entry, Message]]) -> None:
    from rich.table import Table

    if not rows:
        console.print("no lab stands; testbed up brings one up", style="dim")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for title in ("lab", "up for", "guest", "migrations", "connections", "broken"):
        table.add_column(title, no_wrap=True)
    for entry, told in rows:
        if "trouble" in told:
            table.add_row(entry.name, _age(entry.started_at), str(told["trouble"]))
            continue
        counts = _counts(told)
        guests = told["busy"] or ", ".join(f"{vm} on {host}" for vm, host in told["owners"].items())
        migrations = str(told["migrations"])
        table.add_row(entry.name, _age(entry.started_at), guests, migrations, *counts)
    console.print(table)


def _show_one(console: Console, entry: Entry, told: Message) -> None:
    from rich.table import Table

    console.print(f"lab {entry.name}, up for {_age(entry.started_at)}: {told['folder']}")
    for vm, host in told["owners"].items():
        console.print(f"  {vm} ({told['programs'][vm]}) on {host}")
    console.print(f"  {told['migrations']} migrations so far")
    if told["busy"]:
        console.print(f"  {told['busy']}", style="yellow")
    for client, why in told["gone"].items():
        console.print(f"  {client}'s probes are gone: {why}", style="red", markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for title in ("node", "is", "pid", "memory", "process"):
        table.add_column(title, no_wrap=title != "process")
    by_node: dict[str, list[dict[str, Any]]] = {node: [] for node in entry.nodes}
    for process in told["processes"]:
        by_node.setdefault(process["node"], []).append(process)
    for node, processes in by_node.items():
        rows = [_process_row(process) for process in processes] or [("", "", "")]
        for number, row in enumerate(rows):
            table.add_row(node if not number else "", entry.nodes.get(node, "") if not number else "", *row)
    console.print()
    console.print(table)
    _show_clients(console, told)


def _process_row(process: dict[str, Any]) -> tuple[str, str, str]:
    from testbed.scenario.units import format_size

    command = " ".join(process["command"])
    own = "testbed" in command  # a process of the lab has the command line of whoever brought it up
    return str(process["pid"]), format_size(process["memory_bytes"]), process["name"] if own else command


def _show_clients(console: Console, told: Message) -> None:
    from rich.table import Table

    from testbed.scenario.units import format_ms

    if told["clients"] is None:
        console.print("\nclients are not asked while a guest migrates", style="dim")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("client", no_wrap=True)
    table.add_column("probe", no_wrap=True)
    for title in ("open", "requests", "longest wait now", "broken", "wrong bytes"):
        table.add_column(title, justify="right", no_wrap=True)
    for client, probes in told["clients"].items():
        for probe in probes:
            wait = format_ms(probe["longest_wait_ns"] / 1e6)
            figures = (probe["connections"], probe["requests"], wait, probe["broken"], probe["wrong_bytes"])
            table.add_row(client, probe["kind"], *(str(figure) for figure in figures))
    console.print()
    console.print(table)


def _counts(told: Message) -> tuple[str, str]:
    if told["clients"] is None:
        return "", ""
    probes = [probe for probes in told["clients"].values() for probe in probes]
    return tuple(str(sum(probe[key] for probe in probes)) for key in ("connections", "broken"))  # type: ignore[return-value]


def _age(started_at: str) -> str:
    seconds = int((datetime.now().astimezone() - datetime.fromisoformat(started_at)).total_seconds())
    minutes, seconds = divmod(max(0, seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
