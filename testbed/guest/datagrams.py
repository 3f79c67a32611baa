"""The guest's UDP: the sockets of a program that has a UDP port, and the calls of its handler.

A datagram is one step: it is read, handled and forgotten. What lies in a socket's queue at a pause is the
kernel's and goes along (:mod:`testbed.udp`); a datagram that the program cannot send, because the kernel has
no room, is lost as on any network, and counted.
"""

from __future__ import annotations

import _socket
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from testbed.guest.memory import Memory

A_STEP = 8
"""Datagrams taken from one socket before others have their turn."""
LARGEST_BYTES = 65_535
COUNTERS = ("received", "sent", "unsent")
RECEIVED, SENT, UNSENT = range(len(COUNTERS))

Sender = tuple[str, int] | tuple[str, int, int, int]
"""An address as the socket module has it: (host, port), of IPv6 with flow and scope."""


class Poller(Protocol):
    """The part of select.epoll that is used here."""

    def register(self, fd: int, events: int) -> None: ...


class Transport(Protocol):
    """The part of a datagram socket that is used here."""

    @property
    def family(self) -> int: ...
    def fileno(self) -> int: ...
    def recvfrom(self, bufsize: int, flags: int, /) -> tuple[bytes, Any]: ...
    def sendto(self, data: Any, flags: int, address: Any, /) -> int: ...


class Datagrams:
    """The UDP sockets of one machine. `handle` is called with each datagram, and may :meth:`send`."""

    def __init__(self, memory: Memory, poller: Poller, handle: Callable[[bytes, Sender], None]) -> None:
        self.counters = memory.words("machine.datagrams", len(COUNTERS))
        self.sockets: dict[int, Transport] = {}
        """By descriptor."""
        self._poller = poller
        self._handle = handle
        self._of_family: dict[int, Transport] = {}

    def adopt(self, transport: Transport) -> None:
        """Serve one more socket, bound and not blocking."""
        self.sockets[transport.fileno()] = transport
        self._of_family[transport.family] = transport
        self._poller.register(transport.fileno(), select.EPOLLIN)

    def ready(self, fd: int, flag: Sequence[int]) -> int:
        """Handle what has come to one socket, a few datagrams at most, and none once `flag[0]` is up: how
        many there were."""
        transport = self.sockets[fd]
        for count in range(A_STEP):
            try:
                data, sender = transport.recvfrom(LARGEST_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return count
            self.counters[RECEIVED] += 1
            self._handle(data, sender)
            if flag[0]:
                return count + 1
        return A_STEP

    def send(self, data: Any, to: Sender) -> None:
        """Send a datagram; one that cannot leave is counted as unsent. KeyError for an address of a family in
        which there is no socket."""
        transport = self._of_family[socket.AF_INET if len(to) == 2 else socket.AF_INET6]
        try:
            transport.sendto(data, socket.MSG_DONTWAIT, to)
        except OSError:
            self.counters[UNSENT] += 1
        else:
            self.counters[SENT] += 1

    def stats(self) -> dict[str, int]:
        return dict(zip(COUNTERS, self.counters.tolist(), strict=True))


def udp_socket(sock: socket.socket) -> _socket.socket:
    """The cheapest socket object that there is, on the descriptor of `sock`, which is given up."""
    return _socket.socket(sock.family, socket.SOCK_DGRAM, 0, sock.detach())
