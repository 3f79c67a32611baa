"""A client of an NBD server: one export, one request at a time."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from netns.namespace import Namespace
from testbed.storage import nbd, stream
from testbed.storage.nbd import NbdRefused, Request, TransmissionFlags
from testbed.storage.stream import Address

__all__ = ["NbdClient", "NbdLost", "NbdRefused"]


class NbdLost(Exception):
    """The server cannot be reached, ended, was silent past the deadline or broke the protocol. Whether a
    request that was under way has been carried out is not known; the client is of no use any more."""


class NbdClient:
    """A connection in its transmission phase. Not for use by two threads at once.

    Every request raises NbdRefused (its `name` is EPERM, ENOSPC, EINVAL, EIO, ...; nothing but this request
    is touched) or NbdLost. Requests longer than the server takes are cut up.
    """

    def __init__(self, connection: socket.socket, agreed: nbd.Agreed) -> None:
        self.socket = connection
        self.size = agreed.size_bytes
        self.flags = agreed.flags
        self._payload_bytes = agreed.payload_bytes
        self._reply = bytearray(nbd.SIMPLE_REPLY.size)
        self._cookie = 0

    @classmethod
    def connect(
        cls, address: Address, export: str, *, deadline_s: float, namespace: Namespace | None = None
    ) -> NbdClient:
        """Connect from `namespace` (None: the thread's) and agree on `export`; `deadline_s` is the longest
        that the server may be silent, now and later. Raises NbdLost, or NbdRefused ("ENOENT": no such
        export)."""
        try:
            connection = stream.connect(address, deadline_s, namespace)
        except stream.StreamLost as error:
            raise NbdLost(str(error)) from error
        try:
            return cls(connection, stream.converse(connection, nbd.client_handshake(export)))
        except (stream.StreamLost, nbd.NbdBroken) as error:
            connection.close()
            raise NbdLost(f"export {export!r}: {error}") from error
        except NbdRefused:
            connection.close()
            raise

    @property
    def can_multi_conn(self) -> bool:
        """Whether a flush here covers what was answered on other connections."""
        return TransmissionFlags.NBD_FLAG_CAN_MULTI_CONN in self.flags

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` from `offset` on."""
        view = memoryview(buffer).cast("B")
        for start, length in self._cut(len(view)):
            self._ask(Request(nbd.NBD_CMD_READ, offset + start, length), into=view[start : start + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview, *, fua: bool = False) -> None:
        """With `fua` it is on stable storage when this returns."""
        view = memoryview(data).cast("B")
        flags = nbd.NBD_CMD_FLAG_FUA if fua else 0
        for start, length in self._cut(len(view)):
            request = Request(nbd.NBD_CMD_WRITE, offset + start, length, flags)
            self._ask(request, payload=view[start : start + length])

    def write_zeroes(self, offset: int, length: int, *, fua: bool = False, no_hole: bool = False) -> None:
        flags = (nbd.NBD_CMD_FLAG_FUA if fua else 0) | (nbd.NBD_CMD_FLAG_NO_HOLE if no_hole else 0)
        for start, part in self._cut(length):
            self._ask(Request(nbd.NBD_CMD_WRITE_ZEROES, offset + start, part, flags))

    def trim(self, offset: int, length: int) -> None:
        """The bytes are not needed any more; what they read as afterwards is not defined."""
        for start, part in self._cut(length):
            self._ask(Request(nbd.NBD_CMD_TRIM, offset + start, part))

    def flush(self) -> None:
        """All writes that have returned are on stable storage when this returns."""
        self._ask(Request(nbd.NBD_CMD_FLUSH))

    def detach(self) -> socket.socket:
        """The socket, for another to go on with, without a deadline. This client is of no use any more."""
        stream.set_deadline(self.socket, None)
        return socket.socket(fileno=self.socket.detach())

    def close(self) -> None:
        """Say that we go, and go. Nothing happens where the server is gone already."""
        if self.socket.fileno() < 0:
            return
        try:
            stream.send(self.socket, nbd.encode_request(Request(nbd.NBD_CMD_DISC)))
        except stream.StreamLost:
            pass  # it went first
        finally:
            self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _cut(self, length: int) -> list[tuple[int, int]]:
        """(start, length) of each request that so many bytes take."""
        most = self._payload_bytes
        return [(start, min(most, length - start)) for start in range(0, length, most)]

    def _ask(
        self, request: Request, payload: memoryview | None = None, into: memoryview | None = None
    ) -> None:
        self._cookie += 1
        request = Request(request.command, request.offset, request.length, request.flags, self._cookie)
        head = nbd.encode_request(request)
        try:
            stream.send(self.socket, head, *([payload] if payload is not None else []))
            stream.receive_into(self.socket, memoryview(self._reply))
            nbd.parse_simple_reply(self._reply, request)
            if into is not None:
                stream.receive_into(self.socket, into)
        except (stream.StreamLost, nbd.NbdBroken) as error:
            raise NbdLost(str(error)) from error
