"""What one wants to see of a lab in which something went wrong, as files, while it still stands.

In the folder, for each node, a guest included: ``NODE.sockets`` (what ss(8) tells of its TCP connections,
timers and all), ``NODE.neighbours`` (who it believes has which address), ``NODE.counters`` of its interfaces,
and of each bridge ``NODE.forwarding``; of those three JSON lines. The trace and the logs of the processes lie
beside the folder already.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from netns import observe
from netns.namespace import Namespace
from testbed.lab import plan as planned
from testbed.lab.lab import Lab

FOLDER = "evidence"
SS = ("ss", "-tnoaie")
_SS_DEADLINE_S = 10.0


def gather(lab: Lab, run_folder: Path) -> Path:
    """Write what is to be seen now below `run_folder`; the folder. What cannot be told says so in its
    file."""
    folder = run_folder / FOLDER
    folder.mkdir(exist_ok=True)
    places = {node: lab.topology.namespace(node) for node in lab.scenario.nodes}
    for node, namespace in places.items():
        _of_node(folder, node, namespace)
    for name, guest in lab.vms.items():
        try:
            with Namespace.open(guest.namespace) as namespace:
                _of_node(folder, name, namespace)
        except FileNotFoundError:
            (folder / f"{name}.gone").write_text(f"{name} has no network on {guest.owner}\n")
    for node in (planned.SWITCH, *lab.scenario.hosts):
        table = _told(lambda node=node: map(asdict, observe.forwarding(places[node], planned.BRIDGE)))  # type: ignore[misc]
        (folder / f"{node}.forwarding").write_text(table)
    return folder


def _of_node(folder: Path, node: str, namespace: Namespace) -> None:
    (folder / f"{node}.sockets").write_text(_sockets(namespace))
    (folder / f"{node}.neighbours").write_text(_told(lambda: map(asdict, observe.neighbours(namespace))))
    (folder / f"{node}.counters").write_text(_told(lambda: _counters(namespace)))


def _counters(namespace: Namespace) -> list[dict[str, object]]:
    return [{"ifname": name, **asdict(one)} for name, one in observe.counters(namespace).items()]


def _told(look: Callable[[], Iterable[object]]) -> str:
    try:
        return "".join(json.dumps(one) + "\n" for one in look())
    except observe.ObserveError as error:
        return f"not told: {error}\n"


def _sockets(namespace: Namespace) -> str:
    try:
        with namespace.entered():
            done = subprocess.run(SS, capture_output=True, text=True, timeout=_SS_DEADLINE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not told: {error}\n"
    return done.stdout + done.stderr
