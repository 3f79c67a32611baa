"""The NBD protocol, fixed newstyle, as data: bytes and back, without any I/O.

Source: doc/proto.md of NetworkBlockDevice/nbd, whose names these are. A conversation has two phases (S
server, C client), all integers big-endian::

    S greeting   C client flags   (C option   S reply, reply, ...)*         handshake
    (C request   S simple reply)*                                           transmission

     0        4       6      8         16        24       28
     +--------+-------+------+---------+---------+--------+- - - - - - - -+
     | magic  | flags | type | cookie  | offset  | length | data (WRITE)  |  request
     +--------+-------+------+---------+---------+--------+- - - - - - - -+
     +--------+--------+---------+- - - - - - - - - - - - +
     | magic  | error  | cookie  | data (READ, no error)  |                  simple reply
     +--------+--------+---------+- - - - - - - - - - - - +

Each side of the handshake is a generator: it yields a :class:`Turn`, what to send and how many bytes to
receive then, gets these bytes, and returns what was agreed on. Whoever has the socket plays it
(:func:`testbed.storage.stream.converse`). Structured replies, TLS and metadata contexts are declined.
Lengths are bounded before anything is allocated: an option at :data:`MOST_OPTION_BYTES`, a payload at
:data:`MOST_PAYLOAD_BYTES`.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple, Protocol, TypeVar

NBDMAGIC = 0x4E42444D41474943  # "NBDMAGIC"
IHAVEOPT = 0x49484156454F5054  # "IHAVEOPT"
NBD_OPTION_REPLY_MAGIC = 0x3E889045565A9
NBD_REQUEST_MAGIC = 0x25609513
NBD_SIMPLE_REPLY_MAGIC = 0x67446698

NBD_FLAG_FIXED_NEWSTYLE = 1 << 0
NBD_FLAG_NO_ZEROES = 1 << 1

NBD_OPT_EXPORT_NAME = 1
NBD_OPT_ABORT = 2
NBD_OPT_LIST = 3
NBD_OPT_INFO = 6
NBD_OPT_GO = 7

NBD_REP_ACK = 1
NBD_REP_SERVER = 2
NBD_REP_INFO = 3
NBD_REP_ERR_BIT = 1 << 31
NBD_REP_ERR_UNSUP = NBD_REP_ERR_BIT + 1
NBD_REP_ERR_INVALID = NBD_REP_ERR_BIT + 3
NBD_REP_ERR_UNKNOWN = NBD_REP_ERR_BIT + 6

NBD_INFO_EXPORT = 0
NBD_INFO_NAME = 1
NBD_INFO_BLOCK_SIZE = 3


class TransmissionFlags(IntFlag):
    """What an export can do."""

    NBD_FLAG_HAS_FLAGS = 1 << 0
    NBD_FLAG_READ_ONLY = 1 << 1
    NBD_FLAG_SEND_FLUSH = 1 << 2
    NBD_FLAG_SEND_FUA = 1 << 3
    NBD_FLAG_SEND_TRIM = 1 << 5
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8


_Can = TransmissionFlags
WRITABLE = (
    _Can.NBD_FLAG_HAS_FLAGS
    | _Can.NBD_FLAG_SEND_FLUSH
    | _Can.NBD_FLAG_SEND_FUA
    | _Can.NBD_FLAG_SEND_TRIM
    | _Can.NBD_FLAG_SEND_WRITE_ZEROES
)
"""The flags of an export that does all that :func:`judge` lets through. Add NBD_FLAG_CAN_MULTI_CONN where a
flush on one connection covers what was answered on the others."""

NBD_CMD_READ = 0
NBD_CMD_WRITE = 1
NBD_CMD_DISC = 2
NBD_CMD_FLUSH = 3
NBD_CMD_TRIM = 4
NBD_CMD_WRITE_ZEROES = 6

NBD_CMD_FLAG_FUA = 1 << 0
NBD_CMD_FLAG_NO_HOLE = 1 << 1


class Error(IntEnum):
    """The values of a reply's error field."""

    NONE = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


MOST_OPTION_BYTES = 1 << 16
MOST_NAME_BYTES = 4096
MOST_PAYLOAD_BYTES = 32 << 20
LEAST_BLOCK_BYTES = 1
PREFERRED_BLOCK_BYTES = 4096

