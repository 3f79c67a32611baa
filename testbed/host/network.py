"""A guest's place in its host's network: namespace and wire, port, held frames, announcements, neighbours.

Everything here is opened when the guest is provisioned, because opening a packet socket takes tens of
milliseconds and the switchover has none.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from netns.namespace import Namespace
from testbed.handover.announcement import Kind, build
from testbed.handover.announcer import Announcer
from testbed.handover.delivery import Delivery
from testbed.handover.egress import EgressWatch
from testbed.handover.hold import FrameHold, FrameRelease, SynHold
from testbed.handover.neighbours import NeighbourTable
from testbed.handover.port import GuestPort
from testbed.handover.wiring import GUEST_INTERFACE, HOLD_PORTS, PORTS, GuestNic, GuestWiring, PortNames
from testbed.host.description import GuestDescription
from testbed.host.plain_disk import Storage
from testbed.host.shared_storage import SharedStorage
from testbed.udp.frames import frames
from testbed.udp.state import Address, Datagram

GUEST_MTU = 1500


@dataclass(frozen=True)
class Site:
    """The host that this is: its name, its namespace, its interfaces by name, and its way to shared storage;
    and of the guest that this agent is for, the ports that are its own. `agent` is what the agent is called:
    as the host, where it has only one."""

    name: str
    namespace: Namespace
    bridge: str
    uplink: str
    storage: Storage | None = None
    agent: str = ""
    ports: PortNames = PORTS
    port_delay_s: float = 0.0
    """How long the port of a guest that comes here forwards nothing, as under a spanning tree."""

    @property
    def guest_namespace(self) -> str:
        return guest_namespace(self.agent or self.name)

    @property
    def moving_lun(self) -> SharedStorage | None:
        """The storage, if it is a LUN that is one host's at a time."""
        return self.storage if isinstance(self.storage, SharedStorage) and self.storage.moves else None


def guest_namespace(agent: str) -> str:
    """The name of the namespace in which the guest of an agent lives."""
    return f"guest-{agent}"


