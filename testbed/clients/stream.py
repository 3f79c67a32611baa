"""A client's end of a TCP connection: opened without blocking, watched by a loop, ended for a reason that is
told."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from time import monotonic_ns

from testbed.clients.loop import IN, OUT, Loop

# struct tcp_info of <linux/tcp.h>: u8 tcpi_backoff at byte 4, u32 tcpi_total_retrans at 100, tcpi_dsack_dups
# at 216
_TCP_INFO = struct.Struct("=4xB95xI112xI")


class State(Enum):
    NEW = "new"
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSING = "closing"  # our FIN is sent, or asked for
    CLOSED = "closed"


@dataclass(frozen=True)
class Failure:
    """Why a connection ended, or never began, without our wish."""

    reason: str
    """`reset`, `timeout`, `refused`, `unreachable`, `no-port`, `closed` (a FIN that was not due), or an
    errno's name."""
    t_ns: int


_REASONS = {
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "no-port",
}


def reason_of(error: OSError) -> str:
    return _REASONS.get(error.errno or 0, errno.errorcode.get(error.errno or 0, str(error)))


class Stream:
    """One connection. A probe derives from it and overrides what it wants to hear of.

    NEW -> :meth:`connect` -> CONNECTING -> OPEN -> :meth:`finish` -> CLOSING -> CLOSED; :meth:`drop` and a
    failure lead to CLOSED from anywhere. In CLOSED the descriptor is closed and :attr:`retransmits`,
    :attr:`backoff` have their last values. A peer that closes first is a failure (`closed`): no guest program
    hangs up on its client.
    """

    receive_bytes = 64 << 10
    """How much is read at once, at most."""

    def __init__(self, loop: Loop, address: str, port: int) -> None:
        self.state = State.NEW
        self.failure: Failure | None = None
        self.retransmits = 0
        """Segments that our side sent again, of any kind (tcpi_total_retrans)."""
        self.retransmits_needless = 0
        """So many of them the peer already had, and said so by D-SACK (RFC 2883): probes of a tail (RFC 8985,
        7) that was late, not lost. With two segments under way Linux sends one after 2 RTT + 2 ms of
        silence."""
        self.backoff = 0
        """How often the retransmission timer had been doubled when last looked at (tcpi_backoff)."""
        self.unclosed = False
        """Our FIN was sent, or asked for, but the peer's had not come when we gave up."""
        self.local_port = 0
        self._loop = loop
        self._target = (address, port)
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket: socket.socket
        self._outbox = b""

    # What a probe overrides

    def established(self, t_ns: int) -> None:
        """The handshake is done (seen at `t_ns`)."""

    def received(self, data: bytes, t_ns: int) -> None:
        """`data` was there at `t_ns`, or shortly before."""

    def writable(self) -> None:
        """The kernel takes more, while OUT is watched: what :meth:`send` has kept, unless overridden."""
        self._flush()

    def ended(self) -> None:
        """The state is CLOSED now; `failure` says why, and is None where we had asked for it."""

    # What a probe calls

    def connect(self) -> None:
        """Begin the handshake. Its outcome comes as `established` or `ended`; never an exception for the
        network's part."""
        self._socket = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.state = State.CONNECTING
        self._loop.add(self._socket.fileno(), OUT, self._ready_connecting)
        try:
            self._socket.connect(self._target)
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)

    def send(self, data: bytes) -> None:
        """Send all of `data`; what the kernel does not take at once follows when it does."""
        if not self._outbox:
            try:
                taken = self._socket.send(data)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                self._fail(error)
                return
            if taken == len(data):
                return
            data = data[taken:]
            self._loop.change(self._socket.fileno(), IN | OUT)
        self._outbox += data

    def offer(self, data: bytes) -> int:
        """How many bytes of `data` the kernel took just now. Not to be mixed with :meth:`send`."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._fail(error)
            return 0

    def watch(self, events: int) -> None:
        """Hear only of these events (and of errors, and of a reset) from now on. Not to be mixed with
        :meth:`send`."""
        self._loop.change(self._socket.fileno(), events)

    @property
    def backlog_bytes(self) -> int:
        """Bytes given to :meth:`send` that the kernel has not taken yet."""
        return len(self._outbox)

    def finish(self) -> None:
        """Send a FIN after what has been sent, and read on until the peer's FIN ends the connection."""
        if self.state is not State.OPEN:
            return
        self.state = State.CLOSING
        if not self._outbox:
            self._shut_down()

    def drop(self) -> None:
        """Give the connection up at once. Closing with bytes unread sends a reset: for the end of a run
        only."""
        if self.state not in (State.NEW, State.CLOSED):
            self.unclosed = self.state is State.CLOSING
            self._close()

    def read_tcp_info(self) -> None:
        """Bring `retransmits` and its companions up to date; in CLOSED they stay what they last were."""
        if self.state not in (State.NEW, State.CLOSED):
            information = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            self.backoff, self.retransmits, self.retransmits_needless = _TCP_INFO.unpack(information)

    # Events

    def _ready_connecting(self, _events: int) -> None:
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail(OSError(error, os.strerror(error)))
            return
        t_ns = monotonic_ns()
        descriptor = self._socket.fileno()
        self._loop.remove(descriptor)
        self._loop.add(descriptor, IN, self._ready)
        self.local_port = self._socket.getsockname()[1]
        self.state = State.OPEN
        self.established(t_ns)

    def _ready(self, events: int) -> None:
        if events != OUT:  # readable, an error, or a hang-up: recv tells which
            try:
                data = self._socket.recv(self.receive_bytes)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(error)
                return
            if data:
                self.received(data, monotonic_ns())
            else:
                self._hung_up()
        if events & OUT and self.state is not State.CLOSED:
            self.writable()

    def _flush(self) -> None:
        try:
            taken = self._socket.send(self._outbox) if self._outbox else 0
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        self._outbox = self._outbox[taken:]
        if not self._outbox:
            self._loop.change(self._socket.fileno(), IN)
            if self.state is State.CLOSING:
                self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:  # ENOTCONN says that the connection is gone; SO_ERROR may know why
            why = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._fail(OSError(why, os.strerror(why)) if why else error)

    def _hung_up(self) -> None:
        if self.state is not State.CLOSING:
            self.failure = Failure("closed", monotonic_ns())
        self._close()

    def _fail(self, error: OSError) -> None:
        self.failure = Failure(reason_of(error), monotonic_ns())
        self._close()

    def _close(self) -> None:
        self.read_tcp_info()
        self.state = State.CLOSED
        self._loop.remove(self._socket.fileno())
        self._socket.close()
        self._outbox = b""
        self.ended()
