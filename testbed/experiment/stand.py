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

from netns import pcapng
from netns.capture import Captures, Tapped, read_clocks
from netns.capture_file import Reading
from netns.forkserver import spawn
from netns.link_figures import LinkFigures
from testbed.clients.control import ClientControl
from testbed.lab import plan as planned
from testbed.lab.environment import environment
from testbed.lab.lab import RECORDER, Lab
from testbed.measure.accuracy import Stall
from testbed.measure.calibration import Family, Still
from testbed.measure.wire import SNAP_BYTES, Wire, frame
from testbed.scenario.model import Scenario
from testbed.scenario.parts import Conditions

CLIENT = "testbed.clients.main:main"
RAM = "64MiB"
ANSWER_DEADLINE_S = 30.0


def scenario_for(program: str, clients: int) -> Scenario:
    """A guest that does nothing but serve: a memory load would stand between a probe and its answer. The
    clients' probes are nominal, for every client has one in a scenario: a stand starts its own.
    """
    return Scenario.model_validate(
        {
            "name": "stand",
            "vm": [{"program": program, "ram": RAM, "fill": 0, "load": {"dirty_rate": 0}}],
            "client": [{"probe": [{"kind": "icmp"}]} for _ in range(clients)],
        }
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
            self.lab = stack.enter_context(Lab(scenario_for(program, clients), folder))
            self._tracker = self.lab.boot()[self.lab.vm.name]["tracker"]
            self._stack = stack.pop_all()

    def start(self, name: str, probes: Sequence[Mapping[str, Any]], family: Family = "ipv4") -> None:
        """Have the client `name` (client1, ...) probe the guest. Raises ClientFailed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        vm = self.lab.vm.vm
        address = {"ipv4": vm.ipv4, "ipv6": vm.ipv6}[family]
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

    def tap(self, name: str) -> None:
        """From now on capture what passes over the link of the client `name`, until :meth:`tapped`."""
        link = Tapped((name, "eth0"), (planned.SWITCH, name), SNAP_BYTES)
        self._begun = read_clocks()
        self._captures = self._stack.enter_context(Captures(self.lab.topology, {name: link}, self.folder))

    def tapped(self) -> Wire:
        """What passed there. The capture itself is let go of: it is large, and says no more."""
        self._captures.stop()
        ended = read_clocks()
        (made,) = self._captures.write()
        read = pcapng.read(made.file.read_bytes())
        made.file.unlink()
        frames = (
            frame(_monotonic_ns(one.t_ns, self._begun, ended), one.direction == pcapng.OUTBOUND, one.data)
            for one in read.packets
        )
        return Wire(one for one in frames if one is not None)

    def stall(self, duration_ns: int, still: Still = "guest") -> Stall:
        """Stop the guest, or the way to it, for about `duration_ns`; how long it really was. Zero stops
        nothing."""
        if not duration_ns:
            now_ns = time.monotonic_ns()
            return Stall(0, now_ns, now_ns)
        order = {"do": "stall", "what": still, "duration_ns": duration_ns}
        told = self.lab.vm.line(self.lab.vm.owner).ask(order, ANSWER_DEADLINE_S + duration_ns / 1e9)
        return Stall(duration_ns, told["paused_ns"], told["running_ns"])

    def report(self, name: str) -> dict[str, Any]:
        """What the client's one probe saw since the last report; it goes on."""
        (probe,) = self._clients[name].report(forget=True)["probes"]
        return dict(probe)

    def impair(self, name: str, conditions: Conditions) -> None:
        """From now on the link of that name has these conditions. Errors as LabLinks.set."""
        self.lab.links.set(name, conditions)

    def impaired(self, name: str) -> LinkFigures:
        """What was done to the frames of that link since its conditions were set."""
        return self.lab.links.figures()[name]

    def program_stats(self) -> dict[str, Any]:
        """What the guest's program says of itself now."""
        stats = self.lab.vm.stats() or {}
        return dict(stats["guest"]["program"])

    def environment(self) -> dict[str, Any]:
        """What the figures depend on besides."""
        return environment(self.lab.topology.congestion_control.values(), self._tracker)

    def stop(self, name: str, windows: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
        """End what the client does; its one probe's report, with figures for each of `windows`."""
        (probe,) = self._clients.pop(name).stop(windows, ANSWER_DEADLINE_S)["probes"]
        return dict(probe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _nothing(_event: dict[str, Any]) -> None: ...


def _monotonic_ns(realtime_ns: int, begun: Reading, ended: Reading) -> int:
    """What CLOCK_MONOTONIC showed when CLOCK_REALTIME showed that, between two readings of both: their
    distance is taken to change evenly."""
    whole_ns, change_ns = ended.realtime_ns - begun.realtime_ns, ended.apart_ns - begun.apart_ns
    return realtime_ns - begun.apart_ns - change_ns * (realtime_ns - begun.realtime_ns) // max(whole_ns, 1)
