"""TCP_REPAIR: the kernel's interface to the inside of a TCP connection. Transcription only.

A socket in repair mode lets its owner read and write what TCP keeps to itself: sequence numbers, the two
queues, the options agreed in the handshake, the windows. ``connect`` in repair mode makes a connection
without sending anything, ``close`` ends one without telling the peer. The capability asked for is
CAP_NET_ADMIN in the user namespace that owns the socket's network namespace.

Sources: Linux ``include/uapi/linux/tcp.h`` and ``sockios.h`` for the numbers, ``net/ipv4/tcp.c``
(``do_tcp_setsockopt``, ``do_tcp_getsockopt``, ``tcp_get_info``) for the behaviour. Every call raises the
OSError of the system call behind it.

A repaired queue is named by the number that stands at its *end* when it is read, and at its *start* when
it is set: writing bytes into a queue moves its end. Our FIN counts one in the send queue's number, the
peer's FIN one in the receive queue's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from fcntl import ioctl
from socket import (
    IPPROTO_TCP,
    SHUT_WR,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from typing import NamedTuple

# <linux/tcp.h>
SOL_TCP = 6
TCP_NODELAY = 1
TCP_MAXSEG = 2
TCP_CORK = 3
TCP_KEEPIDLE = 4
TCP_KEEPINTVL = 5
TCP_KEEPCNT = 6
TCP_LINGER2 = 8
TCP_DEFER_ACCEPT = 9
TCP_WINDOW_CLAMP = 10
TCP_INFO = 11
TCP_CONGESTION = 13
TCP_USER_TIMEOUT = 18
TCP_REPAIR = 19
TCP_REPAIR_QUEUE = 20
TCP_QUEUE_SEQ = 21
TCP_REPAIR_OPTIONS = 22
TCP_FASTOPEN = 23
TCP_TIMESTAMP = 24
TCP_NOTSENT_LOWAT = 25
TCP_REPAIR_WINDOW = 29

TCP_REPAIR_ON = 1
TCP_REPAIR_OFF = 0
TCP_REPAIR_OFF_NO_WP = -1

TCP_NO_QUEUE = 0
TCP_RECV_QUEUE = 1
TCP_SEND_QUEUE = 2

TCPI_OPT_TIMESTAMPS = 1
TCPI_OPT_SACK = 2
TCPI_OPT_WSCALE = 4

# <net/tcp.h> and RFC 9293, 7323, 2018: the option kinds that TCP_REPAIR_OPTIONS understands.
TCPOPT_MSS = 2
TCPOPT_WINDOW = 3
TCPOPT_SACK_PERM = 4
TCPOPT_TIMESTAMP = 8

# <asm-generic/socket.h>
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_MAX_PACING_RATE = 47
SO_BUF_LOCK = 72
SOCK_SNDBUF_LOCK = 1
SOCK_RCVBUF_LOCK = 2

# <asm-generic/termbits-common.h> TIOCOUTQ, <linux/sockios.h>
SIOCINQ = 0x541B
SIOCOUTQ = 0x5411
SIOCOUTQNSD = 0x894B

_U32 = struct.Struct("=I")
_INT = struct.Struct("=i")
_REPAIR_OPTION = struct.Struct("=II")
_REPAIR_WINDOW = struct.Struct("=IIIII")
_NO_INT = bytes(4)


class TcpState(IntEnum):
    """The states of ``<net/tcp_states.h>``, as TCP_INFO reports them."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


class TcpInfo(NamedTuple):
    """What we read of ``struct tcp_info``. Of a listener, `unacked` and `sacked` mean other things."""

    state: int
    """A :class:`TcpState`, as a plain number."""
    options: int
    """TCPI_OPT bits of what the handshake agreed on."""
    scales: int
    """Window scales: the peer's in the low four bits, ours in the high ones."""
    unacked: int
    """Segments in flight; of a listener the connections waiting to be accepted."""
    sacked: int
    """Segments in flight that the peer holds already; of a listener its backlog."""
    total_retrans: int
    bytes_acked: int
    bytes_received: int
    segs_out: int
    segs_in: int
    """Segments received, of any kind: it moves whenever the peer was heard."""
    notsent_bytes: int
    """Bytes of the send queue that were never sent, a FIN of ours counted as one."""


# state 0, options 5, scales 6, unacked 24, sacked 28, total_retrans 100, bytes_acked 120, bytes_received 128,
# segs_out 136, segs_in 140, notsent_bytes 144: Linux 4.6 and later.
_TCP_INFO = struct.Struct("=B4xBBx16xII68xI16xQQIII")
TCP_INFO_BYTES = _TCP_INFO.size


class RepairWindow(NamedTuple):
    """``struct tcp_repair_window``: both windows of a connection, in bytes and sequence numbers."""

    snd_wl1: int
    """Sequence number of the segment that last changed the send window."""
    snd_wnd: int
    """Bytes that the peer is ready to take, counted from the oldest unacknowledged one."""
    max_window: int
    """Largest send window that the peer ever offered."""
    rcv_wnd: int
    """Bytes that we offered, counted from `rcv_wup`."""
    rcv_wup: int
    """The acknowledgement that we sent last; behind rcv_nxt, an acknowledgement of ours is due."""


