"""The options of a lab and of its migrations, which ``testbed migrate`` and ``testbed up`` both take.

A command that is decorated with :func:`takes_options` gets them read, as its first argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from testbed.commands import asked
from testbed.commands.ending import wrong_request
from testbed.scenario.options import Options
from testbed.scenario.words import options_from

_DEFAULT = Options()


class _Asked:
    """Each option as it is typed, with its default and its help. Not made: read for its annotations."""

    mode: Annotated[
        str,
        typer.Option(
            help="live: rounds while it runs; stop-and-copy: all while stopped; quick: while stopped, RAM to "
            "a file on shared storage and back, and the LUN moved in between."
        ),
    ] = "live"
    ram: asked.Ram = "256MiB"
    fill: Annotated[float, typer.Option(help="Share of RAM that holds incompressible data, 0 to 0.9.")] = 0.5
    program: asked.Program = _DEFAULT.program
    clients: Annotated[int, typer.Option(help="Client machines.")] = _DEFAULT.clients
    connections: asked.Connections = _DEFAULT.connections
    interval: Annotated[str, typer.Option(help="How often each of them asks.")] = "1ms"
    stream_rate: Annotated[
        int, typer.Option(help="Messages a second of the steady stream of each client (echo).")
    ] = _DEFAULT.stream_rate_per_s
    churn: Annotated[
        int, typer.Option(help="Connections opened and closed a second, over all clients (echo).")
    ] = _DEFAULT.churn_per_s
    family: Annotated[str, typer.Option(help="both, ipv4 or ipv6.")] = "both"
    dirty_rate: asked.DirtyRate = _DEFAULT.dirty_rate_pages_per_s
    working_set: Annotated[str, typer.Option(help="The RAM among which it writes them.")] = "16MiB"
    pattern: Annotated[str, typer.Option(help="uniform, hot-cold or sequential.")] = "uniform"
    bandwidth: asked.Bandwidth = None
    max_bandwidth: Annotated[
        str | None, typer.Option(help="Cap on what the pre-copy rounds send; the switchover is not capped.")
    ] = None
    disk: asked.Disk = None
    storage_rate: asked.StorageRate = None
    durable: asked.Durable = False
    downtime_limit: Annotated[
        str, typer.Option(help="Switch over once the rest is expected to cross in this time.")
    ] = "300ms"
    max_rounds: Annotated[int, typer.Option(help="Most rounds before the stall is decided.")] = 30
    on_stall: Annotated[str, typer.Option(help="switch anyway, or give-up and stay.")] = "switch"
    announce: Annotated[str, typer.Option(help="garp-request, garp-reply, rarp or none.")] = "garp-request"
    hold: Annotated[
        bool, typer.Option(help="Hold frames during the blackout and release them after.")
    ] = True
    mac: Annotated[
        str, typer.Option(help="keep: the MAC moves along; per-host: each host has its own.")
    ] = "keep"
    tracker: Annotated[str, typer.Option(help="auto, userfaultfd, soft-dirty or digest.")] = "auto"
    storage_server: Annotated[
        str,
        typer.Option(
            help="testbed; or nbdkit, which knows no leases: NOBODY IS FENCED then, and a host that has lost "
            "the guest can still write to its disk."
        ),
    ] = "testbed"
    seed: asked.Seed = _DEFAULT.seed


class _AskedOfRun(_Asked):
    """What is asked of one run besides, and makes no sense for a lab that stands."""

    migrations: Annotated[int, typer.Option(help="How many, there and back.")] = 1
    baseline: Annotated[str, typer.Option(help="Normal service before the first one.")] = "1s"
    fault: Annotated[
        str | None,
        typer.Option(help="PHASE:KIND, made in the first migration, as verify:target-agent-killed."),
    ] = None


def takes_options(*, of_run: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command whose first argument is :class:`Options`: it takes them as they are typed, those of
    a run included or not, in front of its own. What is wrong with them ends it with status 2."""
    asked_for = _AskedOfRun if of_run else _Asked
    hints = get_type_hints(asked_for, include_extras=True)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def read(**given: Any) -> None:
            words = {name.replace("_", "-"): given.pop(name) for name in hints}
            with wrong_request():
                options = options_from(words)
            command(options, **given)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        taken = [
            inspect.Parameter(name, keyword, default=getattr(asked_for, name), annotation=hint)
            for name, hint in hints.items()
        ]
        parameters = [*taken, *(one.replace(kind=keyword) for one in own)]
        read.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        read.__annotations__ = {one.name: one.annotation for one in parameters}
        return read

    return decorate


STEP_KEYS = {
    "mode": "mode",
    "downtime_limit": "downtime_limit",
    "max_rounds": "max_rounds",
    "on_stall": "on_stall",
    "max_bandwidth": "max_bandwidth",
    "migrations": "times",
    "fault": "fault",
}
"""What a migration in a lab that stands can be asked for too, and the key of a scenario's step that it is."""


def given_options(context: typer.Context) -> dict[str, Any]:
    """The options of a run that were typed, with their values."""
    source = context.get_parameter_source
    return {
        name: context.params[name]
        for name in get_type_hints(_AskedOfRun)
        if (found := source(name)) is not None and found.name == "COMMANDLINE"
    }
