"""A guest on its way out: what the engine's source asks of a host."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from testbed.handover import neighbours
from testbed.host import devices
from testbed.host.hosted import HostedGuest
from testbed.host.keeper import Keeper, Stage
from testbed.host.rehearsal import rehearse
from testbed.host.urgency import Urgency
from testbed.migration import wire
from testbed.migration.errors import LocalError
from testbed.migration.ownership import Lease
from testbed.migration.source import TraceLike
from testbed.tcp.freeze import FreezeError, freeze, freeze_again, freeze_listener, unfreeze
from testbed.tcp.handshakes import HalfOpen, HandshakeHold
from testbed.tcp.state import ConnectionState, ListenerState
from testbed.udp import state as udp
from testbed.udp.sockets import QueueReader, look_at

HANDSHAKE_DEADLINE_S = 1.0
UDP_BATCH = 128
"""Datagrams in one device: even the largest are within a message then."""


class DepartingGuest:
    """Implements :class:`testbed.migration.source.SourceVM` for a hosted guest. One for each attempt.

    What it does is taken back by :meth:`roll_back` in the opposite order, as far as it was done: sockets out
    of repair mode, port plugged in and frames released, the network told again, handshakes let in, the
    guest's process continued.
    """

    def __init__(self, guest: HostedGuest, keeper: Keeper, trace: TraceLike) -> None:
        self._guest = guest
        self._keeper = keeper
        self._trace = trace
        self.arbiter = guest.arbiter(Lease(guest.site.name, guest.epoch))
        if self.arbiter is not None:
            self.arbiter.connect()
        self.deleted = False
        self.ram = guest.ram
        self.tracker = guest.tracker
        self._handshakes: HandshakeHold | None = None
        self._listening: list[socket.socket] = []
        self._paused = False
        self._cut = False
        self._silenced_ns = 0
        self._heard_ns: int | None = None
        self._registers: dict[str, Any] = {}
        self._kept_frames: list[bytes] = []
        self._connections: list[tuple[int, int]] = []
        self.urgency = Urgency()
        self._queues: list[QueueReader] = []
        self._late: dict[int, bytes] = {}
        """Frames made of datagrams that still lie in their queue here."""
        self.datagrams_moved = 0
        """How many datagrams lay in the queues of UDP sockets."""
        self._frozen: dict[int, tuple[socket.socket, ConnectionState]] = {}
        self.refrozen = 0
        self.last_heard_ns: int | None = None
        """When the guest's last frame left this host (CLOCK_MONOTONIC); None where it was silent, all through
        the migration."""
        self.counts: dict[str, int] = {}
        """This host's part of the network in this migration, once it is over either way."""
        guest.network.count_anew()
        guest.network.egress.start()

    def describe(self) -> Mapping[str, Any]:
        return self._guest.description.as_json() | {"epoch": self._guest.epoch}

    def foresee_devices(self) -> Mapping[str, Any]:
        """Listeners and neighbours change seldom and need not wait for the pause; of the rest, how much there
        will be."""
        self._listen()
        rehearse(self._guest.network.namespace)
        stats = self._guest.process.ask({"do": "stats"})
        listeners = [(slot, self._freeze_listener(fd)) for slot, fd in enumerate(stats["listeners"])]
        return {
            devices.COUNT: stats["connections"],
            devices.LISTENERS: devices.encode_sockets(listeners).hex(),
            devices.UDP_SOCKETS: self._udp_sockets(stats["datagram_sockets"]).hex(),
            devices.NEIGHBOURS: neighbours.encode(self._guest.network.neighbours.read()).hex(),
        }

    def hold_handshakes(self) -> None:
        """Hold new handshakes and wait until none is half done; those that stay so past a second are left
        behind."""
        network = self._guest.network
        self.urgency.raise_for([0])
        stats = self._guest.process.ask({"do": "stats"})
        self._listening = [self._guest.process.borrow(fd) for fd in stats["listeners"]]
        self._queues = [QueueReader(self._guest.process.borrow(fd)) for fd in stats["datagram_sockets"]]
        network.handshakes.start()
        self._handshakes = HandshakeHold(self._listening)
        self._handshakes.hold()
        with network.namespace.entered(), HalfOpen() as half_open:
            left = half_open.wait_for_none(HANDSHAKE_DEADLINE_S)
        self._listen()  # that may have taken a second
        self._trace.event("handshakes-held", half_open=left)

    def _listen(self) -> None:
        """When the guest was heard last: who asks it seldom may have asked long before the pause."""
        self._heard_ns = self._guest.network.egress.last_ns(self._heard_ns)

    def pause(self) -> None:
        process, network = self._guest.process, self._guest.network
        self._trace.event("mark", name="pause-asked")
        self._paused = True
        answer, sockets = process.pause()
        self._trace.event("mark", name="paused", t_ns=answer["t_ns"])
        self._cut = True
        network.divert()
        self._trace.event("mark", name="cut")
        self._registers = answer["registers"]
        self._connections = [(slot, fd) for slot, fd, kind in sockets if kind == "connection"]

    def give_way(self) -> None:
        self.urgency.give_way()

    def devices(self) -> Iterator[wire.Device]:
        yield _device(devices.REGISTERS, devices.encode_registers(self._registers))
        for batch in devices.batches((slot, self._freeze(slot, fd)) for slot, fd in self._connections):
            yield _device(devices.CONNECTIONS, devices.encode_sockets(batch))

    def silence(self) -> None:
        self._guest.network.port.silence()
        self._silenced_ns = self._trace.event("mark", name="silenced")
        self._guest.network.egress.stop()

    def late_devices(self) -> Iterator[wire.Device]:
        yield from self._heard_since()
        yield from self._waiting_datagrams()

    def _udp_sockets(self, fds: Sequence[int]) -> bytes:
        with ExitStack() as stack:
            borrowed = [stack.enter_context(self._guest.process.borrow(fd)) for fd in fds]
            return udp.encode_sockets([look_at(one) for one in borrowed])

    def _waiting_datagrams(self) -> Iterator[wire.Device]:
        """The queues stay as they are, so there is nothing to take back."""
        waiting = self._look_at_queues()
        for start in range(0, len(waiting), UDP_BATCH):
            yield _device(devices.UDP, udp.encode_queue(waiting[start : start + UDP_BATCH]))

    def _freeze_listener(self, fd: int) -> ListenerState:
        with self._guest.process.borrow(fd) as borrowed:
            return freeze_listener(borrowed)

    def _freeze(self, slot: int, fd: int) -> ConnectionState:
        borrowed = self._guest.process.borrow(fd)
        try:
            state = freeze(borrowed)
        except FreezeError as error:
            borrowed.close()
            raise LocalError(f"a connection cannot be moved: {error}") from error
        self._frozen[slot] = (borrowed, state)
        return state

    def _heard_since(self) -> Iterator[wire.Device]:
        """Connections that were heard after they were read."""
        changed = [slot for slot, (one, state) in self._frozen.items() if self._changed(slot, one, state)]
        self.refrozen = len(changed)
        for batch in devices.batches((slot, self._frozen[slot][1]) for slot in changed):
            yield _device(devices.CONNECTIONS, devices.encode_sockets(batch))

    def _changed(self, slot: int, borrowed: socket.socket, before: ConnectionState) -> bool:
        try:
            now = freeze_again(borrowed, before)
        except FreezeError as error:
            raise LocalError(f"a connection cannot be moved: {error}") from error
        self._frozen[slot] = (borrowed, now)
        return now is not before

    def exposed(self) -> None:
        self._keeper.journal.write(Stage.EXPOSED)

    def committing(self) -> None:
        if self.arbiter is None:
            self._keeper.journal.write(Stage.YIELDED)

    def take_in_frames(self) -> None:
        """Make room in the kernel's hold, where the guest stands still for so long that it would fill."""
        if self._cut and len(self._kept_frames) < wire.MAX_FRAMES:
            self._kept_frames += self._guest.network.held()

    def held_frames(self) -> list[bytes]:
        """With them, as the frames that they were, datagrams that have come to a queue since it was read."""
        late = self._guest.network.frames_of(self._look_at_queues())
        self._late.update((id(frame), frame) for frame in late)
        return late + self._frames()

    def _look_at_queues(self) -> list[udp.Datagram]:
        waiting = [datagram for queue in self._queues for datagram in queue.look()]
        self.datagrams_moved += len(waiting)
        return waiting

    def _frames(self) -> list[bytes]:
        kept, self._kept_frames = self._kept_frames, []
        return kept + self._guest.network.held()

    def roll_back(self, returned: Sequence[bytes]) -> None:
        """A step that fails does not keep the later ones from being taken; the first failure is raised at the
        end."""
        steps: list[Callable[[], object]] = [self.urgency.lower]
        steps += (partial(unfreeze, borrowed, state) for borrowed, state in self._frozen.values())
        if self._handshakes is not None:
            steps.append(self._handshakes.release)
        steps.append(self._give_back_sockets)
        back = partial(self._plug_again, returned) if self._cut else self._guest.network.return_handshakes
        steps.append(back)
        regain = self._guest_needs_its_disk_anew()
        if regain is not None:
            steps.append(self._guest.let_go_of_disk)
        # Before the guest runs under the epoch: an agent in our place is to know of it.
        steps.append(partial(self._keeper.settle, regain or self._guest.epoch))
        if self._paused:
            steps.append(self._guest.process.unpause)
        steps.append(partial(self._trace.event, "mark", name="running-again"))
        if regain is not None:
            # Last: the guest runs meanwhile, and what it asks of its disk waits.
            steps.append(partial(self._guest.regain_disk, regain))
        steps.append(self._take_counts)
        failures: list[Exception] = []
        for step in steps:
            try:
                step()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _guest_needs_its_disk_anew(self) -> int | None:
        """The epoch for which the guest has to get its disk again: one that was claimed to run on here, or
        its own where the LUN may have moved. None where the disk that it has is good.
        """
        if self.arbiter is None:
            return None
        moved = self._guest.site.moving_lun is not None and self._paused
        return self.arbiter.epoch or (self._guest.epoch if moved else None)

    def _plug_again(self, returned: Sequence[bytes]) -> None:
        network = self._guest.network
        network.port.open()
        network.deliver([*self._frames(), *(frame for frame in returned if id(frame) not in self._late)])
        network.handshakes.stop()
        network.announcer.restart()
        network.announcer.announce()

    def give_up_ownership(self) -> None:
        self._guest.network.port.depart()
        self.urgency.lower()

    def delete(self) -> None:
        """Take the last figures of this host's part of the network, then remove all of the guest, whatever
        becomes of the figures."""
        self.deleted = True
        with ExitStack() as stack:
            stack.callback(self._keeper.drop)
            stack.callback(self._guest.close)
            stack.callback(self._give_back_sockets)
            since_ns = [
                t_ns for t_ns in self._guest.network.egress.times_ns() if t_ns <= self._silenced_ns
            ]
            self.last_heard_ns = max(since_ns, default=self._heard_ns)
            self._take_counts()

    def _take_counts(self) -> None:
        self.counts = self._guest.network.counts

    def let_go(self) -> None:
        """After the migration, however it ended: close what only the move needed."""
        self._give_back_sockets()
        if not self.deleted:
            self._guest.network.egress.stop()
        if self.arbiter is not None:
            self.arbiter.close()

    def _give_back_sockets(self) -> None:
        for borrowed in (*self._listening, *(one for one, _ in self._frozen.values())):
            borrowed.close()
        for queue in self._queues:
            queue.close()
        self._listening.clear()
        self._queues.clear()
        self._frozen.clear()


def _device(name: str, data: bytes) -> wire.Device:
    return wire.Device(name, devices.VERSION, data)