_GREETING = struct.Struct(">QQH")
_CLIENT_FLAGS = struct.Struct(">I")
_OPTION = struct.Struct(">QII")  # magic, option, length
_OPTION_REPLY = struct.Struct(">QIII")  # magic, option, reply, length
_EXPORT = struct.Struct(">QH")  # size, transmission flags
_INFO_EXPORT = struct.Struct(">HQH")
_INFO_BLOCK_SIZE = struct.Struct(">HIII")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_ZEROES = bytes(124)
REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IIQ")


class NbdBroken(Exception):
    """The other end sent what is not this protocol. The connection is of no use any more."""


class NbdRefused(Exception):
    """A server refused; `name` says why: of :class:`Error` for a request, ENOENT for an export that it has
    not, ENOTSUP for an option that it does not know."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class NoSuchExport(Exception):
    """The client wants what is not there; the text, one line, is sent to it."""


# ---- handshake


class Turn(NamedTuple):
    """A side's turn in the handshake: send this, then receive so many bytes (0: none)."""

    send: bytes
    receive: int


T = TypeVar("T")
Talk = Generator[Turn, bytes, T]


class Described(Protocol):
    """What a handshake must know of an export."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def flags(self) -> TransmissionFlags: ...


E_co = TypeVar("E_co", bound=Described, covariant=True)


class Exports(Protocol[E_co]):
    """What a server has."""

    def names(self) -> Sequence[str]:
        """What NBD_OPT_LIST tells."""
        ...

    def find(self, name: str) -> E_co:
        """The export that a client calls `name`. NoSuchExport."""
        ...


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a client was told of its export; `payload_bytes` is the longest read or write."""

    size_bytes: int
    flags: TransmissionFlags
    payload_bytes: int


def server_handshake(exports: Exports[E_co]) -> Talk[E_co | None]:
    """The server's side. Returns the export that the client goes on with, or None if it goes, or must go."""
    data = yield Turn(_GREETING.pack(NBDMAGIC, IHAVEOPT, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES), 4)
    (client_flags,) = _CLIENT_FLAGS.unpack(data)
    if client_flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES):
        raise NbdBroken(f"client flags {client_flags:#x} that nobody offered")
    while True:
        magic, option, length = _OPTION.unpack((yield Turn(b"", _OPTION.size)))
        if magic != IHAVEOPT or length > MOST_OPTION_BYTES:
            raise NbdBroken(f"no option: magic {magic:#x}, {length} bytes of at most {MOST_OPTION_BYTES}")
        data = (yield Turn(b"", length)) if length else b""
        if option == NBD_OPT_EXPORT_NAME:
            return (yield from _export_by_name(exports, data, not client_flags & NBD_FLAG_NO_ZEROES))
        if option == NBD_OPT_ABORT:
            yield Turn(_option_reply(option, NBD_REP_ACK), 0)
            return None
        answer, export = _answer_option(exports, option, data)
        yield Turn(answer, 0)
        if export is not None:
            return export


def _export_by_name(exports: Exports[E_co], data: bytes, zeroes: bool) -> Talk[E_co | None]:
    """NBD_OPT_EXPORT_NAME: it cannot be refused but by ending the connection."""
    try:
        export = exports.find(_name(data))
    except (NoSuchExport, UnicodeDecodeError):
        return None
    yield Turn(_EXPORT.pack(export.size_bytes, export.flags) + (_ZEROES if zeroes else b""), 0)
    return export


