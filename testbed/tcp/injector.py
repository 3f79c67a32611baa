"""Segments in a peer's name, handed to a socket of this namespace through its loopback. They never leave
it."""

from __future__ import annotations

import socket
import time
from types import TracebackType

from testbed.kernel import tcp_repair as kernel
from testbed.tcp.segments import is_ipv4
from testbed.tcp.state import ConnectionState

PATIENCE_S = 2.0
"""Loopback delivers within the call that sends, except when soft interrupts wait for their thread, and that
one for a processor."""


class Injector:
    """Raw sockets of one network namespace (CAP_NET_RAW there); open it inside, use it from anywhere.

    The packet is routed to the namespace's own address, so it goes over ``lo`` (which must be up), and keeps
    its route on the way in: no reverse-path check looks at the peer's address.
    """

    def __init__(self) -> None:
        self._four = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        try:
            self._six = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        except OSError:
            self._four.close()
            raise

    def deliver(
        self, state: ConnectionState, packet: bytes, sock: socket.socket, expected: frozenset[int]
    ) -> None:
        """Send `packet` to the restored `sock` and wait until its TCP state is one of `expected`.

        TimeoutError where it is not within PATIENCE_S: the socket has not taken the segment. Loopback usually
        delivers before the send returns; the wait is a bounded spin, because no descriptor tells of this
        change in repair mode.
        """
        self.send(state, packet)
        if kernel.tcp_info(sock).state in expected:
            return
        deadline_s = time.monotonic() + PATIENCE_S
        while kernel.tcp_info(sock).state not in expected:
            if time.monotonic() > deadline_s:
                found = kernel.tcp_info(sock).state
                raise TimeoutError(110, f"segment not taken: in state {found}, not {sorted(expected)}")
            time.sleep(0.0001)

    def send(self, state: ConnectionState, packet: bytes) -> None:
        """Send `packet` to the local end of `state`."""
        local = state.local
        if is_ipv4(state):
            self._four.sendto(packet, (socket.inet_ntop(socket.AF_INET, local.address[-4:]), 0))
        else:
            self._six.sendto(packet, (socket.inet_ntop(socket.AF_INET6, local.address), 0, 0, local.scope))

    def close(self) -> None:
        """Close both sockets."""
        self._four.close()
        self._six.close()

    def __enter__(self) -> Injector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
