"""A lab that stands: its network, its storage, its guests with their agents, and its clients. Lives inside a
universe."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import psutil

from netns.apply import Topology, apply
from netns.forkserver import Process, spawn
from netns.stubborn import StubbornSwitch
from netns.topology import plan
from testbed.clients.control import ClientControl
from testbed.faults.injection import mend
from testbed.handover.wiring import wire_hold
from testbed.host.control import CommandFailed, ControlError, Line
from testbed.lab import plan as planned
from testbed.lab.guests import LabGuest, all_agents
from testbed.lab.links import LabLinks
from testbed.lab.migrations import Flight, Mending, Move, Moved, orders
from testbed.lab.observer import start_observer
from testbed.lab.programs import Programs
from testbed.lab.storage import PlainServer, Storage
from testbed.measure.trace import Recorder
from testbed.scenario.model import Scenario

RECORDER = Path("/run/recorder")
READY_DEADLINE_S = 30.0
PROGRAM_GRACE_S = 5.0
"""How much longer than its deadline a program may take until it has ended."""
PRELOAD = (
    "netns.capture",
    "netns.stubborn",
    "numpy",
    "pyroute2",
    "scapy.layers.inet6",
    "scapy.layers.l2",
    "testbed.clients.main",
    "testbed.guest.machine",
    "testbed.host.agent",
    "testbed.lab.observer",
    "testbed.storage.service",
    "testbed.storage.target",
)
"""What the fork server imports once, for all the processes of a lab."""

OnEvent = Callable[[dict[str, Any]], None]


class Readable(Protocol):
    """What select(2) can wait for."""

    def fileno(self) -> int: ...


@dataclass(frozen=True)
class Usage:
    """What a process holds: memory that is its alone (the guest's RAM is shared and not in it), and
    descriptors."""

    name: str
    private_bytes: int
    descriptors: int

    @classmethod
    def of(cls, process: Process) -> Usage:
        seen = psutil.Process(process.pid)
        return cls(process.name, seen.memory_full_info().uss, seen.num_fds())


class Lab:
    """Brings a lab up when it is made; close it (a context manager) to bring it down.

    `step` is called with a line for each thing that is about to be done, and `on_network` with the network
    and its links as soon as it stands and before anybody speaks on it. During pre-copy one agent may be
    silent towards the other for `peer_deadline_s`. What is known of it: `scenario`, `vms` (guests by name,
    each with its `owner`), `clients` by name, `links` by name, `topology`, `programs`, `recorder`.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        step: Callable[[str], None] = lambda _: None,
        *,
        on_network: Callable[[Topology, dict[str, planned.Ends]], None] = lambda *_: None,
        peer_deadline_s: float = 30.0,
    ) -> None:
        self.scenario = scenario
        self.folder = folder
        self.begun_ns = time.monotonic_ns()
        self.vms: dict[str, LabGuest] = {}
        self.clients: dict[str, ClientControl] = {}
        self._processes: list[Process] = []
        self._awaited: dict[str, float] = {}
        self.attended: dict[Readable, Callable[[], None]] = {}
        """What else is waited on while the lab waits, a migration included, and what is called when it is
        readable: for whoever runs a lab and has others to answer meanwhile."""
        with ExitStack() as stack:
            self.recorder = Recorder(RECORDER)
            stack.callback(self.recorder.close)
            step("network: " + ", ".join(scenario.nodes))
            self.topology: Topology = stack.enter_context(apply(plan(planned.network(scenario))))
            on_network(self.topology, planned.links(scenario))
            self.storage: Storage | PlainServer | None = None
            if scenario.has_storage:
                self.storage = self._start_storage(step)
                stack.callback(self.storage.close)
            observer = self._observe(stack)
            self._start_agents(stack, peer_deadline_s)
            observer.wait_ready(READY_DEADLINE_S)
            self.programs = stack.enter_context(Programs(folder))
            self._stubborn = self._make_switch_stubborn(stack)
            self.links = stack.enter_context(LabLinks(scenario, self.topology))
            self._stack = stack.pop_all()

    def _start_storage(self, step: Callable[[str], None]) -> Storage | PlainServer:
        hosts = self.scenario.hosts
        namespaces = {node: self.topology.namespace(node) for node in (*hosts, planned.STORAGE)}
        if self.scenario.storage.server == "nbdkit":
            step("storage: a disk that nbdkit serves; nobody is fenced")
            return PlainServer(self.scenario, namespaces)
        step("storage: a LUN, its volume mounted on " + " and ".join(hosts))
        return Storage(self.scenario, namespaces, self.folder, RECORDER)

    def _start_agents(self, stack: ExitStack, peer_deadline_s: float) -> None:
        for vm in self.scenario.vms:
            guest = LabGuest(self.scenario, vm, self.topology, self.folder, RECORDER, peer_deadline_s)
            stack.callback(guest.close)
            self.vms[vm.name] = guest
            for host in self.scenario.hosts:
                wire_hold(self.topology.namespace(host), planned.BRIDGE, guest.ports)
        for guest in self.vms.values():
            guest.wait_ready(READY_DEADLINE_S)

    def _observe(self, stack: ExitStack) -> Process:
        """Begin to watch what clients, switch and hosts believe of the guests."""
        observer = start_observer(
            clients=[client.name for client in self.scenario.clients],
            bridges=(planned.SWITCH, *self.scenario.hosts),
            guests={vm.name: planned.guest(self.scenario, vm).identity for vm in self.scenario.vms},
            recorder=RECORDER,
            log=self.folder / "observer.log",
        )
        self._processes.append(stack.enter_context(observer))
        return observer

    def _make_switch_stubborn(self, stack: ExitStack) -> StubbornSwitch | None:
        """From here on it believes of the guests' addresses what it knew, until that has aged, if so
        asked."""
        network = self.scenario.network
        if network.relearn:
            return None
        assert network.switch_ageing_ns is not None
        macs = {mac.hex(":") for guest in self.vms.values() for mac in guest.description.identity.macs}
        switch = self.topology.namespace(planned.SWITCH)
        stubborn = StubbornSwitch(switch, planned.BRIDGE, sorted(macs), network.switch_ageing_ns)
        return stack.enter_context(stubborn)

    @property
    def vm(self) -> LabGuest:
        """The first guest: the only one of most labs."""
        return next(iter(self.vms.values()))

    def boot(self, import_path: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Start every guest on its first host; by guest what tracks its writes: {"tracker", "passed_over"}.
        Raises CommandFailed with the guest's own word."""
        return {name: guest.boot(import_path) for name, guest in self.vms.items()}

    def start_clients(self, beat_ms: int = 0) -> int:
        """Start every client and its probes; returns how many connections they hold. With `beat_ms` each
        tells of its longest waits as often. Raises ClientFailed."""
        for client, probes in planned.probes(self.scenario).items():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            argument = {
                "name": client,
                "probes": probes,
                "trace": str(RECORDER),
                "samples": str(self.folder / f"{client}.npz"),
            }
            self._spawn(self._stack, "testbed.clients.main:main", argument, client, theirs)
            self.clients[client] = ClientControl(ours)
            self._stack.callback(self.clients[client].close)
        connections: int = sum(control.start()["connections"] for control in self.clients.values())
        if beat_ms:
            for control in self.clients.values():
                control.beat(beat_ms)
        return connections

    def _spawn(
        self, stack: ExitStack, entry: str, argument: Any, node: str, control: socket.socket
    ) -> Process:
        namespace = self.topology.namespace(node)
        log = self.folder / f"{node}.log"
        with control:
            process = spawn(
                entry, argument, namespace=namespace, fds=[control.fileno()], name=node, stderr=log
            )
        self._processes.append(stack.enter_context(process))
        return process

    def watch(self, duration_s: float, on_event: OnEvent) -> None:
        """Let the lab run for so long, taking in what happens."""
        end = time.monotonic() + duration_s
        while (left := end - time.monotonic()) > 0:
            self._wait((), left, on_event)

    def sample(self, vm: str, all_ns: int, on_event: OnEvent) -> dict[str, Any]:
        """How a guest dirties its RAM, watched for so long while it serves (testbed.host.watching). Raises
        CommandFailed, and ControlError when its agent is gone or silent.
        """
        guest = self.vms[vm]
        line = guest.line(guest.owner)
        line.send({"do": "sample", "all_ns": all_ns})
        end = time.monotonic() + all_ns / 1e9 + READY_DEADLINE_S
        while (answer := line.poll()) is None:
            if time.monotonic() > end:
                raise ControlError(f"{guest.owner} has not said how {vm} writes")
            self._wait([line], end - time.monotonic(), on_event)
        if "error" in answer:
            raise CommandFailed(str(answer["error"]), str(answer.get("kind", "")))
        return dict(answer["ok"])

    def wait(self, timeout_s: float, on_event: OnEvent) -> None:
        """Let the lab run until something has happened, for at most so long."""
        self._wait((), timeout_s, on_event)

    def watch_until(self, done: Callable[[], bool], deadline_s: float, on_event: OnEvent) -> bool:
        """Let the lab run until `done`, which is asked whenever something has happened, for at most so long;
        whether it was."""
        end = time.monotonic() + deadline_s
        while not done():
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._wait((), left, on_event)
        return True

    def migrate(
        self,
        moves: Sequence[Move],
        on_event: OnEvent,
        deadline_s: float,
        import_path: Sequence[str] = (),
    ) -> list[Moved]:
        """Move guests to other hosts, all at once; what came of each, in the same order. Each one's `owner`
        is its host afterwards.

        Raises ControlError when an agent is gone or silent, CommandFailed after `deadline_s`.
        """
        flights = [self._flight(move, import_path) for move in moves]
        end = time.monotonic() + deadline_s
        mending = Mending(on_event)
        while waiting := [line for flight in flights for line in flight.waiting]:
            self._wait(waiting, mending.patience_s(end - time.monotonic()), mending.event)
            for flight in flights:
                flight.take()
            if time.monotonic() > end:
                raise CommandFailed(f"no end after {deadline_s:g} s", "Timeout")
            if mending.is_due():
                self.mend()
        found = [flight.moved for flight in flights]
        if any(moved.failed for moved in found):
            self.mend()
        for moved in found:
            guest = self.vms[moved.move.vm]
            if moved.failed:
                guest.settle(end - time.monotonic())
            else:
                guest.owner = moved.move.target
        return found

    def _flight(self, move: Move, import_path: Sequence[str]) -> Flight:
        guest = self.vms[move.vm]
        lines = guest.line(guest.owner), guest.line(move.target)
        return Flight(move, guest.way(move), guest.owner, lines, import_path)

    def migrate_by_another(
        self, move: Move, on_event: OnEvent, deadline_s: float, import_path: Sequence[str] = ()
    ) -> Moved:
        """As :meth:`migrate` of one, by an orchestrator of its own that may die: the agents are asked
        afterwards."""
        guest = self.vms[move.vm]
        source, ordered_ns = guest.owner, time.monotonic_ns()
        receiving, sending = orders(move, guest.way(move), import_path)
        argument = {
            "target": {"socket": str(guest.agents[move.target].socket), "order": receiving},
            "source": {"socket": str(guest.agents[source].socket), "order": sending},
            "deadline_s": deadline_s,
        }
        entry = "testbed.lab.conductor:main"
        with spawn(entry, argument, namespace=None, name="orchestrator") as conductor:
            end = time.monotonic() + deadline_s
            while conductor.wait(0) is None and time.monotonic() < end:
                self._wait((), end - time.monotonic(), on_event, also=[conductor.pidfd])
        for agent in guest.agents.values():
            agent.reconnect()
        found = self.settle(guest, deadline_s)
        last = [dict(found[host]["last"]) for host in (source, move.target)]
        answers = [one.get("ok", one) for one in last]
        return Moved(move, source, answers[0], answers[1], ordered_ns, time.monotonic_ns())

    def settle(self, guest: LabGuest, deadline_s: float) -> dict[str, dict[str, Any]]:
        """After a migration that failed: mend the wires, start an agent where one died, and learn who has the
        guest (:meth:`LabGuest.settle`)."""
        self.mend()
        return guest.settle(deadline_s)

    def mend(self) -> None:
        """Undo what a fault did to wires and storage."""
        rate = self.scenario.network.bandwidth_bits_per_s
        wire_mbit = None if rate is None else rate / 1e6
        for host in self.scenario.hosts:
            mend(
                self.topology.namespace(host),
                wire=self.scenario.own_wire,
                wire_rate_mbit=wire_mbit,
                storage=self.storage is not None,
            )
        if isinstance(self.storage, Storage):
            self.storage.make_room()

    def _wait(
        self,
        lines: Sequence[Line],
        timeout_s: float,
        on_event: OnEvent,
        *,
        also: Sequence[int] = (),
    ) -> None:
        """Wait until one of `lines` has something, taking in events and the ends of programs."""
        if any(line.pending for line in lines):
            timeout_s = 0
        if (patience_s := self.programs.patience_s()) is not None:
            timeout_s = min(timeout_s, patience_s)
        agents = all_agents(self.vms)
        sources: list[Any] = [self.recorder, self.programs, *agents, *lines, *also, *self.attended]
        sources += [] if self._stubborn is None else [self._stubborn]
        found = select.select(sources, [], [], max(timeout_s, 0))[0]
        for agent in agents:
            if agent in found:
                agent.take()
        events = [*self.programs.take(), *self._beliefs()]
        self.recorder.events += events
        if self.recorder in found:
            events += self.recorder.receive()
        for event in events:
            on_event(event)
        for source, attend in list(self.attended.items()):
            if source in found:
                attend()

    def _beliefs(self) -> list[dict[str, Any]]:
        """What a stubborn switch has begun to believe, or has given up."""
        news = [] if self._stubborn is None else self._stubborn.read()
        return [
            {
                "t_ns": one.t_ns,
                "source": planned.SWITCH,
                "event": "pinned" if one.pinned else "let-go",
                "mac": one.mac,
                "port": one.port,
            }
            for one in news
        ]

    def usage(self) -> list[Usage]:
        """What each process of the lab holds now: agents and clients."""
        processes = [*(agent.process for agent in all_agents(self.vms)), *self._processes]
        return [Usage.of(process) for process in processes if process.wait(0) is None]

    def tell(self, event: str, fields: Mapping[str, Any], on_event: OnEvent) -> None:
        """Record an event of the lab itself."""
        told = {"t_ns": time.monotonic_ns(), "source": "lab", "event": event, **fields}
        self.recorder.events.append(told)
        on_event(told)

    def run_program(
        self,
        node: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> str:
        """Start an ordinary program in a node, to be told of in the result (:class:`Programs`); its name
        there. ProgramNotStarted where there is no such program."""
        namespace = self.topology.namespace(node)
        return self.programs.start(node, namespace, command, environment=environment, deadline_s=deadline_s)

    def start_client_programs(self, start: Literal["baseline", "migration"]) -> None:
        """The programs of the clients that begin then."""
        for client in self.scenario.clients:
            for program in client.programs:
                if program.start == start:
                    deadline_s = None if program.deadline_ns is None else program.deadline_ns / 1e9
                    name = self.run_program(
                        client.name, program.command, environment=program.environment, deadline_s=deadline_s
                    )
                    if deadline_s is not None:
                        self._awaited[name] = deadline_s

    def wait_for_client_programs(self, on_event: OnEvent) -> None:
        """Until those that have a deadline have ended: by themselves, or by it."""
        self.wait_for_programs(list(self._awaited), max(self._awaited.values(), default=0.0), on_event)

    def wait_for_programs(self, names: Collection[str], deadline_s: float, on_event: OnEvent) -> None:
        """Until these have ended. CommandFailed where one has not, a while after the deadline."""
        grace_s = PROGRAM_GRACE_S
        if not self.watch_until(
            lambda: not set(names) & set(self.programs.running), deadline_s + grace_s, on_event
        ):
            left = ", ".join(sorted(set(names) & set(self.programs.running)))
            raise CommandFailed(f"{left}: does not end", "Timeout")

    def start_program(self, node: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start an ordinary program in a node, its standard output a pipe. OSError where there is no such
        program."""
        with self.topology.namespace(node).entered():
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def restart(self, guest: LabGuest, import_path: Sequence[str] = ()) -> None:
        """A guest runs nowhere: what is left of it is removed, and it is booted anew, from its disk if it has
        one, on its last host. Raises CommandFailed.
        """
        guest.release()
        guest.boot(import_path)

    def report_clients(self) -> dict[str, dict[str, Any]]:
        """Every client's summary so far; the probes go on."""
        return {name: client.report(forget=True) for name, client in self.clients.items()}

    def stop_clients(self, windows: Sequence[tuple[int, int]]) -> dict[str, dict[str, Any]]:
        """End every client's probes; returns their summaries, parted by the migrations' windows."""
        return {name: client.stop(windows) for name, client in self.clients.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Bring all of it down."""
        self._stack.close()
