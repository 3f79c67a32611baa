"""``testbed exec`` and ``testbed shell``: a command, or an ordinary shell, in a node of a lab that stands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.commands.ending import CHECK_FAILED, WRONG_REQUEST, fail, tell
from testbed.commands.standing import Lab, answered, leave, node_names, the_lab

if TYPE_CHECKING:
    from testbed.standing.registry import Entry

LAB_END_S = 3.0
"""How long after what ran in it the first process of a lab ends at the latest, when the lab goes down."""

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
    """What `run` returns, which runs something in the lab; if the lab goes down meanwhile, that is told."""
    from testbed.standing import nodes
    from testbed.standing.background import wait_for_end

    try:
        first = os.pidfd_open(entry.first_pid)
        try:
            status = run()
            ended = status == nodes.LAB_ENDED and wait_for_end(first, LAB_END_S)
        finally:
            os.close(first)
    except (ProcessLookupError, PermissionError):
        fail(CHECK_FAILED, f"lab {entry.name!r} has gone down")
    if ended:
        if os.isatty(2):
            print(file=sys.stderr)  # the prompt of a shell that was killed stands in this line
        tell(f"lab {entry.name!r} has gone down, and what ran in it with it")
    return status
