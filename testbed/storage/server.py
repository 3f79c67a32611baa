"""One connection of an NBD server: the handshake, then request after request from an export.

A nonsensical client ends its own connection only, and costs at most one payload of memory while it lasts. A
write begins when the whole of its data is here, so that half of one never lands because its client broke
off.
"""

from __future__ import annotations

import errno
import socket
from typing import Protocol, TypeVar

from testbed.storage import nbd, stream
from testbed.storage.nbd import Error, NbdRefused, Request, TransmissionFlags

KEPT_BYTES = 2 << 20
"""A buffer that a connection keeps; a longer payload gets one of its own."""

_ERRORS = {
    errno.EPERM: Error.EPERM,
    errno.EACCES: Error.EPERM,
    errno.ENOSPC: Error.ENOSPC,
    errno.EDQUOT: Error.ENOSPC,
    errno.EFBIG: Error.ENOSPC,
    errno.EINVAL: Error.EINVAL,
}


class Export(Protocol):
    """What a connection is served from. Offsets have been checked; each method raises NbdRefused or
    OSError."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def flags(self) -> TransmissionFlags: ...

    def read_into(self, offset: int, view: memoryview) -> None: ...

    def write(self, offset: int, view: memoryview) -> None: ...

    def trim(self, offset: int, length: int) -> None: ...

    def write_zeroes(self, offset: int, length: int, no_hole: bool) -> None: ...

    def flush(self) -> None:
        """All writes that have returned, on this connection or (NBD_FLAG_CAN_MULTI_CONN) another, are on
        stable storage when this returns."""
        ...


E = TypeVar("E", bound=Export)


def handshake(connection: socket.socket, exports: nbd.Exports[E], deadline_s: float) -> E | None:
    """Agree with the client on an export; None if it goes without one. Raises StreamLost, NbdBroken.

    `deadline_s` is the longest that it may be silent meanwhile; afterwards it may be silent as long as it
    likes.
    """
    stream.set_deadline(connection, deadline_s)
    export = stream.converse(connection, nbd.server_handshake(exports))
    stream.set_deadline(connection, None)
    return export


def serve(connection: socket.socket, export: Export) -> None:
    """Carry out the client's requests, one after the other, until it says that it goes. Raises StreamLost
    where it just goes, NbdBroken where it sends nonsense; the connection stays open."""
    session = _Session(connection, export)
    while session.next():
        pass


class _Session:
    def __init__(self, connection: socket.socket, export: Export) -> None:
        self._connection = connection
        self._export = export
        self._header = bytearray(nbd.REQUEST.size)
        self._kept = bytearray(1 << 16)

    def next(self) -> bool:
        """Receive a request and answer it; whether there may be another."""
        stream.receive_into(self._connection, memoryview(self._header))
        request = nbd.parse_request(self._header)
        if request.command == nbd.NBD_CMD_DISC:
            return False
        error = nbd.judge(request, self._export.size_bytes)
        data = self._buffer(request)
        if request.command == nbd.NBD_CMD_WRITE:
            stream.receive_into(self._connection, data)
            self._skip(request.length - len(data))
        if error is Error.NONE:
            error = self._carry_out(request, data)
        reads = request.command == nbd.NBD_CMD_READ and error is Error.NONE
        stream.send(self._connection, nbd.simple_reply(request.cookie, error), *([data] if reads else []))
        return True

    def _buffer(self, request: Request) -> memoryview:
        """Room for the data that goes with a request; none for what has no data, or more than is allowed."""
        length = request.length
        if request.command not in (nbd.NBD_CMD_READ, nbd.NBD_CMD_WRITE) or length > nbd.MOST_PAYLOAD_BYTES:
            return memoryview(b"")
        if length > KEPT_BYTES:
            return memoryview(bytearray(length))
        if length > len(self._kept):
            self._kept = bytearray(length)
        return memoryview(self._kept)[:length]

    def _skip(self, length: int) -> None:
        """Receive and forget: the data of a write that is too long, so that the next request can be read."""
        while length:
            part = memoryview(self._kept)[:length]
            stream.receive_into(self._connection, part)
            length -= len(part)

    def _carry_out(self, request: Request, data: memoryview) -> Error:
        export, offset, length = self._export, request.offset, request.length
        try:
            match request.command:
                case nbd.NBD_CMD_READ:
                    export.read_into(offset, data)
                case nbd.NBD_CMD_WRITE:
                    export.write(offset, data)
                case nbd.NBD_CMD_TRIM:
                    export.trim(offset, length)
                case nbd.NBD_CMD_WRITE_ZEROES:
                    export.write_zeroes(offset, length, request.no_hole)
            if request.fua or request.command == nbd.NBD_CMD_FLUSH:
                export.flush()
        except NbdRefused as refused:
            return Error[refused.name] if refused.name in Error.__members__ else Error.EIO
        except OSError as error:
            return _ERRORS.get(error.errno or 0, Error.EIO)
        return Error.NONE