def _answer_option(exports: Exports[E_co], option: int, data: bytes) -> tuple[bytes, E_co | None]:
    """The replies to an option, and the export that the connection is for from then on."""
    if option == NBD_OPT_LIST:
        return _list(exports, data), None
    if option not in (NBD_OPT_INFO, NBD_OPT_GO):
        return _option_reply(option, NBD_REP_ERR_UNSUP, b"no such option here"), None
    try:
        name, wanted = _parse_info(data)
    except (struct.error, UnicodeDecodeError, NbdBroken):
        return _option_reply(option, NBD_REP_ERR_INVALID, b"not a name and a list of wishes"), None
    try:
        export = exports.find(name)
    except NoSuchExport as error:
        return _option_reply(option, NBD_REP_ERR_UNKNOWN, str(error).encode()), None
    infos = [_INFO_EXPORT.pack(NBD_INFO_EXPORT, export.size_bytes, export.flags)]
    if NBD_INFO_NAME in wanted:
        infos.append(_U16.pack(NBD_INFO_NAME) + name.encode())
    if NBD_INFO_BLOCK_SIZE in wanted:
        sizes = LEAST_BLOCK_BYTES, PREFERRED_BLOCK_BYTES, MOST_PAYLOAD_BYTES
        infos.append(_INFO_BLOCK_SIZE.pack(NBD_INFO_BLOCK_SIZE, *sizes))
    replies = [_option_reply(option, NBD_REP_INFO, info) for info in infos]
    answer = b"".join([*replies, _option_reply(option, NBD_REP_ACK)])
    return answer, export if option == NBD_OPT_GO else None


def _list(exports: Exports[E_co], data: bytes) -> bytes:
    if data:
        return _option_reply(NBD_OPT_LIST, NBD_REP_ERR_INVALID, b"a list is asked for without data")
    names = [name.encode() for name in exports.names()]
    replies = [_option_reply(NBD_OPT_LIST, NBD_REP_SERVER, _U32.pack(len(name)) + name) for name in names]
    return b"".join([*replies, _option_reply(NBD_OPT_LIST, NBD_REP_ACK)])


def _parse_info(data: bytes) -> tuple[str, set[int]]:
    (length,) = _U32.unpack_from(data)
    (count,) = _U16.unpack_from(data, 4 + length)
    if len(data) != 6 + length + 2 * count:
        raise NbdBroken("lengths that do not add up")
    wanted = struct.unpack_from(f">{count}H", data, 6 + length)
    return _name(data[4 : 4 + length]), set(wanted)


def _name(data: bytes) -> str:
    if len(data) > MOST_NAME_BYTES:
        raise NbdBroken(f"a name of {len(data)} bytes, of at most {MOST_NAME_BYTES}")
    return data.decode()


def _option_reply(option: int, reply: int, data: bytes = b"") -> bytes:
    return _OPTION_REPLY.pack(NBD_OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def client_handshake(name: str) -> Talk[Agreed]:
    """The client's side: goes on with the export `name`. Raises NbdRefused with the server's word."""
    magic, kind, flags = _GREETING.unpack((yield Turn(b"", _GREETING.size)))
    if (magic, kind) != (NBDMAGIC, IHAVEOPT) or not flags & NBD_FLAG_FIXED_NEWSTYLE:
        raise NbdBroken("the other end is no NBD server of the fixed newstyle")
    client_flags = flags & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)
    encoded = name.encode()
    data = _U32.pack(len(encoded)) + encoded + struct.pack(">HH", 1, NBD_INFO_BLOCK_SIZE)
    yield Turn(_CLIENT_FLAGS.pack(client_flags) + _OPTION.pack(IHAVEOPT, NBD_OPT_GO, len(data)) + data, 0)
    described: tuple[int, int] | None = None
    payload_bytes = MOST_PAYLOAD_BYTES
    while True:
        header = yield Turn(b"", _OPTION_REPLY.size)
        magic, option, reply, length = _OPTION_REPLY.unpack(header)
        if (magic, option) != (NBD_OPTION_REPLY_MAGIC, NBD_OPT_GO) or length > MOST_OPTION_BYTES:
            raise NbdBroken(f"no reply to NBD_OPT_GO: magic {magic:#x}, option {option}, {length} bytes")
        data = (yield Turn(b"", length)) if length else b""
        if reply == NBD_REP_ACK and described is not None:
            return Agreed(described[0], TransmissionFlags(described[1]), payload_bytes)
        if reply & NBD_REP_ERR_BIT:
            raise _refused(name, reply, data)
        if reply != NBD_REP_INFO or len(data) < 2:
            raise NbdBroken(f"reply {reply:#x} to NBD_OPT_GO")
        if data[:2] == _U16.pack(NBD_INFO_EXPORT) and len(data) == _INFO_EXPORT.size:
            described = _INFO_EXPORT.unpack(data)[1:]
        elif data[:2] == _U16.pack(NBD_INFO_BLOCK_SIZE) and len(data) == _INFO_BLOCK_SIZE.size:
            payload_bytes = min(MOST_PAYLOAD_BYTES, _INFO_BLOCK_SIZE.unpack(data)[3])


