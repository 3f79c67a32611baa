"""The socket options that move along: one table, read from a socket and set on another.

The fields of :class:`testbed.tcp.state.SocketOptions` stand in the order of the tables here, behind the
one that is a file flag (O_NONBLOCK). Reading costs a system call each, so what every new socket has is
set only where it differs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

from testbed.kernel import tcp_repair as kernel
from testbed.tcp.state import INET, UNPACED, SocketOptions

_SOCKET = socket.SOL_SOCKET
_TCP = kernel.SOL_TCP
_LINGER = struct.Struct("=ii")
_TCP_WMEM = Path("/proc/sys/net/ipv4/tcp_wmem")

_FIRST = (
    (_SOCKET, socket.SO_REUSEADDR),
    (_SOCKET, socket.SO_REUSEPORT),
    (_SOCKET, socket.SO_KEEPALIVE),
    (_SOCKET, socket.SO_RCVLOWAT),
)
_REST = (
    (_SOCKET, kernel.SO_BUF_LOCK),
    (_SOCKET, socket.SO_SNDBUF),
    (_SOCKET, socket.SO_RCVBUF),
    (_TCP, kernel.TCP_NODELAY),
    (_TCP, kernel.TCP_CORK),
    (_TCP, kernel.TCP_KEEPIDLE),
    (_TCP, kernel.TCP_KEEPINTVL),
    (_TCP, kernel.TCP_KEEPCNT),
    (_TCP, kernel.TCP_LINGER2),
    (_TCP, kernel.TCP_USER_TIMEOUT),
    (_TCP, kernel.TCP_NOTSENT_LOWAT),
)
_CLASS_4 = (socket.IPPROTO_IP, socket.IP_TOS)
_CLASS_6 = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)


def read_options(sock: socket.socket) -> SocketOptions:
    """What the program set on `sock`. Before repair mode: the mode hides SO_REUSEADDR."""
    get = sock.getsockopt
    nonblocking = fcntl.fcntl(sock.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK != 0
    linger = _LINGER.unpack(get(_SOCKET, socket.SO_LINGER, 8))
    first = [get(level, name) for level, name in _FIRST]
    rest = [get(level, name) for level, name in _REST]
    traffic_class = get(*(_CLASS_4 if sock.family == INET else _CLASS_6))
    # Of an unsigned long whatever fits (net/core/sock.c, sk_getsockopt).
    pacing = int.from_bytes(get(_SOCKET, kernel.SO_MAX_PACING_RATE, 8), sys.byteorder)
    return SocketOptions._make((nonblocking, *first, *linger, *rest, traffic_class, pacing))


def read_congestion_control(sock: socket.socket) -> str:
    """Name of the congestion control algorithm."""
    return sock.getsockopt(_TCP, kernel.TCP_CONGESTION, 16).partition(b"\0")[0].decode("ascii")


def apply_options(sock: socket.socket, options: SocketOptions, congestion_control: str) -> None:
    """Set all that can be set while the socket is in repair mode, on a new socket.

    Buffer sizes are not among it, nor SO_REUSEADDR (:func:`apply_reuse`). ENOENT
    names a congestion control that this machine lacks.
    """
    put = sock.setsockopt
    # The defaults of these are sysctls of the namespace, which may differ from the source's: always set.
    put(_TCP, kernel.TCP_CONGESTION, congestion_control.encode())
    put(_TCP, kernel.TCP_KEEPIDLE, options.keep_idle_s)
    put(_TCP, kernel.TCP_KEEPINTVL, options.keep_interval_s)
    put(_TCP, kernel.TCP_KEEPCNT, options.keep_count)
    put(_TCP, kernel.TCP_LINGER2, options.linger2_s)
    if options.no_delay:
        put(_TCP, kernel.TCP_NODELAY, 1)
    if options.keep_alive:
        put(_SOCKET, socket.SO_KEEPALIVE, 1)
    if options.user_timeout_ms:
        put(_TCP, kernel.TCP_USER_TIMEOUT, options.user_timeout_ms)
    if options.not_sent_low_bytes:
        put(_TCP, kernel.TCP_NOTSENT_LOWAT, options.not_sent_low_bytes)
    if options.reuse_port:
        put(_SOCKET, socket.SO_REUSEPORT, 1)
    if options.linger:
        put(_SOCKET, socket.SO_LINGER, _LINGER.pack(options.linger, options.linger_s))
    if options.receive_low_bytes != 1:
        put(_SOCKET, socket.SO_RCVLOWAT, options.receive_low_bytes)
    if options.most_bytes_per_s != UNPACED:
        put(_SOCKET, kernel.SO_MAX_PACING_RATE, options.most_bytes_per_s.to_bytes(8, sys.byteorder))
    if options.traffic_class:
        put(*(_CLASS_4 if sock.family == INET else _CLASS_6), options.traffic_class)


def apply_reuse(sock: socket.socket, options: SocketOptions) -> None:
    """Set SO_REUSEADDR again after repair mode, which leaves it at 0."""
    if options.reuse_address:
        sock.setsockopt(_SOCKET, socket.SO_REUSEADDR, 1)


def make_room_to_receive(sock: socket.socket, size_bytes: int) -> None:
    """Let the receive buffer be at least `size_bytes`, as far as net.ipv4.tcp_rmem allows, and still tuned.

    SO_RCVBUF would end the tuning and stop at net.core.rmem_max. SO_RCVLOWAT makes the buffer twice its value
    (``tcp_set_rcvlowat``), asks for no privilege, and the buffer stays when the mark goes back.
    """
    if sock.getsockopt(_SOCKET, socket.SO_RCVBUF) < size_bytes:
        sock.setsockopt(_SOCKET, socket.SO_RCVLOWAT, size_bytes // 2)
        sock.setsockopt(_SOCKET, socket.SO_RCVLOWAT, 1)


class NoRoom(OSError):
    """A send buffer cannot be made as large as it must be: `size_bytes`."""

    def __init__(self, reached_bytes: int, size_bytes: int) -> None:
        text = f"send buffer of {reached_bytes} bytes, {size_bytes} are needed: raise net.core.wmem_max"
        super().__init__(errno.ENOBUFS, text)
        self.size_bytes = size_bytes


def make_room_to_send(sock: socket.socket, size_bytes: int, locks: int) -> None:
    """Let the send buffer be at least `size_bytes`; NoRoom where net.core.wmem_max forbids it."""
    size_bytes += size_bytes & 1
    reached = sock.getsockopt(_SOCKET, socket.SO_SNDBUF)
    if reached < size_bytes:
        reached = set_buffer(sock, socket.SO_SNDBUF, size_bytes)
        set_buffer_locks(sock, locks)
    if reached < size_bytes:
        raise NoRoom(reached, size_bytes)


def open_with_room(family: int, size_bytes: int) -> socket.socket:
    """A socket in repair mode with a send buffer of `size_bytes`, made in this thread's network namespace.

    A send buffer that the kernel tuned may be larger than net.core.wmem_max, past which only the real root
    may set one. But new sockets begin with the default in the namespace's own net.ipv4.tcp_wmem, which
    belongs to whoever owns the namespace; it is raised for this one. OSError where it may not be.
    """
    before = _TCP_WMEM.read_text()
    least, _, most = before.split()
    _TCP_WMEM.write_text(f"{least} {size_bytes} {most}")
    try:
        return kernel.open_repaired(family)
    finally:
        _TCP_WMEM.write_text(before)


def set_buffer(sock: socket.socket, which: int, size_bytes: int) -> int:
    """Set and lock SO_SNDBUF or SO_RCVBUF to `size_bytes` (as ``getsockopt`` tells it); the size reached.

    Past net.core.wmem_max and rmem_max only the real root may go: without it, the size reached is theirs.
    """
    sock.setsockopt(_SOCKET, which, size_bytes // 2)
    reached = sock.getsockopt(_SOCKET, which)
    if reached < size_bytes - 1:
        force = kernel.SO_SNDBUFFORCE if which == socket.SO_SNDBUF else kernel.SO_RCVBUFFORCE
        try:
            sock.setsockopt(_SOCKET, force, size_bytes // 2)
        except PermissionError:
            return reached
        reached = sock.getsockopt(_SOCKET, which)
    return reached


def set_buffer_locks(sock: socket.socket, locks: int) -> None:
    """Say which buffer sizes are the program's own (Linux 5.14)."""
    sock.setsockopt(_SOCKET, kernel.SO_BUF_LOCK, locks)