class GuestNetwork:
    """All of a guest's network on one host, made silent and unplugged. Close it to remove it."""

    def __init__(self, site: Site, description: GuestDescription, *, adopted: bool = False) -> None:
        """`adopted` where the namespace and its wire are there, left by an agent that is gone: nothing of
        theirs is changed then. Raises OSError or pyroute2's NetlinkError; nothing is left then.
        """
        mac = description.mac(site.name)
        ipv4, ipv6 = IPv4Interface(description.ipv4), IPv6Interface(description.ipv6)
        identity = description.identity
        others = [other for other in identity.macs if other != mac]
        self._mac, self._ipv4, self._ipv6 = mac, ipv4.ip, ipv6.ip
        self._holding = description.hold
        self._handshakes_held = self._handshakes_dropped = 0
        with ExitStack() as stack:
            nic = GuestNic(mac, ipv4, ipv6)
            name, ports = site.guest_namespace, site.ports
            if adopted:
                wiring = GuestWiring(site.namespace, Namespace.open(name), nic, ports.guest)
            else:
                wiring = GuestWiring.make(site.namespace, site.bridge, name, nic, ports.guest)
            stack.enter_context(wiring)
            self.namespace = wiring.namespace
            self.port = GuestPort(
                site.namespace,
                bridge=site.bridge,
                port=ports.guest,
                hold=ports.hold,
                uplink=site.uplink,
                mac=mac,
            )
            stack.callback(self.port.close)
            self._frames = FrameHold(site.namespace, ports.hold_end, identity)
            stack.callback(self._frames.close)
            self.handshakes = SynHold(site.namespace, ports.guest, identity)
            stack.callback(self.handshakes.close)
            self.egress = EgressWatch(site.namespace, ports.guest)
            stack.callback(self.egress.close)
            self._release = FrameRelease(site.namespace, ports.guest)
            stack.callback(self._release.close)
            self._rewrite = (others[0], mac) if others else None
            self._delivery = Delivery(self.port, self._frames, self._release, rewrite=self._rewrite)
            announcements = build(Kind(description.announce), mac, ipv4.ip, ipv6.ip)
            silent = {ports.guest, *HOLD_PORTS}
            self.announcer = Announcer(site.namespace, site.bridge, announcements, silent=silent)
            stack.callback(self.announcer.close)
            self.neighbours = NeighbourTable(self.namespace, GUEST_INTERFACE)
            stack.callback(self.neighbours.close)
            self._stack = stack.pop_all()

    def cut(self) -> None:
        """The guest hears and says nothing; what comes for it is held from this instant on."""
        self._frames.start()
        self.port.cut()

    def divert(self) -> None:
        """What comes for the guest is held from this instant on; it can still be heard itself."""
        self._frames.start()
        self.port.divert()

    def count_anew(self) -> None:
        """A migration begins here: what is counted from now on is of this one alone."""
        self._frames.start()
        self._release.released = self._release.dropped = 0
        self._handshakes_held = self._handshakes_dropped = 0
        self.handshakes.dropped()
        self.announcer.sent = 0

    def held(self) -> list[bytes]:
        """Frames held since the last call, handshakes first, which came before the cut.

        Where holding is off the frames are lost, as on a hypervisor; the handshakes are not: a real guest
        takes them with it in its kernel's memory.
        """
        handshakes = self.handshakes.drain()
        self._handshakes_held += len(handshakes)
        frames = self._frames.drain()
        return handshakes + (frames if self._holding else [])

    def return_handshakes(self) -> None:
        """The guest is not cut off and hears handshakes itself again: give it those held meanwhile."""
        held = self.handshakes.drain()
        self.handshakes.stop()
        self._handshakes_held += len(held)
        self._release.release(held)

    def requeue(self, datagrams: Sequence[Datagram]) -> None:
        """Give the guest datagrams that its kernel had taken in at the source, and its program not yet:
        before :meth:`deliver`, for they came before what was held. They are no held frames, and not counted
        as such.
        """
        released = self._release.released
        self._release.release(self.frames_of(datagrams))
        self._release.released = released

    def frames_of(self, datagrams: Sequence[Datagram]) -> list[bytes]:
        """The frames in which `datagrams` came for the guest on this host."""
        return [
            frame
            for number, one in enumerate(datagrams, 1)
            for frame in frames(one, self._mac, self._address(one), GUEST_MTU, number)
        ]

    def _address(self, datagram: Datagram) -> Address:
        return self._ipv4 if datagram.sender.version == 4 else self._ipv6

    def deliver(self, earlier: Sequence[bytes]) -> None:
        """Release `earlier`, then what is held here, and plug the guest in. Its sockets are live by then."""
        if self._holding:
            self._delivery.deliver(earlier)
        else:
            self._release_only(earlier)
            self.port.plug()

    def deliver_late(self, frames: Sequence[bytes] = ()) -> None:
        """Release frames that came to the other host after all, and what slipped into the hold here."""
        if self._holding:
            self._delivery.late(frames)
        else:
            self._release_only(frames)

    def _release_only(self, frames: Sequence[bytes]) -> None:
        """Holding is off: what is held here is lost."""
        self._release.release(frames, rewrite=self._rewrite)
        self._frames.drain()

    def hold_up(self, duration_ns: int) -> tuple[int, int]:
        """Hold what comes for the guest for so long, then give it to it; when that began and when it ended
        (CLOCK_MONOTONIC, ns)."""
        begun_ns = time.monotonic_ns()
        self.divert()
        while (left_ns := begun_ns + duration_ns - time.monotonic_ns()) > 0:
            select.select([], [], [], left_ns / 1e9)
        ended_ns = time.monotonic_ns()
        self.deliver([])
        return begun_ns, ended_ns

    def late_descriptors(self) -> tuple[int, ...]:
        """Descriptors that poll as readable when :meth:`deliver_late` has something to deliver."""
        return self._frames.descriptors()

    @property
    def counts(self) -> dict[str, int]:
        """Frames held, released and dropped on this host in the migration that came last, and announcements
        sent."""
        held, dropped = self._frames.held, self._frames.dropped
        self._handshakes_dropped += self.handshakes.dropped()
        dropped += self._release.dropped + self._handshakes_dropped
        return {
            "frames_held": self._handshakes_held + (held if self._holding else 0),
            "frames_released": self._release.released,
            "frames_dropped": dropped if self._holding else dropped + held,
            "announcements_sent": self.announcer.sent,
        }

    def close(self) -> None:
        """Remove it all. 50 ms and more, so after the migration."""
        self._stack.close()
