"""Reading a UDP socket without taking anything from it, and making another like it."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from testbed.udp.state import LARGEST_BYTES, Datagram, SocketState

# asm-generic/socket.h
SO_RCVBUFFORCE = 33
SO_PEEK_OFF = 42

ROOM_BYTES = 4 << 20
"""What a receive queue may hold, its bookkeeping included, where we may say so."""


class QueueReader:
    """What lies in a socket's receive queue, looked at and left where it is, so that nothing has to be put
    back where a migration is rolled back.

    The kernel keeps the place (SO_PEEK_OFF, socket(7)): each look begins after the last. Nobody else may read
    from the socket between the first look and :meth:`close`.
    """

    def __init__(self, sock: socket.socket) -> None:
        """`sock` is this object's, to be closed with it."""
        self._socket = sock
        self._port = int(sock.getsockname()[1])
        self._looking = False

    def look(self) -> list[Datagram]:
        """The datagrams that the last look did not see, in the order of arrival. 2 us where there is none."""
        if not self._looking:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
            self._looking = True
        found: list[Datagram] = []
        while True:
            try:
                data, name = self._socket.recvfrom(LARGEST_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            sender = ip_address(name[0].partition("%")[0])
            found.append(Datagram(self._port, sender, name[1], data))

    def close(self) -> None:
        """Read on as if nobody had looked. Closing twice is allowed."""
        if self._looking:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
            self._looking = False
        self._socket.close()


def look_at(sock: socket.socket) -> SocketState:
    """Where `sock` is bound, and its buffers."""
    name = sock.getsockname()
    only_ipv6 = sock.family == socket.AF_INET6 and bool(
        sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )
    return SocketState(
        ip_address(name[0].partition("%")[0]),
        name[1],
        only_ipv6,
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
    )


def make(state: SocketState) -> socket.socket:
    """A socket like the one that was looked at, in this thread's network namespace. OSError names the
    address."""
    family = socket.AF_INET6 if state.local.version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, state.only_ipv6)
        # What is read back is twice what was set: socket(7).
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, state.send_buffer_bytes // 2)
        make_room(made, state.receive_buffer_bytes // 2)
        made.setblocking(False)
        made.bind((str(state.local), state.port))
    except OSError as error:
        made.close()
        problem = f"cannot receive datagrams on {state.local} port {state.port}: {error.strerror}"
        raise OSError(error.errno, problem) from error
    return made


def make_room(sock: socket.socket, size_bytes: int = ROOM_BYTES) -> None:
    """A receive queue of `size_bytes`; of as much as the system allows (net.core.rmem_max) for whoever is not
    root on the machine."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size_bytes)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)
