"""The observer: a process of its own that reads what :mod:`testbed.lab.observation` watches, at once.

The kernel puts no time into the news of a table, so whoever reads late dates them late; and who runs a lab is
busy, above all in a blackout. This one does nothing else, is scheduled like the agents in a switchover where
the system allows it, and tells the recorder when there is nothing to read.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from netns.forkserver import Process, ready, spawn
from netns.namespace import Namespace
from testbed.handover.filters import Identity
from testbed.host.urgency import Urgency
from testbed.lab.observation import Observation
from testbed.measure.trace import Trace

NAME = "observer"
ENTRY = "testbed.lab.observer:main"
QUIET_S = 0.02
"""So long without news, and what has gathered is told."""
LONGEST_S = 0.25
"""So long after it was read, it is told in any case."""


def start_observer(
    *,
    clients: Iterable[str],
    bridges: Iterable[str],
    guests: Mapping[str, Identity],
    recorder: Path,
    log: Path,
) -> Process:
    """Start watching the named namespaces `clients` and `bridges` for `guests` (identities by name); it
    listens once the process is ready. A context manager that ends it.
    """
    told = {
        vm: {
            "macs": [mac.hex(":") for mac in identity.macs],
            "ipv4": [str(address) for address in identity.ipv4],
            "ipv6": [str(address) for address in identity.ipv6],
        }
        for vm, identity in guests.items()
    }
    argument = {"clients": list(clients), "bridges": list(bridges), "guests": told, "recorder": str(recorder)}
    return spawn(ENTRY, argument, namespace=None, name=NAME, stderr=log)


def main(argument: dict[str, Any], _fds: Sequence[int]) -> int:
    """Entry for the fork server, with the argument of :func:`start_observer`. Runs until it is ended,
    or until whoever records has gone."""
    urgency = Urgency()
    urgency.raise_for([0])
    with ExitStack() as stack:
        trace = Trace(NAME, Path(argument["recorder"]))
        stack.callback(trace.close)
        nodes = {
            name: stack.enter_context(Namespace.open(name))
            for name in (*argument["clients"], *argument["bridges"])
        }
        observation = stack.enter_context(
            Observation(
                clients={name: nodes[name] for name in argument["clients"]},
                bridges={name: nodes[name] for name in argument["bridges"]},
                guests={vm: _identity(told) for vm, told in argument["guests"].items()},
            )
        )
        trace.event("observation-begins", urgent=urgency.granted)
        ready()
        _observe(observation, trace)
    return 0


def _observe(observation: Observation, trace: Trace) -> None:
    """Read at once, tell in quiet moments; until nobody records any more."""
    last_told_s = time.monotonic()
    while True:
        quiet_s = QUIET_S if trace.pending else None
        if select.select([observation], [], [], quiet_s)[0]:
            trace.pending += observation.take()
            if time.monotonic() < last_told_s + LONGEST_S:
                continue
        if not trace.flush():
            return
        last_told_s = time.monotonic()


def _identity(told: Mapping[str, Sequence[str]]) -> Identity:
    return Identity(
        tuple(bytes.fromhex(mac.replace(":", "")) for mac in told["macs"]),
        tuple(IPv4Address(address) for address in told["ipv4"]),
        tuple(IPv6Address(address) for address in told["ipv6"]),
    )
