"""A guest on its way in: what the engine's target asks of a host."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from testbed.handover import neighbours
from testbed.host import devices
from testbed.host.description import GuestDescription
from testbed.host.hosted import HostedGuest
from testbed.host.keeper import Keeper, Stage
from testbed.host.rehearsal import rehearse
from testbed.host.shared_storage import DiskArbiter
from testbed.host.urgency import Urgency
from testbed.memory.region import Region
from testbed.migration import wire
from testbed.migration.errors import LocalError, ProtocolError
from testbed.migration.ownership import Lease
from testbed.migration.source import TraceLike
from testbed.tcp.injector import Injector
from testbed.tcp.state import ConnectionState, ListenerState
from testbed.tcp.thaw import acknowledge, prepare, release, thaw, thaw_listener
from testbed.udp import state as udp
from testbed.udp.sockets import make
from testbed.udp.state import Datagram

SPARE_SOCKETS = 16


class ArrivingGuest:
    """Implements :class:`testbed.migration.target.TargetVM`. `put_in_place(description)` makes the hosted
    guest."""

    def __init__(
        self, put_in_place: Callable[[GuestDescription], HostedGuest], keeper: Keeper, trace: TraceLike
    ) -> None:
        self._put_in_place = put_in_place
        self._keeper = keeper
        self._trace = trace
        self._stack = ExitStack()
        self._guest: HostedGuest | None = None
        self._injector: Injector | None = None
        self._spare: dict[int, list[socket.socket]] = {}
        self._registers: dict[str, Any] | None = None
        self._listeners: dict[int, socket.socket] = {}
        self._udp: list[socket.socket] = []
        self._waiting: list[Datagram] = []
        self._connections: dict[int, tuple[socket.socket, ConnectionState]] = {}
        self.urgency = Urgency()
        self.arbiter: DiskArbiter | None = None
        self._disk: tuple[socket.socket, dict[str, int]] | None = None
        self.counts: dict[str, int] = {}
        """This host's part of the network in a migration that failed, once the guest is discarded."""
        self._cut = False
        self._held: list[bytes] = []
        self._open_ns = 0
        self._first_heard_ns: int | None = None

    @property
    def hosted(self) -> HostedGuest | None:
        """The guest, once it is provisioned."""
        return self._guest

    @property
    def guest(self) -> HostedGuest:
        if self._guest is None:
            raise LocalError("the guest was not provisioned")
        return self._guest

    def provision(self, ram_bytes: int, description: Mapping[str, Any]) -> Region:
        described = GuestDescription.from_json(description)
        if described.ram_bytes != ram_bytes:
            raise ProtocolError(f"RAM of {ram_bytes} bytes for a guest of {described.ram_bytes}")
        self._guest = self._put_in_place(described)
        if (lun := self._guest.site.moving_lun) is not None:
            lun.let_go()
        self.arbiter = self._guest.arbiter(Lease("source", described.epoch))
        if self.arbiter is not None:
            self.arbiter.connect()
            self._guest.epoch = described.epoch + 1
        self._keeper.journal.write(Stage.ARRIVING, self._guest.epoch)
        return self._guest.ram

    def prepare(self, foreseen: Mapping[str, Any]) -> None:
        """Install the neighbours and the listeners, and make sockets in repair mode in advance for the
        connections."""
        try:
            count = min(int(foreseen[devices.COUNT]), self.guest.description.max_connections)
            listeners = devices.decode_sockets(bytes.fromhex(foreseen[devices.LISTENERS]))
            table = neighbours.decode(bytes.fromhex(foreseen[devices.NEIGHBOURS]))
            udp_sockets = udp.decode_sockets(bytes.fromhex(foreseen[devices.UDP_SOCKETS]))
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"what was foreseen is not device state: {error!r}") from error
        policy = neighbours.Policy(self.guest.description.neighbours)
        self.guest.network.neighbours.install(neighbours.arrived(table, policy))
        rehearse(self.guest.network.namespace)
        with self.guest.network.namespace.entered():
            for slot, state in listeners:
                if not isinstance(state, ListenerState):
                    raise ProtocolError("a connection among the listeners")
                self._listeners[slot] = thaw_listener(state)
            self._udp = [make(state) for state in udp_sockets]
            self._injector = self._stack.enter_context(Injector())
            for family in (socket.AF_INET, socket.AF_INET6):
                self._spare[family] = [prepare(family) for _ in range(count + SPARE_SOCKETS)]
        if self.guest.description.disk is not None and self.guest.site.moving_lun is None:
            # With a lease good for nothing but reading until the claim, in the instant of which it comes to
            # life.
            self._disk = self.guest.open_disk(self.guest.epoch)
        self.guest.network.egress.start()
        gc.collect()
        self.urgency.raise_for([0, self.guest.process.pid])

    def take_network(self) -> None:
        self._cut = True
        self.guest.network.cut()
        self.guest.network.announcer.announce()

    def give_way(self) -> None:
        self.urgency.give_way()

    def load(self, device: wire.Device) -> bool:
        self._take_in_frames()
        if device.version != devices.VERSION:
            return False
        if device.name == devices.REGISTERS:
            self._registers = devices.decode_registers(device.data)
            sockets = [(slot, "listener", one) for slot, one in self._listeners.items()]
            sockets += [(number, "datagrams", one) for number, one in enumerate(self._udp)]
            if self.guest.description.disk is not None and self._disk is None:
                self._disk = self.guest.open_disk(self.guest.epoch)
            connection, told = self._disk or (None, None)
            if connection is not None:
                sockets.append((0, "disk", connection))
            self.guest.process.begin_attach(self._registers, sockets, told)
            self._trace.event("mark", name="attach-begun")
        elif device.name == devices.CONNECTIONS:
            self._load_connections(device.data)
        elif device.name == devices.UDP:
            self._load_datagrams(device.data)
        else:
            return False
        return True

    def _load_connections(self, data: bytes) -> None:
        self._keeper.put_connections(data)
        with self.guest.network.namespace.entered():
            for slot, state in devices.decode_sockets(data):
                if not isinstance(state, ConnectionState):
                    raise ProtocolError("a listener among the connections")
                if slot in self._connections:
                    self._connections[slot][0].close()
                spare = self._spare.get(state.family)
                thawed = thaw(state, spare.pop() if spare else None, self._injector)
                self._connections[slot] = (thawed, state)
        self._trace.event("mark", name="connections-thawed", connections=len(self._connections))

    def _load_datagrams(self, data: bytes) -> None:
        try:
            self._waiting += udp.decode_queue(data)
        except udp.UdpStateError as error:
            raise ProtocolError(f"what waits for the guest: {error}") from error

    def ready(self) -> None:
        if self._registers is None:
            raise ProtocolError("the guest's registers did not come")
        connections = [(slot, "connection", one) for slot, (one, _) in self._connections.items()]
        self.guest.process.finish_attach(connections)
        self._take_in_frames()

    def _take_in_frames(self) -> None:
        """Make room in the kernel's hold: after a long standstill all come at once. 1 us if none has."""
        if self._cut and len(self._held) < wire.MAX_FRAMES:
            self._held += self.guest.network.held()

    @property
    def is_owned(self) -> bool:
        """The guest is this host's, whatever fails from here on."""
        return self._keeper.journal.stage is Stage.ARRIVED

    def owned(self) -> None:
        self._keeper.journal.write(Stage.ARRIVED)

    def announce(self) -> None:
        self.guest.network.announcer.announce()

    def start(self, frames: Sequence[bytes]) -> int:
        network = self.guest.network
        self._open_ns = self._trace.event("mark", name="opened")
        network.port.open()
        for slot, (one, state) in self._connections.items():
            try:
                release(one, state, probe=False)
            except OSError as error:
                # The guest is here for good: one connection may be lost now, not the guest. Its client will
                # tell.
                self._trace.event("connection-lost", slot=slot, reason=str(error))
        self._trace.event("mark", name="sockets-released")
        network.requeue(self._waiting)
        network.deliver([*frames, *self._held])
        self._trace.event("mark", name="frames-released", frames=len(frames))
        resumed_ns = int(self.guest.process.unpause()["running"])
        self._trace.event("mark", name="resumed", t_ns=resumed_ns)
        self.urgency.lower()
        self._acknowledge()
        return resumed_ns

    def _acknowledge(self) -> None:
        """Give the acknowledgements that the source owed. Where one cannot be given its client sends
        again."""
        assert self._injector is not None
        try:
            acknowledge([state for _, state in self._connections.values()], self._injector)
        except OSError as error:
            self._trace.event("not-acknowledged", reason=str(error))

    def inject(self, frames: Sequence[bytes]) -> None:
        self.guest.network.deliver_late(frames)

    def first_heard_ns(self) -> int | None:
        """When the guest's first frame left this host (CLOCK_MONOTONIC); None where it has not spoken."""
        if self._first_heard_ns is None:
            heard_ns = self.guest.network.egress.times_ns()
            self._first_heard_ns = min((t_ns for t_ns in heard_ns if t_ns >= self._open_ns), default=None)
        return self._first_heard_ns

    def settle(self) -> HostedGuest:
        """After the migration: let go of what only the move needed; returns the guest, which is this host's
        now."""
        self._close_sockets()
        return self.guest

    def give_back(self) -> list[bytes]:
        self.urgency.lower()
        if self._guest is None or not self._cut:
            return []
        frames, self._held = [*self._held, *self._guest.network.held()], []
        self._guest.network.port.depart()
        return frames

    def discard(self) -> None:
        self._close_sockets()
        if self._guest is not None:
            self.counts = self._guest.network.counts
            self._guest.close()
            self._guest = None
            self._keeper.drop()

    def _close_sockets(self) -> None:
        self._stack.close()
        if self.arbiter is not None:
            self.arbiter.close()
        if self._disk is not None:
            self._disk[0].close()
        for one in (*self._listeners.values(), *self._udp):
            one.close()
        for one, _ in self._connections.values():
            one.close()
        for spare in self._spare.values():
            for one in spare:
                one.close()
        self._listeners.clear()
        self._udp.clear()
        self._connections.clear()
        self._spare.clear()
