"""The stand: a lab in which nothing migrates, for what is done to a guest where it is.

This is the one place in which a calibration meets the lab; :class:`testbed.lab.lab.Lab` does the rest.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from netns.forkserver import spawn
from testbed.clients.control import ClientControl
from testbed.lab.environment import environment
from testbed.lab.lab import RECORDER, Lab
from testbed.measure.accuracy import Stall
from testbed.scenario.from_options import scenario_of
from testbed.scenario.options import Options

CLIENT = "testbed.clients.main:main"
RAM_BYTES = 64 << 20
ANSWER_DEADLINE_S = 30.0


def options_for(program: str, clients: int) -> Options:
    """A guest that does nothing but serve: a memory load would stand between a probe and its answer."""
    return Options(
        program=program,
        clients=clients,
        ram_bytes=RAM_BYTES,
        fill=0.0,
        connections=0,
        stream_rate_per_s=0,
        churn_per_s=0,
        dirty_rate_pages_per_s=0,
        working_set_bytes=0,
    )


class Stand:
    """A guest that runs `program`, and `clients` client machines that probe nothing yet. Close it to bring
    all of it down.

    `folder` is made, for the logs of its processes; `client` is the entry of each client's.
    """

    def __init__(self, program: str, clients: int, folder: Path, client: str = CLIENT) -> None:
        folder.mkdir()
        self.folder = folder
        self._entry = client
        self._clients: dict[str, ClientControl] = {}
        with ExitStack() as stack:
            self.lab = stack.enter_context(Lab(scenario_of(options_for(program, clients)), folder))
            self._tracker = self.lab.boot()[self.lab.vm.name]["tracker"]
            self._stack = stack.pop_all()

    def start(self, name: str, probes: Sequence[Mapping[str, Any]]) -> None:
        """Have the client `name` (client1, ...) probe the guest. Raises ClientFailed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        address = self.lab.vm.vm.ipv4
        argument = {
            "name": name,
            "probes": [{"address": address, **probe} for probe in probes],
            "trace": str(RECORDER),
        }
        with theirs:
            process = spawn(
                self._entry,
                argument,
                namespace=self.lab.topology.namespace(name),
                fds=[theirs.fileno()],
                name=name,
                stderr=self.folder / f"{name}.log",
            )
        self._stack.enter_context(process)
        control = ClientControl(ours)
        self._stack.callback(control.close)
        control.start()
        self._clients[name] = control

    def rest(self, duration_s: float) -> None:
        """Let the guest serve and the clients ask for so long."""
        self.lab.watch(duration_s, _nothing)

    def stall(self, duration_ns: int) -> Stall:
        """Stop the guest for about `duration_ns`; how long it really was. Zero stops nothing."""
        if not duration_ns:
            now_ns = time.monotonic_ns()
            return Stall(0, now_ns, now_ns)
        order = {"do": "stall", "duration_ns": duration_ns}
        told = self.lab.vm.line(self.lab.vm.owner).ask(order, ANSWER_DEADLINE_S + duration_ns / 1e9)
        return Stall(duration_ns, told["paused_ns"], told["running_ns"])

    def program_stats(self) -> dict[str, Any]:
        """What the guest's program says of itself now."""
        stats = self.lab.vm.stats() or {}
        return dict(stats["guest"]["program"])

    def environment(self) -> dict[str, Any]:
        """What the figures depend on besides."""
        return environment(self.lab.topology.congestion_control.values(), self._tracker)

    def stop(self, name: str, windows: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
        """End what the client does; its one probe's report, with figures for each of `windows`."""
        (probe,) = self._clients.pop(name).stop(windows)["probes"]
        return dict(probe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _nothing(_event: dict[str, Any]) -> None: ...
