"""A storage network with a target and two hosts, each with its volume service, for tests of the volume."""

from __future__ import annotations

import fcntl
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from netns.apply import Topology, apply
from netns.forkserver import Process, spawn
from netns.links import Links
from netns.topology import Bridge, End, Link, Node, Spec, plan
from testbed.measure.trace import Recorder
from testbed.storage.client import NbdClient, NbdLost, NbdRefused
from testbed.storage.lun_client import LunClient
from testbed.storage.volume_client import VolumeClient, VolumeRefused
from tests.system.guest_agent import eventually

MIB = 1 << 20
DEADLINE_S = 30.0
TARGET = ("10.5.0.10", 10809, 3260)
STORAGE = {"host-a": "10.5.0.1", "host-b": "10.5.0.2"}
MIGRATION = {"host-a": "10.6.0.1", "host-b": "10.6.0.2"}
KEYS = {"host-a": "00000000000000aa", "host-b": "00000000000000bb"}
PEER = {"host-a": "host-b", "host-b": "host-a"}
RELAY_PORT = 7920
STALL, STALLED = Path("/run/stall"), Path("/run/stalled")
_CLOSE_WAIT = "08"  # include/net/tcp_states.h
SERVICE = "testbed.storage.service:main"
PRELOAD = ("testbed.storage.service", "testbed.storage.target")


def network(rate_mbit: float | None = None) -> Spec:
    """The target and both hosts on a storage network, and a wire between the hosts for migrations."""
    target = Node("storage", bridges=(Bridge("net0", addresses=(f"{TARGET[0]}/24",)),))
    hosts = tuple(Node(host) for host in STORAGE)
    cables = [
        Link(
            End(host, "stor0", addresses=(f"{address}/24",)),
            End("storage", host, bridge="net0"),
            rate_mbit=rate_mbit,
        )
        for host, address in STORAGE.items()
    ]
    ends = [End(host, "mig0", addresses=(f"{address}/24",)) for host, address in MIGRATION.items()]
    return Spec((target, *hosts), (*cables, Link(ends[0], ends[1], mtu=9000)))


