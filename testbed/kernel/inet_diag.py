"""inet_diag: the kernel's list of sockets, over a NETLINK_SOCK_DIAG socket. Transcription only.

Sources: Linux ``include/uapi/linux/{inet_diag,sock_diag,netlink}.h``, ``net/ipv4/inet_diag.c``. A dump shows
the sockets of the network namespace in which the netlink socket was made; no privilege is needed.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

# <linux/netlink.h>
NETLINK_SOCK_DIAG = 4
NLM_F_REQUEST = 0x001
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port

# <linux/sock_diag.h>
SOCK_DIAG_BY_FAMILY = 20

# <linux/inet_diag.h>: family, protocol, extensions, padding, states, then inet_diag_sockid (ports big-endian)
_REQUEST = struct.Struct("=BBBxI2s2s16s16sI8s")
REQUEST_BYTES = _REQUEST.size
_MESSAGE = struct.Struct("=BBBB2s2s")  # family, state, timer, retransmissions, source port, destination port
MESSAGE_BYTES = 72

_RECEIVE_BYTES = 1 << 16


def open_diag() -> socket.socket:
    """A socket that asks about this thread's network namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)


def dump(
    diag: socket.socket, family: int, states: int, local_port: int = 0
) -> Iterator[tuple[int, int, int]]:
    """TCP sockets of `family` in one of `states` (bits 1 << state), as (state, local port, remote port).

    `local_port` 0 means any. OSError as the kernel gives it: ENOENT where it lacks tcp_diag. Read it
    to its end before the next dump.
    """
    body = _REQUEST.pack(
        family, socket.IPPROTO_TCP, 0, states, local_port.to_bytes(2, "big"), b"", b"", b"", 0, b"\xff" * 8
    )
    head = _HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    diag.send(head + body)
    while True:
        data = diag.recv(_RECEIVE_BYTES)
        offset = 0
        while offset < len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                (number,) = struct.unpack_from("=i", data, offset + _HEADER.size)
                raise OSError(-number, f"inet_diag: {os.strerror(-number)}")
            _, state, _, _, near, far = _MESSAGE.unpack_from(data, offset + _HEADER.size)
            yield state, int.from_bytes(near, "big"), int.from_bytes(far, "big")
            offset += length + 3 & ~3
