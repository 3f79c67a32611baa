"""A blocking byte stream: whole messages in and out, with deadlines that the kernel keeps.

SO_RCVTIMEO and SO_SNDTIMEO rather than `settimeout`, which makes a socket non-blocking and puts a poll
before each call.
"""

from __future__ import annotations

import math
import socket
import struct
from pathlib import Path
from typing import TypeVar

from netns.namespace import Namespace
from testbed.storage.nbd import Talk

T = TypeVar("T")
Address = tuple[str, int] | Path
"""Where a server listens: (host, port) over TCP, or the path of a Unix socket."""


class StreamLost(Exception):
    """The other end cannot be reached, closed the connection, or was silent past the deadline. What was under
    way may or may not have been done."""


def connect(address: Address, deadline_s: float, namespace: Namespace | None = None) -> socket.socket:
    """A connected socket with `deadline_s` for each wait from then on. Raises StreamLost.

    It lives in `namespace` (None: that of the calling thread). TCP sends at once, without Nagle's delay.
    """
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    make = socket.socket if namespace is None else namespace.socket
    connection = make(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(deadline_s)
        connection.connect(str(address) if isinstance(address, Path) else address)
        if family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set_deadline(connection, deadline_s)
    except OSError as error:
        connection.close()
        raise StreamLost(f"cannot connect to {_name(address)}: {error.strerror or error}") from error
    return connection


def set_deadline(connection: socket.socket, deadline_s: float | None) -> None:
    """From here on the socket blocks, and each wait for the other end is at most so long (None: for ever)."""
    connection.settimeout(None)
    seconds = deadline_s or 0
    # Zero would mean "for ever" to the kernel.
    microseconds = max(1, math.ceil(seconds % 1 * 1e6)) if deadline_s is not None else 0
    timeval = struct.pack("ll", int(seconds), min(microseconds, 999_999))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def send(connection: socket.socket, *parts: bytes | memoryview) -> None:
    """Send all of `parts`, one after the other. Raises StreamLost."""
    left = [memoryview(part) for part in parts]
    try:
        while left:
            sent = connection.sendmsg(left)
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if left:
                left[0] = left[0][sent:]
    except OSError as error:
        raise lost(error) from error


def receive_into(connection: socket.socket, view: memoryview) -> None:
    """Fill `view`. Raises StreamLost."""
    try:
        while view:
            got = connection.recv_into(view, 0, socket.MSG_WAITALL)
            if not got:
                raise StreamLost("the other end closed the connection")
            view = view[got:]
    except OSError as error:
        raise lost(error) from error


def receive(connection: socket.socket, length: int) -> bytes:
    """The next `length` bytes. Raises StreamLost."""
    data = bytearray(length)
    receive_into(connection, memoryview(data))
    return bytes(data)


def converse(connection: socket.socket, talk: Talk[T]) -> T:
    """Play one side of a handshake; what it comes to. Raises StreamLost and what the side raises."""
    try:
        turn = next(talk)
        while True:
            if turn.send:
                send(connection, turn.send)
            turn = talk.send(receive(connection, turn.receive) if turn.receive else b"")
    except StopIteration as end:
        agreed: T = end.value
        return agreed


def lost(error: OSError) -> StreamLost:
    """What an error of a socket means to a conversation."""
    if isinstance(error, BlockingIOError):
        return StreamLost("the other end was silent past the deadline")
    return StreamLost(f"the connection broke: {error.strerror or error}")


def _name(address: Address) -> str:
    return str(address) if isinstance(address, Path) else f"{address[0]}:{address[1]}"