def open_repaired(family: int) -> socket:
    """A new non-blocking TCP socket in repair mode, in this thread's network namespace.

    SO_REUSEADDR is set before the mode: set after, it would overwrite the forced reuse that repair mode
    grants, and ``bind`` beside a listener would fail.
    """
    made = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP)
    try:
        made.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        made.setsockopt(SOL_TCP, TCP_REPAIR, TCP_REPAIR_ON)
    except OSError:
        made.close()
        raise
    return made


def repair_on(sock: socket) -> None:
    """Enter repair mode. EPERM without CAP_NET_ADMIN or on a listener. The socket still acknowledges."""
    sock.setsockopt(SOL_TCP, TCP_REPAIR, TCP_REPAIR_ON)


def repair_off(sock: socket, *, probe: bool) -> None:
    """Leave repair mode; with `probe` an established socket sends an empty segment (off -1: Linux 4.19).

    Leaving sets SO_REUSEADDR to 0, whatever it was.
    """
    sock.setsockopt(SOL_TCP, TCP_REPAIR, TCP_REPAIR_OFF if probe else TCP_REPAIR_OFF_NO_WP)


def in_repair(sock: socket) -> bool:
    """Whether the socket is in repair mode."""
    return sock.getsockopt(SOL_TCP, TCP_REPAIR) == 1


def tcp_info(sock: socket) -> TcpInfo:
    """The connection's figures; OSError ENOTSUP where the kernel's structure is shorter (before Linux
    4.6)."""
    data = sock.getsockopt(SOL_TCP, TCP_INFO, TCP_INFO_BYTES)
    return TcpInfo._make(_TCP_INFO.unpack(data))


def select_queue(sock: socket, queue: int) -> None:
    """Choose the queue that the sequence number, ``send`` and a peeking ``recv`` mean from here on."""
    sock.setsockopt(SOL_TCP, TCP_REPAIR_QUEUE, queue)


def queue_end(sock: socket, queue: int) -> int:
    """Select `queue` and read the sequence number behind its last byte (and behind its FIN)."""
    sock.setsockopt(SOL_TCP, TCP_REPAIR_QUEUE, queue)
    (sequence,) = _U32.unpack(sock.getsockopt(SOL_TCP, TCP_QUEUE_SEQ, 4))
    return int(sequence)


def set_queue_start(sock: socket, queue: int, sequence: int) -> None:
    """Select `queue` and set the number of its first byte; only before ``connect`` (else EPERM)."""
    sock.setsockopt(SOL_TCP, TCP_REPAIR_QUEUE, queue)
    sock.setsockopt(SOL_TCP, TCP_QUEUE_SEQ, _U32.pack(sequence))


def repair_shutdown(sock: socket) -> None:
    """Queue our FIN as one that was sent already, without sending it."""
    sock.setsockopt(SOL_TCP, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)
    sock.shutdown(SHUT_WR)


def inq(sock: socket) -> int:
    """Bytes that were received and not read; the peer's FIN is not counted."""
    return _ioctl_int(sock, SIOCINQ)


def outq(sock: socket) -> int:
    """Bytes that are not acknowledged, sent or not; a FIN of ours counts one."""
    return _ioctl_int(sock, SIOCOUTQ)


def outq_not_sent(sock: socket) -> int:
    """Bytes that were never sent; a FIN of ours counts one."""
    return _ioctl_int(sock, SIOCOUTQNSD)


def timestamp(sock: socket) -> int:
    """The clock of our timestamp option, in its own ticks (bit 0: the ticks are microseconds, Linux 6.7)."""
    (value,) = _U32.unpack(sock.getsockopt(SOL_TCP, TCP_TIMESTAMP, 4))
    return int(value)


def set_timestamp(sock: socket, value: int) -> None:
    """Let the clock of our timestamp option go on from `value`."""
    sock.setsockopt(SOL_TCP, TCP_TIMESTAMP, _U32.pack(value))


def maximum_segment(sock: socket) -> int:
    """In repair mode: the largest segment that the peer asked for, in bytes."""
    return sock.getsockopt(SOL_TCP, TCP_MAXSEG)


def set_options(sock: socket, options: Sequence[tuple[int, int]]) -> None:
    """Set what the handshake agreed on, as (option kind, value); only before data is sent.

    Window scales are one value: the peer's, and ours shifted left by 16.
    """
    packed = [_REPAIR_OPTION.pack(kind, value) for kind, value in options]
    sock.setsockopt(SOL_TCP, TCP_REPAIR_OPTIONS, b"".join(packed))


def window(sock: socket) -> RepairWindow:
    """Both windows (Linux 4.8)."""
    return RepairWindow._make(_REPAIR_WINDOW.unpack(sock.getsockopt(SOL_TCP, TCP_REPAIR_WINDOW, 20)))


def set_window(sock: socket, value: RepairWindow) -> None:
    """Set both windows. EINVAL where `rcv_wup` or `snd_wl1` lies beyond what was received."""
    sock.setsockopt(SOL_TCP, TCP_REPAIR_WINDOW, _REPAIR_WINDOW.pack(*value))


def _ioctl_int(sock: socket, request: int) -> int:
    (value,) = _INT.unpack(ioctl(sock.fileno(), request, _NO_INT))
    return int(value)