def _refused(name: str, reply: int, data: bytes) -> NbdRefused:
    error = {NBD_REP_ERR_UNKNOWN: "ENOENT", NBD_REP_ERR_UNSUP: "ENOTSUP"}.get(reply, "EINVAL")
    text = data.decode(errors="replace") or "the server gives no reason"
    return NbdRefused(error, f"export {name!r}: {text}")


# ---- transmission


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for; the data of a write follows it."""

    command: int
    offset: int = 0
    length: int = 0
    flags: int = 0
    cookie: int = 0

    @property
    def fua(self) -> bool:
        """Whether the answer must wait until what was written is on stable storage."""
        return bool(self.flags & NBD_CMD_FLAG_FUA)

    @property
    def no_hole(self) -> bool:
        """Whether zeroes must take up space."""
        return bool(self.flags & NBD_CMD_FLAG_NO_HOLE)


_FLAGS = {
    NBD_CMD_READ: NBD_CMD_FLAG_FUA,
    NBD_CMD_WRITE: NBD_CMD_FLAG_FUA,
    NBD_CMD_FLUSH: NBD_CMD_FLAG_FUA,
    NBD_CMD_TRIM: NBD_CMD_FLAG_FUA,
    NBD_CMD_WRITE_ZEROES: NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE,
}
"""The commands that have an answer, and the flags that each may carry."""


def encode_request(request: Request) -> bytes:
    """The 28 bytes of a request."""
    flags, command = request.flags, request.command
    return REQUEST.pack(NBD_REQUEST_MAGIC, flags, command, request.cookie, request.offset, request.length)


def parse_request(data: bytes | bytearray) -> Request:
    """The request in 28 bytes. NbdBroken if they do not begin with its magic."""
    magic, flags, command, cookie, offset, length = REQUEST.unpack(data)
    if magic != NBD_REQUEST_MAGIC:
        raise NbdBroken(f"no request: magic {magic:#x}")
    return Request(command, offset, length, flags, cookie)


def judge(request: Request, size_bytes: int) -> Error:
    """What is wrong with a request to an export of `size_bytes`, or Error.NONE ("Error values", proto.md)."""
    allowed = _FLAGS.get(request.command)
    if allowed is None or request.flags & ~allowed:
        return Error.EINVAL
    if request.command in (NBD_CMD_READ, NBD_CMD_WRITE) and request.length > MOST_PAYLOAD_BYTES:
        return Error.EINVAL
    if request.offset + request.length > size_bytes:
        writes = request.command in (NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES)
        return Error.ENOSPC if writes else Error.EINVAL
    return Error.NONE


def simple_reply(cookie: int, error: Error = Error.NONE) -> bytes:
    """The 16 bytes of a reply; the data of a read follows them where there is no error."""
    return SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, error, cookie)


def parse_simple_reply(data: bytes | bytearray, request: Request) -> None:
    """Check the reply to `request`. NbdRefused where it says so, NbdBroken where it is none."""
    error, cookie = parse_reply_header(data)
    if cookie != request.cookie:
        raise NbdBroken(f"no reply to this request: cookie {cookie:#x}, not {request.cookie:#x}")
    if error:
        at = f"{request.length} bytes at {request.offset}"
        raise NbdRefused(error_name(error), f"the server says so of {at}")


def parse_reply_header(data: bytes | bytearray) -> tuple[int, int]:
    """(error, cookie) of a simple reply, for a client with more than one request under way; a read's data
    follows where the error is 0. NbdBroken where it is none."""
    magic, error, cookie = SIMPLE_REPLY.unpack(data)
    if magic != NBD_SIMPLE_REPLY_MAGIC:
        raise NbdBroken(f"no reply: magic {magic:#x}, not {NBD_SIMPLE_REPLY_MAGIC:#x}")
    return error, cookie


def error_name(error: int) -> str:
    """The name of a reply's error. One that the protocol does not know counts as EINVAL ("Error values",
    proto.md)."""
    return Error(error).name if error in list(Error) else "EINVAL"
