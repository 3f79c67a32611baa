"""Sending announcements from a host, for a VM that is silent."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection
from contextlib import suppress

from netns.namespace import Namespace
from testbed.handover import announcement
from testbed.kernel import netlink
from testbed.kernel.netlink import RouteSocket


class Announcer:
    """Says on every port of a bridge, but for those named, where the VM is: to the uplink and to the local
    clients.

    Not on the bridge itself, which would flood it to the guest too: a guest that hears somebody else claim
    its address complains. What is sent out of a port does not pass the bridge's own table.
    """

    def __init__(
        self, host: Namespace, bridge: str, frames: tuple[bytes, ...], *, silent: Collection[str]
    ) -> None:
        """Open the socket and find the ports; `silent` names those left out. OSError if there is no such
        bridge.
        """
        self._frames = frames
        self._first_ns: int | None = None
        self.rounds = 0
        self.lose_next = False
        """The next round goes nowhere, as if the network had lost it."""
        self.sent = 0
        """Frames sent, each out of as many ports as would take it."""
        with RouteSocket(
            host.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETLINK_ROUTE)
        ) as ask:
            ports = ask.ports(ask.link(bridge).index)
        self._ports = tuple(port.name for port in ports if port.name not in silent)
        self._packet = host.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)

    def announce(self) -> int:
        """Send one round now; returns its time (CLOCK_MONOTONIC). 20 us for two frames on one port.

        A port that is gone, down or full is left out: nobody can be told anything there, and a guest that
        could run is not to wait for it.
        """
        now_ns = time.monotonic_ns()
        lost, self.lose_next = self.lose_next, False
        taken = 0
        for port in self._ports if not lost else ():
            with suppress(OSError):
                for number, frame in enumerate(self._frames, 1):
                    self._packet.sendto(frame, (port, 0))
                    taken = max(taken, number)
        self.sent += taken
        self._first_ns = self._first_ns or now_ns
        self.rounds += 1
        return now_ns

    def due_ns(self) -> int | None:
        """When the next round is due (CLOCK_MONOTONIC): at once if none was sent; None when all have been."""
        if self._first_ns is None:
            return time.monotonic_ns()
        return announcement.due_ns(self._first_ns, self.rounds)

    def restart(self) -> None:
        """Begin the schedule again: the next announcement is a first one (a rollback after the target
        announced).
        """
        self._first_ns = None
        self.rounds = 0

    def close(self) -> None:
        self._packet.close()
