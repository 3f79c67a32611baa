"""Hold new handshakes: no connection may be born half on the source and half on the target.

A client whose handshake stands half done at the freeze believes itself connected as soon as it hears the
second segment; the target knows nothing of it and would answer with a reset. So a moment before the freeze
the listeners stop to hear first segments (SYN), those already begun are waited for, and what was completed
is accepted by the guest::

    hold SYNs (HandshakeHold) -> wait for half-open ones (HalfOpen) -> pause, drain accept queues -> freeze

The first segment that is dropped costs its client a second, unless it is caught on its way in and released
after the move: that is ``testbed.handover``'s part. The second and third segments pass.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from netns import packet
from testbed.kernel import inet_diag
from testbed.kernel.tcp_repair import TcpState

_SO_DETACH_FILTER = 27
_SYN_RECV = 1 << TcpState.SYN_RECV
_FLAGS, _SYN, _SYN_OR_ACK = 13, 0x02, 0x12

NO_NEW_HANDSHAKE = packet.assemble(
    (
        packet.load(packet.BPF_LD_B_ABS, _FLAGS),
        packet.load(packet.BPF_AND_K, _SYN_OR_ACK),
        packet.Jump(packet.BPF_JEQ_K, _SYN, true="reject"),
        packet.accept(),
        packet.Label("reject"),
        packet.reject(),
    )
)
"""A filter on a TCP socket sees each segment from its TCP header on: drop what has SYN without ACK."""

_POLL_S = 0.0005


class HandshakeHold:
    """Listeners that do not hear first segments, from :meth:`hold` to :meth:`release`.

    A connection that is accepted in between inherits the filter and keeps it. That does no harm: in a
    connection a segment with SYN alone is never valid (RFC 9293 section 3.10.7.4), and at the target
    connections are made without it. A filter of the program's own on a listener is lost.
    """

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = list(listeners)
        self._held: list[socket.socket] = []

    def hold(self) -> None:
        """No new handshake begins from here on. After an OSError none of the listeners is held."""
        try:
            for listener in self._listeners:
                packet.attach_filter(listener, NO_NEW_HANDSHAKE)
                self._held.append(listener)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """The listeners hear again (rollback). Does nothing where nothing is held."""
        while self._held:
            let_in([self._held.pop()])

    def __enter__(self) -> HandshakeHold:
        self.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def let_in(listeners: Iterable[socket.socket]) -> None:
    """Let `listeners` hear first segments again, whoever made them deaf. Does nothing to those that hear."""
    for listener in listeners:
        try:
            listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        except FileNotFoundError:
            continue  # there is no filter on it


class HalfOpen:
    """Counts the handshakes of one network namespace that stand half done; to be made inside it."""

    def __init__(self) -> None:
        self._diag = inet_diag.open_diag()

    def count(self, port: int = 0) -> int:
        """Half-open connections to the local `port` (0: any)."""
        families = (socket.AF_INET, socket.AF_INET6)
        return sum(1 for family in families for _ in inet_diag.dump(self._diag, family, _SYN_RECV, port))

    def wait_for_none(self, patience_s: float, port: int = 0) -> int:
        """Wait until none is half-open, at most `patience_s`; returns how many still are.

        It asks twice a millisecond, since the kernel has no event for this. A handshake takes one round trip;
        one that is not done in good time has lost its client or a segment.
        """
        deadline_s = time.monotonic() + patience_s
        while (count := self.count(port)) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        return count

    def close(self) -> None:
        """Close the netlink socket."""
        self._diag.close()

    def __enter__(self) -> HalfOpen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
