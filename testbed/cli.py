"""The command ``testbed``: its commands, in the order in which a person meets them, and how it ends.

Exit status: 0 migrated and every client unbroken; 1 a continuity or integrity check failed; 2 the request was
wrong; 3 this machine cannot do it, and what is missing is named; 4 rolled back, and the guest is alive.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import typer

from testbed.commands import asked
from testbed.commands.bench import bench
from testbed.commands.calibrate import calibrate
from testbed.commands.compare import compare
from testbed.commands.demo import demo
from testbed.commands.doctor import doctor
from testbed.commands.ending import ENDED_BY, INTERRUPTED, WRONG_REQUEST, tell
from testbed.commands.events import events
from testbed.commands.faults import faults
from testbed.commands.link import capture, link
from testbed.commands.migrate import migrate
from testbed.commands.nodes import exec_, shell
from testbed.commands.predict import predict
from testbed.commands.ps import ps
from testbed.commands.report import report
from testbed.commands.run import run, scenarios, validate
from testbed.commands.up import down, up

COMMANDS: dict[str, tuple[Callable[..., None] | typer.Typer, ...]] = {
    "Run": (demo, migrate, run, scenarios, validate, report),
    "A lab that stands": (up, ps, exec_, shell, link, capture, events, down),
    "Compare and foretell": (compare, predict, faults),
    "The instrument": (doctor, calibrate, bench),
}
"""Every command, under the heading by which ``testbed --help`` lists it."""

IN_A_LAB_THAT_STANDS = {"ps", "exec", "shell", "link", "capture", "events", "down"}
"""The commands that end without the lab that they are about."""

app = typer.Typer(
    name="testbed",
    help="Live migration under the eyes of its clients, on one Linux machine.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(command: Callable[..., None] | typer.Typer, heading: str) -> None:
    """Its help is its docstring, whose lines are ours and not the terminal's."""
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=str(command.info.name), rich_help_panel=heading)
        return
    told = " ".join((inspect.getdoc(command) or "").split())
    first = told.partition(". ")[0].rstrip(".")
    name = command.__name__.rstrip("_")
    app.command(name, help=told, short_help=first, rich_help_panel=heading)(command)


for _heading, _commands in COMMANDS.items():
    for _command in _commands:
        _add(_command, _heading)


def main() -> NoReturn:
    """Run the command that the process was started with, and exit as the contract says."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = app(asked.completed(sys.argv[1:]) or ["--help"], standalone_mode=False)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except _UsageError as error:
        tell(_what_is_wrong(error))
        status = WRONG_REQUEST
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is over: once more changes nothing
    if status in ENDED_BY:
        with suppress(OSError):  # the terminal may be what is gone
            tell(f"ended by {ENDED_BY[status]}{_what_is_left(sys.argv[1:2])}")
        _let_go_of_the_terminal()
    sys.exit(status)


def _what_is_left(command: Sequence[str]) -> str:
    """A command that has a lab of its own takes it along. One in a lab that stands takes nothing of it:
    to say that nothing of the lab is left would be false."""
    return "" if {*command} & IN_A_LAB_THAT_STANDS else "; nothing of the lab is left"


def _let_go_of_the_terminal() -> None:
    """What a terminal that is gone did not take, Python would write again at its end, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_UsageError: Any = typer.BadParameter.__base__
"""Whatever is wrong with the words of a command line; typer itself names only this one kind."""


def _what_is_wrong(error: Any) -> str:
    """What is wrong with a command line, and where to read what is allowed."""
    what = error.format_message().rstrip(".")
    context = error.ctx
    if context is None:  # as for an option without its value
        return f"{what}; see {_command_path(sys.argv[1:])} --help"
    if hasattr(context.command, "list_commands"):
        return f"{what}: use {', '.join(context.command.list_commands(context))}"
    return f"{what}; see {context.command_path} --help"


def _command_path(words: Sequence[str]) -> str:
    """The command that a line begins with, subcommand and all."""
    path = ["testbed"]
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        path.append(word)
    return " ".join(path)
