"""The transmission phase of NBD as bytes, from the guest's side: requests out, simple replies in. No I/O.

Whoever gives the guest its connection has shaken hands already, without structured replies. Protocol:
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import struct

NBD_REQUEST_MAGIC = 0x25609513
NBD_SIMPLE_REPLY_MAGIC = 0x67446698
NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_DISC, NBD_CMD_FLUSH = range(4)

NBD_EPERM, NBD_EIO, NBD_ENOMEM, NBD_EINVAL, NBD_ENOSPC = 1, 5, 12, 22, 28
NBD_EOVERFLOW, NBD_ENOTSUP, NBD_ESHUTDOWN = 75, 95, 108
ERROR_NAMES = {
    NBD_EPERM: "EPERM",
    NBD_EIO: "EIO",
    NBD_ENOMEM: "ENOMEM",
    NBD_EINVAL: "EINVAL",
    NBD_ENOSPC: "ENOSPC",
    NBD_EOVERFLOW: "EOVERFLOW",
    NBD_ENOTSUP: "ENOTSUP",
    NBD_ESHUTDOWN: "ESHUTDOWN",
}

_REQUEST = struct.Struct(">IHHQQI")  # magic, command flags, type, cookie, offset, length
_REPLY = struct.Struct(">IIQ")  # magic, error, cookie
REPLY_BYTES = _REPLY.size


class ReplyError(Exception):
    """What came is no simple reply, or answers nothing that was asked: the connection is of no more use."""


def request(command: int, cookie: int, offset: int, length: int) -> bytes:
    """The header of a request; a write's data follows it."""
    return _REQUEST.pack(NBD_REQUEST_MAGIC, 0, command, cookie, offset, length)


def reply(data: bytes | bytearray) -> tuple[int, int]:
    """(error, cookie) of the header of a simple reply; a read's data follows it when the error is 0. Raises
    ReplyError.
    """
    magic, error, cookie = _REPLY.unpack(data)
    if magic != NBD_SIMPLE_REPLY_MAGIC:
        raise ReplyError(f"a reply begins with {magic:#x}, not {NBD_SIMPLE_REPLY_MAGIC:#x}")
    return error, cookie


def name_of(error: int) -> str | None:
    """The name of an error, as the protocol has it; None when there is none."""
    return ERROR_NAMES.get(error, f"error {error}") if error else None
