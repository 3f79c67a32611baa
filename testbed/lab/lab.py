"""A lab that stands: its network, its two agents, its guest and its clients. Lives inside a universe."""

from __future__ import annotations

import secrets
import select
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import psutil

from netns.apply import Topology, apply
from netns.forkserver import Process, spawn
from netns.namespace import Namespace
from netns.topology import plan
from testbed.clients.control import ClientControl
from testbed.faults.injection import mend
from testbed.faults.kinds import Fault
from testbed.handover.wiring import wire_hold
from testbed.host.control import CommandFailed, ControlError, Line
from testbed.host.keeper import Stage
from testbed.host.network import guest_namespace
from testbed.lab import plan as planned
from testbed.lab.observer import start_observer
from testbed.lab.programs import Programs
from testbed.lab.storage import PlainServer, Storage, access
from testbed.lab.supervisor import Supervisor
from testbed.measure.trace import Recorder
from testbed.scenario.options import Options

RECORDER = Path("/run/recorder")
READY_DEADLINE_S = 30.0
MEND_AFTER_S = 4.0
"""How long a fault made on purpose lasts, where nothing ends without its end: longer than every patience."""
BOOT_DEADLINE_S = 120.0
PRELOAD = (
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

    `step` is called with a line for each thing that is about to be done. During pre-copy one agent may be
    silent towards the other for `peer_deadline_s`.
    """

    def __init__(
        self,
        options: Options,
        folder: Path,
        step: Callable[[str], None] = lambda _: None,
        *,
        peer_deadline_s: float = 30.0,
    ) -> None:
        self.options = options
        self.folder = folder
        self._peer_deadline_s = peer_deadline_s
        self.agents: dict[str, Supervisor] = {}
        self.clients: dict[str, ClientControl] = {}
        self.attended: dict[Readable, Callable[[], None]] = {}
        """What else is waited on while the lab waits, a migration included, and what is called when it is
        readable: for whoever runs a lab and has others to answer meanwhile."""
        self.owner = planned.HOSTS[0]
        self._processes: list[Process] = []
        with ExitStack() as stack:
            self.recorder = Recorder(RECORDER)
            stack.callback(self.recorder.close)
            step("network: " + ", ".join((planned.SWITCH, *planned.HOSTS, *planned.client_names(options))))
            self.topology: Topology = stack.enter_context(apply(plan(planned.network(options))))
            for host in planned.HOSTS:
                wire_hold(self.topology.namespace(host), planned.BRIDGE)
            stack.callback(_remove_guest_namespaces)
            self.storage: Storage | PlainServer | None = None
            if options.has_storage:
                self.storage = self._start_storage(step)
                stack.callback(self.storage.close)
            observer = self._observe(stack)
            self._start_agents(stack)
            observer.wait_ready(READY_DEADLINE_S)
            self.programs = stack.enter_context(Programs(folder))
            self._stack = stack.pop_all()

    def _start_storage(self, step: Callable[[str], None]) -> Storage | PlainServer:
        nodes = (*planned.HOSTS, planned.STORAGE)
        namespaces = {node: self.topology.namespace(node) for node in nodes}
        if self.options.storage_server == "nbdkit":
            step("storage: a disk that nbdkit serves; nobody is fenced")
            return PlainServer(self.options, namespaces)
        step("storage: a LUN, its volume mounted on " + " and ".join(planned.HOSTS))
        return Storage(self.options, namespaces, self.folder, RECORDER)

    def _start_agents(self, stack: ExitStack) -> None:
        for host in planned.HOSTS:
            argument = {
                "name": host,
                "bridge": planned.BRIDGE,
                "uplink": planned.UPLINK,
                "recorder": str(RECORDER),
                "deadline_s": self._peer_deadline_s,
                "storage": access(host, self.options) if self.storage is not None else None,
            }
            log = self.folder / f"{host}.log"
            self.agents[host] = Supervisor(host, self.topology.namespace(host), argument, log)
            stack.callback(self.agents[host].close)
        for agent in self.agents.values():
            agent.process.wait_ready(READY_DEADLINE_S)

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

    def _observe(self, stack: ExitStack) -> Process:
        """Begin to watch what clients, switch and hosts believe of the guest."""
        observer = start_observer(
            clients=planned.client_names(self.options),
            bridges=(planned.SWITCH, *planned.HOSTS),
            guests={planned.GUEST: planned.guest(self.options).identity},
            recorder=RECORDER,
            log=self.folder / "observer.log",
        )
        self._processes.append(stack.enter_context(observer))
        return observer

    def boot(self, import_path: Sequence[str]) -> dict[str, Any]:
        """Start the guest on the first host. Raises CommandFailed with the guest's own word."""
        description = planned.guest(self.options).as_json()
        request = {"do": "boot", "guest": description, "import_path": list(import_path)}
        return dict(self.agents[self.owner].line.ask(request, BOOT_DEADLINE_S))

    def start_clients(self) -> int:
        """Start every client and its probes; returns how many connections they hold. Raises ClientFailed."""
        for client, probes in planned.probes(self.options).items():
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
        return sum(client.start()["connections"] for client in self.clients.values())

    def watch(self, duration_s: float, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Let the lab run for so long, taking in what happens."""
        end = time.monotonic() + duration_s
        while (left := end - time.monotonic()) > 0:
            self._wait((), left, on_event)

    def wait(self, timeout_s: float, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Let the lab run until something has happened, for at most so long."""
        self._wait((), timeout_s, on_event)

    def migrate(
        self,
        on_event: Callable[[dict[str, Any]], None],
        deadline_s: float,
        import_path: Sequence[str],
        fault: Fault | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Move the guest to the other host; returns the answers of source and target, each with ``error`` if
        it failed.

        `owner` is the guest's host afterwards. Raises ControlError when an agent is gone or silent.
        """
        source, target = self.owner, self.other(self.owner)
        receiving, sending = self._orders(target, import_path, fault)
        lines = {host: self.agents[host].line for host in (source, target)}
        lines[target].ask(receiving, READY_DEADLINE_S)
        lines[source].ask(sending, READY_DEADLINE_S)
        answers: dict[str, dict[str, Any]] = {}
        end = time.monotonic() + deadline_s
        mend_at = time.monotonic() + MEND_AFTER_S if fault is not None else end
        while len(answers) < 2:
            left_s = min(end, mend_at) - time.monotonic()
            self._wait([lines[host] for host in lines if host not in answers], left_s, on_event)
            for host, line in lines.items():
                if host not in answers and (answer := _answer_from(line)) is not None:
                    answers[host] = answer
            if time.monotonic() > end:
                raise CommandFailed(f"no end after {deadline_s:g} s", "Timeout")
            if time.monotonic() > mend_at:
                mend_at = end
                self.mend()
        if any("error" in answer for answer in answers.values()):
            self.settle(end - time.monotonic())
        else:
            self.owner = target
        return answers[source], answers[target]

    def migrate_by_another(
        self,
        on_event: Callable[[dict[str, Any]], None],
        deadline_s: float,
        import_path: Sequence[str],
        fault: Fault | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As :meth:`migrate`, by an orchestrator of its own that may die: the agents are asked afterwards."""
        source, target = self.owner, self.other(self.owner)
        receiving, sending = self._orders(target, import_path, fault)
        argument = {
            "target": {"socket": str(self.agents[target].socket), "order": receiving},
            "source": {"socket": str(self.agents[source].socket), "order": sending},
            "deadline_s": deadline_s,
        }
        entry = "testbed.lab.conductor:main"
        with spawn(entry, argument, namespace=None, name="orchestrator") as conductor:
            end = time.monotonic() + deadline_s
            while conductor.wait(0) is None and time.monotonic() < end:
                self._wait((), end - time.monotonic(), on_event, also=[conductor.pidfd])
        for agent in self.agents.values():
            agent.reconnect()
        found = self.settle(deadline_s)
        answers = [dict(found[host]["last"]) for host in (source, target)]
        return answers[0].get("ok", answers[0]), answers[1].get("ok", answers[1])

    def _orders(
        self, target: str, import_path: Sequence[str], fault: Fault | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the target and the source are told."""
        common = {
            "secret": secrets.token_hex(32),
            "port": planned.MIGRATION_PORT,
            "fault": None if fault is None else str(fault),
            "deadline_s": self._deadline_s(),
        }
        receiving = {"do": "receive", "import_path": list(import_path)}
        sending = {"do": "migrate", "address": planned.MIGRATION_ADDRESS[target], "plan": self._plan()}
        return common | receiving, common | sending

    def settle(self, deadline_s: float) -> dict[str, dict[str, Any]]:
        """After a migration that failed: mend the wires, start an agent where one died, and learn who has
        the guest.

        Without shared storage an agent may not be able to tell whether its guest runs elsewhere; here both
        can be asked. `owner` is the guest's host afterwards, if it runs; the answers are each host's status.
        """
        self.mend()
        found = self._statuses(deadline_s)
        for host, status in found.items():
            if status["guest"] == "paused" and status["stage"] == Stage.YIELDED.name.lower():
                elsewhere = found[self.other(host)]["guest"] == "running"
                self.agents[host].line.ask({"do": "release" if elsewhere else "resume"}, READY_DEADLINE_S)
        found = self._statuses(deadline_s)
        for host, status in found.items():
            if status["guest"] == "running":
                self.owner = host
        return found

    def mend(self) -> None:
        """Undo what a fault did to wires and storage."""
        for host in self.agents:
            mend(self.topology.namespace(host), storage=self.storage is not None)
        if isinstance(self.storage, Storage):
            self.storage.make_room()

    def _statuses(self, deadline_s: float) -> dict[str, dict[str, Any]]:
        return {host: agent.ask_status(deadline_s) for host, agent in self.agents.items()}

    def _deadline_s(self) -> float:
        """How long one side may be silent towards the other: in a Quick Migration, while RAM goes to the LUN
        or comes from it.
        """
        return self._peer_deadline_s + planned.standstill_s(self.options)

    def _plan(self) -> dict[str, Any]:
        policy, rate = self.options.policy, self.options.max_bandwidth_bits_per_s
        return {
            "policy": {
                "downtime_limit_ns": policy.downtime_limit_ns,
                "max_rounds": policy.max_rounds,
                "on_stall": policy.on_stall,
            },
            "precopy": self.options.mode == "live",
            "whole": self.options.mode == "quick",
            "rate_limit": None if rate is None else rate // 8,
        }

    def _wait(
        self,
        lines: Sequence[Line],
        timeout_s: float,
        on_event: Callable[[dict[str, Any]], None],
        *,
        also: Sequence[int] = (),
    ) -> None:
        """Wait until one of `lines` has something, taking in events and the ends of programs."""
        if any(line.pending for line in lines):
            timeout_s = 0
        if (patience_s := self.programs.patience_s()) is not None:
            timeout_s = min(timeout_s, patience_s)
        agents = self.agents.values()
        sources: list[Any] = [self.recorder, self.programs, *agents, *lines, *also, *self.attended]
        found = select.select(sources, [], [], max(timeout_s, 0))[0]
        for agent in agents:
            if agent in found:
                agent.take()
        events = self.programs.take()
        self.recorder.events += events
        if self.recorder in found:
            events += self.recorder.receive()
        for event in events:
            on_event(event)
        for source, attend in list(self.attended.items()):
            if source in found:
                attend()

    def other(self, host: str) -> str:
        return planned.HOSTS[1 - planned.HOSTS.index(host)]

    def guest_stats(self) -> dict[str, Any] | None:
        """What the guest says of itself now."""
        stats = self.agents[self.owner].line.ask({"do": "stats"}, READY_DEADLINE_S)
        return None if stats is None else dict(stats)

    def usage(self) -> list[Usage]:
        """What each process of the lab holds now: agents and clients."""
        processes = [*(agent.process for agent in self.agents.values()), *self._processes]
        return [Usage.of(process) for process in processes if process.wait(0) is None]

    def start_program(self, node: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start an ordinary program in a node, its standard output a pipe. OSError where there is no such
        program."""
        with self.topology.namespace(node).entered():
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def wait_listening(self, node: str, port: int, deadline_s: float) -> None:
        """Wait until something in `node` listens on TCP `port`. TimeoutError. There is no event for it: asks
        each 10 ms."""
        end = time.monotonic() + deadline_s
        with self.topology.namespace(node).entered():
            while not any(
                _listens(Path(table), port)
                for table in ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
            ):
                if time.monotonic() > end:
                    raise TimeoutError(
                        110, f"nothing listens on port {port} of {node} after {deadline_s:g} s"
                    )
                select.select([], [], [], 0.01)

    def restart(self, import_path: Sequence[str]) -> None:
        """The guest runs nowhere: what is left of it is removed, and it is booted anew, from its disk if it
        has one, on its last host. Raises CommandFailed.
        """
        for host, agent in self.agents.items():
            if agent.ask_status(READY_DEADLINE_S)["guest"] is not None:
                self.agents[host].line.ask({"do": "release"}, READY_DEADLINE_S)
        self.boot(import_path)

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


def _answer_from(line: Line) -> dict[str, Any] | None:
    """An agent's final answer if it is there; where the agent is gone, an answer that says so."""
    try:
        message = line.poll()
    except ControlError as error:
        return {"error": f"the agent is gone: {error}", "kind": "AgentGone"}
    return None if message is None else dict(message.get("ok", message))


def _remove_guest_namespaces() -> None:
    """The agents are ended, not asked, which is quicker; what they had named is removed in their place."""
    for host in planned.HOSTS:
        with suppress(FileNotFoundError), Namespace.open(guest_namespace(host)) as left:
            left.delete()


def _listens(table: Path, port: int) -> bool:
    """Whether a table of TCP sockets (proc_net_tcp) has a listener on `port`: state 0A."""
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)