class Stage:
    """The network, the target's process and the hosts' services. `folder` is the target's: in RAM, so that
    no other test's disk traffic is waited for."""

    def __init__(self, topology: Topology, lun_bytes: int, stack: ExitStack) -> None:
        self.topology = topology
        self.folder = Path("/run/luns")
        self.folder.mkdir()
        self.lun_bytes = lun_bytes
        self.recorder = Recorder(Path("/run/recorder"))
        self.processes: dict[str, Process] = {}
        self._stack = stack
        stack.callback(self.recorder.close)

    def start_target(self) -> None:
        address, nbd_port, lun_port = TARGET
        ports = {"address": address, "nbd_port": nbd_port, "lun_port": lun_port}
        argument = {"folder": str(self.folder), "luns": {"csv": self.lun_bytes}, **ports}
        self._start("storage", "testbed.storage.target:main", argument)

    def start_service(
        self, host: str, entry: str = SERVICE, **changed: Any
    ) -> None:
        argument = {
            "host": host,
            "key": KEYS[host],
            "hosts": KEYS,
            "lun": "csv",
            "target": list(TARGET),
            "relay_listen": [MIGRATION[host], RELAY_PORT],
            "peer_relay": [MIGRATION[PEER[host]], RELAY_PORT],
            "control": str(control(host)),
            "nbd": str(nbd(host)),
            "recorder": "/run/recorder",
            **changed,
        }
        self._start(host, entry, argument)

    def _start(self, node: str, entry: str, argument: dict[str, Any]) -> None:
        process = spawn(entry, argument, namespace=self.topology.namespace(node), name=f"{node}-process")
        self._stack.enter_context(process)
        process.wait_ready(DEADLINE_S)
        self.processes[node] = process

    def kill(self, node: str) -> None:
        """As a crash would end it."""
        self.processes[node].kill()
        assert self.processes[node].wait(DEADLINE_S) is not None

    def client(self, host: str) -> VolumeClient:
        return self._stack.enter_context(VolumeClient.connect(control(host), DEADLINE_S))

    def luns(self, host: str) -> LunClient:
        """The target's LUN service, past the host's volume service."""
        namespace = self.topology.namespace(host)
        address = (TARGET[0], TARGET[2])
        return self._stack.enter_context(
            LunClient.connect(address, deadline_s=DEADLINE_S, namespace=namespace)
        )

    def disk(self, host: str, export: str) -> NbdClient:
        """Open a disk at a host's service, as a guest would."""
        return self._stack.enter_context(NbdClient.connect(nbd(host), export, deadline_s=DEADLINE_S))

    def unsent_bytes(self, host: str, port: int = TARGET[1]) -> int:
        """What the kernel of a host still means to deliver to the target's NBD port, or the peer's relay."""
        rows = [row for row in self._tcp(host) if row[2].endswith(f":{port:04X}")]
        return sum(int(row[4].partition(":")[0], 16) for row in rows)

    def ended_by_target(self, host: str) -> int:
        """How many of a host's connections to the NBD port the target has ended, and the host not yet."""
        rows = self._tcp(host)
        return sum(row[2].endswith(f":{TARGET[1]:04X}") and row[3] == _CLOSE_WAIT for row in rows)

    def _tcp(self, host: str) -> list[list[str]]:
        table = Path(f"/proc/{self.processes[host].pid}/net/tcp").read_text().splitlines()[1:]
        return [line.split() for line in table]

    def link(self, host: str, ifname: str, up: bool) -> None:
        """Mend or cut a host's link."""
        with Links(self.topology.namespace(host)) as links:
            links.set_up(ifname, up)

    def await_state(self, host: str, wanted: str) -> None:
        """Return once a host's service has said that its volume is in this state, from the last event on."""
        last = self.states(host)[-1:]
        while last != [wanted]:
            readable, _, _ = select.select([self.recorder], [], [], DEADLINE_S)
            assert readable, f"{host} is {last}, not {wanted}\n{self.processes[host].stderr_tail()}"
            last = self.states(host)[-1:]

    def states(self, host: str) -> list[str]:
        """All states that a host's volume has been in, oldest first."""
        self.recorder.receive()
        told = [one for one in self.recorder.events if one["event"] == "volume-state"]
        return [one["volume"] for one in told if one["source"] == f"{host}-volume"]


def service_that_leaves_connections_behind(argument: dict[str, Any], fds: list[int]) -> int:
    """A volume service that goes another way without a word to the connection that it has."""
    from testbed.storage import nexus, paths, service

    left_behind: list[socket.socket] = []
    nexus.abandon = left_behind.append
    paths.cut = lambda connection: connection.shutdown(socket.SHUT_RD)
    return service.main(argument, fds)


def service_without_turns(argument: dict[str, Any], fds: list[int]) -> int:
    """A volume service whose connections to the target do not say which of them is the newest."""
    from testbed.storage import nexus, service

    nexus.Nexus._next_turn = lambda self: self.export  # type: ignore[method-assign]
    return service.main(argument, fds)


def service_with_patience(argument: dict[str, Any], fds: list[int]) -> int:
    """A volume service that does not take a way for lost when its far end did not run for a while."""
    from testbed.storage import paths, service

    paths.CONNECT_DEADLINE_S = 3.0
    return service.main(argument, fds)


class _Stalling:
    """The relay's socket to the target. While another has locked the file STALL, what would be sent waits,
    and the file STALLED says so."""

    def __init__(self, sink: socket.socket) -> None:
        self._sink = sink

    def sendall(self, data: memoryview) -> None:
        with STALL.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                STALLED.touch()
                fcntl.flock(lock, fcntl.LOCK_SH)
        self._sink.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)


