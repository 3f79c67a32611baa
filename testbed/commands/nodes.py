"""``testbed exec`` and ``testbed shell``: a command, or an ordinary shell, in a node of a lab that stands."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.commands.ending import CHECK_FAILED, WRONG_REQUEST, fail, tell
from testbed.commands.standing import Lab, answered, leave, node_names, the_lab

if TYPE_CHECKING:
    from testbed.standing.registry import Entry

Node = Annotated[
    str,
    typer.Argument(
        help="host-a, switch, client1, ... or a guest, as testbed ps --name tells.", autocompletion=node_names
    ),
]


def exec_(
    node: Node,
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")],
    name: Lab = None,
) -> None:
    """Run a command in a node of a lab: with this terminal, input and output. Exit status: the command's; 127
    if there is none of that name, 128 and the number of the signal that ended it. In a guest it runs on the
    host that has the guest now, and does not move."""
    from testbed.standing import nodes

    entry = the_lab(name)
    namespace = _namespace(entry, node)
    environment = nodes.environment_of(entry.name, node)
    leave(_inside(entry, lambda: nodes.run(entry.first_pid, namespace, command, environment)))


def shell(node: Node, name: Lab = None) -> None:
    """An ordinary shell in a node of a lab: yours ($SHELL), with a prompt that says where you are. It ends
    when you leave it, or with the lab."""
    from testbed.standing import nodes

    if not os.isatty(0):
        fail(WRONG_REQUEST, "standard input is no terminal: use testbed exec NODE -- COMMAND")
    entry = the_lab(name)
    namespace = _namespace(entry, node)
    leave(_inside(entry, lambda: nodes.shell(entry.first_pid, namespace, entry.name, node)))


def _namespace(entry: Entry, node: str) -> str:
    from testbed.standing.client import Conversation

    with answered(), Conversation.with_lab(entry.name) as lab:
        return str(lab.ask({"do": "node", "node": node})["namespace"])


def _inside(entry: Entry, run: Callable[[], int]) -> int:
    from testbed.standing import nodes, registry

    try:
        status = run()
    except (ProcessLookupError, PermissionError):
        fail(CHECK_FAILED, f"lab {entry.name!r} has gone down")
    if status == nodes.LAB_ENDED and entry.name not in [one.name for one in registry.standing()]:
        tell(f"lab {entry.name!r} has gone down, and what ran in it with it")
    return status