def service_whose_relay_stalls(argument: dict[str, Any], fds: list[int]) -> int:
    """A volume service whose relay stands still, with what it has taken in for the target's NBD port."""
    from testbed.storage import relay, service

    pump = relay._pump

    def stalling(source: socket.socket, sink: Any) -> None:
        to_target = sink.family == socket.AF_INET and sink.getpeername() == TARGET[:2]
        pump(source, _Stalling(sink) if to_target else sink)  # type: ignore[arg-type]

    relay._pump = stalling
    return service.main(argument, fds)


def service_with_neither(argument: dict[str, Any], fds: list[int]) -> int:
    """A volume service that does both: nothing keeps an old write of it from arriving late."""
    from testbed.storage import nexus

    nexus.Nexus._next_turn = lambda self: self.export  # type: ignore[method-assign]
    return service_that_leaves_connections_behind(argument, fds)


def control(host: str) -> Path:
    return Path(f"/run/storage/{host}.control")


def nbd(host: str) -> Path:
    return Path(f"/run/storage/{host}.nbd")


@contextmanager
def stage(
    *, lun_bytes: int = 64 * MIB, rate_mbit: float | None = None, entry: str = SERVICE
) -> Iterator[Stage]:
    """Everything runs; nothing is formatted or mounted yet."""
    with ExitStack() as stack:
        topology = stack.enter_context(apply(plan(network(rate_mbit))))
        made = Stage(topology, lun_bytes, stack)
        made.start_target()
        for host in STORAGE:
            made.start_service(host, entry)
        yield made


@contextmanager
def mounted(**how: Any) -> Iterator[tuple[Stage, VolumeClient, VolumeClient]]:
    """A volume that both hosts have mounted; host-a is the coordinator."""
    with stage(**how) as made:
        a, b = made.client("host-a"), made.client("host-b")
        a.format()
        a.mount()
        b.mount()
        yield made, a, b


def refusal(action: Callable[[], object]) -> VolumeRefused:
    """How the service says no to what `action` asks."""
    with pytest.raises(VolumeRefused) as refused:
        action()
    assert "\n" not in str(refused.value)
    return refused.value


Both = tuple[Stage, VolumeClient, VolumeClient]


def fenced(action: Callable[[], object]) -> None:
    with pytest.raises(NbdRefused) as refused:
        action()
    assert refused.value.name == "EPERM"


class Writer:
    """Writes a rising number to one place of a disk, again and again, until it is told to end or is
    refused."""

    def __init__(self, disk: NbdClient) -> None:
        self.acknowledged = 0
        self.refused: NbdRefused | None = None
        self._disk = disk
        self._enough = threading.Event()
        self._beat = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._enough.is_set() and self.refused is None:
            number = self.acknowledged + 1
            try:
                self._disk.write(0, number.to_bytes(8, "big") * 512)
            except NbdRefused as refused:
                self.refused = refused
            except NbdLost:
                return
            with self._beat:
                self.acknowledged += self.refused is None
                self._beat.notify_all()

    def await_more(self, count: int = 20) -> None:
        """Return when so many more writes have been acknowledged."""
        with self._beat:
            goal = self.acknowledged + count
            assert self._beat.wait_for(lambda: self.acknowledged >= goal, DEADLINE_S), self.refused

    def await_refusal(self) -> NbdRefused:
        """What a write has been refused with, once one is."""
        with self._beat:
            refused = self._beat.wait_for(lambda: self.refused, DEADLINE_S)
        assert refused is not None
        return refused

    def hang_up(self) -> None:
        """Go, with a write under way."""
        self._disk.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> int:
        """The last number that was acknowledged."""
        self._enough.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self.acknowledged


@contextmanager
def writing(disk: NbdClient) -> Iterator[Writer]:
    writer = Writer(disk)
    try:
        yield writer
    finally:
        writer.end()


def number_on(disk: NbdClient) -> int:
    content = disk.read(0, 4096)
    assert content == content[:8] * 512
    return int.from_bytes(content[:8], "big")


def closed(client: VolumeClient, name: str, *disks: NbdClient) -> None:
    """Close connections, and return when the service has noticed."""
    for disk in disks:
        disk.close()
    eventually(lambda: name not in client.state()["open"])
