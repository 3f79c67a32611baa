"""The NBD protocol as data: each side of it against the other, against the document, and against nonsense."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.storage import nbd
from testbed.storage.nbd import Error, NbdBroken, NbdRefused, NoSuchExport, Request, TransmissionFlags

SIZE = 1 << 20
MULTI = nbd.WRITABLE | TransmissionFlags.NBD_FLAG_CAN_MULTI_CONN
OPTION = struct.Struct(">QII")
REPLY = struct.Struct(">QIII")
FLAGS = struct.pack(">I", 3)


@dataclass
class Disk:
    size_bytes: int = SIZE
    flags: TransmissionFlags = MULTI


class Shelf:
    """A server's exports, by name."""

    def __init__(self, **disks: Disk) -> None:
        self.disks = disks

    def names(self) -> list[str]:
        return sorted(self.disks)

    def find(self, name: str) -> Disk:
        if name not in self.disks:
            raise NoSuchExport(f"no {name}")
        return self.disks[name]


def shelf() -> Shelf:
    return Shelf(csv=Disk(), other=Disk(512, nbd.WRITABLE))


class Side:
    """One side of a handshake, fed with bytes as they come; what it sends, and what came out in the end."""

    def __init__(self, talk: nbd.Talk[Any]) -> None:
        self.sent = b""
        self.result: Any = None
        self.ended = False
        self._talk = talk
        self._inbox = b""
        self._wants = 0
        self._go(lambda: next(talk))

    def feed(self, data: bytes) -> None:
        self._inbox += data
        while not self.ended and self._wants and len(self._inbox) >= self._wants:
            taken, self._inbox = self._inbox[: self._wants], self._inbox[self._wants :]
            self._go(lambda taken=taken: self._talk.send(taken))  # type: ignore[misc]

    def take(self) -> bytes:
        sent, self.sent = self.sent, b""
        return sent

    def _go(self, step: Callable[[], nbd.Turn]) -> None:
        try:
            turn = step()
            while not turn.receive:
                self.sent += turn.send
                turn = self._talk.send(b"")
            self.sent += turn.send
            self._wants = turn.receive
        except StopIteration as end:
            self.result, self.ended = end.value, True


def server_after_flags(exports: Shelf, flags: bytes = FLAGS) -> Side:
    server = Side(nbd.server_handshake(exports))
    server.feed(flags)
    server.take()
    return server


def option(number: int, data: bytes = b"") -> bytes:
    return OPTION.pack(nbd.IHAVEOPT, number, len(data)) + data


def info(name: str, *wanted: int) -> bytes:
    encoded = name.encode()
    return struct.pack(f">I{len(encoded)}sH{len(wanted)}H", len(encoded), encoded, len(wanted), *wanted)


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """(option, reply, data) of each reply to options."""
    found = []
    while data:
        magic, number, reply, length = REPLY.unpack_from(data)
        assert magic == nbd.NBD_OPTION_REPLY_MAGIC
        found.append((number, reply, data[REPLY.size : REPLY.size + length]))
        data = data[REPLY.size + length :]
    return found


# ---- the two sides against each other


def agree(name: str, exports: Shelf, cut: int = 1 << 20) -> tuple[Side, Side]:
    """Let both talk, `cut` bytes at a time, until there is nothing more to be said."""
    server, client = Side(nbd.server_handshake(exports)), Side(nbd.client_handshake(name))
    while server.sent or client.sent:
        for side, other in ((server, client), (client, server)):
            data = side.take()
            for start in range(0, len(data), cut):
                other.feed(data[start : start + cut])
    return server, client


@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
def test_both_sides_agree_on_an_export(cut: int) -> None:
    exports = shelf()
    server, client = agree("csv", exports, cut)
    assert server.result is exports.disks["csv"]
    assert client.result == nbd.Agreed(SIZE, MULTI, nbd.MOST_PAYLOAD_BYTES)


def test_an_export_that_is_not_there_is_refused_with_the_servers_word() -> None:
    with pytest.raises(NbdRefused, match="no such") as refused:
        agree("such", shelf())
    assert refused.value.name == "ENOENT"


def test_a_server_that_knows_no_go_is_refused() -> None:
    client = Side(nbd.client_handshake("csv"))
    client.feed(struct.pack(">QQH", nbd.NBDMAGIC, nbd.IHAVEOPT, 3))
    with pytest.raises(NbdRefused) as refused:
        client.feed(REPLY.pack(nbd.NBD_OPTION_REPLY_MAGIC, nbd.NBD_OPT_GO, nbd.NBD_REP_ERR_UNSUP, 0))
    assert refused.value.name == "ENOTSUP"


@pytest.mark.parametrize(
    "greeting",
    [
        struct.pack(">QQH", nbd.NBDMAGIC, 0x00420281861253, 3),  # oldstyle
        struct.pack(">QQH", nbd.NBDMAGIC, nbd.IHAVEOPT, 0),  # newstyle, not fixed
        b"HTTP/1.1 400 Bad R",
    ],
)
def test_what_is_no_fixed_newstyle_server_is_seen(greeting: bytes) -> None:
    with pytest.raises(NbdBroken, match="no NBD server"):
        Side(nbd.client_handshake("csv")).feed(greeting)


# ---- the server, by the document


@pytest.mark.parametrize(("client_flags", "zeroes"), [(3, 0), (1, 124), (0, 124)])
def test_export_name_ends_the_handshake(client_flags: int, zeroes: int) -> None:
    """With 124 bytes of nothing, unless both sides have waived them."""
    server = server_after_flags(shelf(), struct.pack(">I", client_flags))
    server.feed(option(nbd.NBD_OPT_EXPORT_NAME, b"csv"))
    assert server.take() == struct.pack(">QH", SIZE, MULTI) + bytes(zeroes)
    assert server.result == Disk()


@pytest.mark.parametrize("name", [b"nothing", b"\xff\xfe"])
def test_export_name_of_what_is_not_there_ends_the_session(name: bytes) -> None:
    server = server_after_flags(shelf())
    server.feed(option(nbd.NBD_OPT_EXPORT_NAME, name))
    assert (server.ended, server.result, server.sent) == (True, None, b"")


def test_abort_is_acknowledged_and_ends_the_session() -> None:
    server = server_after_flags(shelf())
    server.feed(option(nbd.NBD_OPT_ABORT, b"whatever"))
    assert replies(server.take()) == [(nbd.NBD_OPT_ABORT, nbd.NBD_REP_ACK, b"")]
    assert (server.ended, server.result) == (True, None)


def test_list_names_every_export() -> None:
    server = server_after_flags(shelf())
    server.feed(option(nbd.NBD_OPT_LIST))
    names = [struct.pack(">I", len(name)) + name for name in (b"csv", b"other")]
    expected = [(nbd.NBD_OPT_LIST, nbd.NBD_REP_SERVER, name) for name in names]
    assert replies(server.take()) == [*expected, (nbd.NBD_OPT_LIST, nbd.NBD_REP_ACK, b"")]


def test_list_takes_no_data() -> None:
    server = server_after_flags(shelf())
    server.feed(option(nbd.NBD_OPT_LIST, b"x"))
    assert [reply for _, reply, _ in replies(server.take())] == [nbd.NBD_REP_ERR_INVALID]


@pytest.mark.parametrize("number", [4, 5, 8, 9, 10, 11, 4711])
def test_an_unknown_option_is_declined_and_the_next_one_understood(number: int) -> None:
    """TLS, structured replies and metadata contexts among them."""
    server = server_after_flags(shelf())
    server.feed(option(number, b"some data") + option(nbd.NBD_OPT_ABORT))
    first, second = replies(server.take())
    assert first[:2] == (number, nbd.NBD_REP_ERR_UNSUP)
    assert second[1] == nbd.NBD_REP_ACK


def test_info_tells_and_does_not_end_the_handshake() -> None:
    server = server_after_flags(shelf())
    wanted = nbd.NBD_INFO_NAME, nbd.NBD_INFO_BLOCK_SIZE, 999
    server.feed(option(nbd.NBD_OPT_INFO, info("csv", *wanted)))
    told = [data for _, reply, data in replies(server.take()) if reply == nbd.NBD_REP_INFO]
    assert told == [
        struct.pack(">HQH", nbd.NBD_INFO_EXPORT, SIZE, MULTI),
        struct.pack(">H", nbd.NBD_INFO_NAME) + b"csv",
        struct.pack(">HIII", nbd.NBD_INFO_BLOCK_SIZE, 1, 4096, 32 << 20),
    ]
    assert not server.ended
    server.feed(option(nbd.NBD_OPT_GO, info("other")))
    assert server.result == Disk(512, nbd.WRITABLE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\5csv\0\0",
        b"\xff\xff\xff\xffcsv\0\0",
        b"\0\0\0\2\xff\xfe\0\0",
        info("csv") + b"x",
        info("x" * (nbd.MOST_NAME_BYTES + 1)),
    ],
)
def test_a_malformed_info_is_refused_and_the_session_goes_on(data: bytes) -> None:
    server = server_after_flags(shelf())
    server.feed(option(nbd.NBD_OPT_GO, data))
    assert [reply for _, reply, _ in replies(server.take())] == [nbd.NBD_REP_ERR_INVALID]
    assert not server.ended


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (struct.pack(">I", 4), "client flags"),
        (FLAGS + OPTION.pack(0, nbd.NBD_OPT_LIST, 0), "no option"),
        (FLAGS + OPTION.pack(nbd.IHAVEOPT, nbd.NBD_OPT_GO, nbd.MOST_OPTION_BYTES + 1), "of at most"),
    ],
)
def test_a_server_cuts_off_what_is_no_client(data: bytes, why: str) -> None:
    with pytest.raises(NbdBroken, match=why):
        Side(nbd.server_handshake(shelf())).feed(data)


@given(st.binary(max_size=300))
def test_a_server_meets_nonsense_with_its_own_error_only(data: bytes) -> None:
    for start in (b"", FLAGS, FLAGS + OPTION.pack(nbd.IHAVEOPT, nbd.NBD_OPT_GO, len(data))):
        with suppress(NbdBroken):
            Side(nbd.server_handshake(shelf())).feed(start + data)


@given(st.binary(max_size=300), st.integers(0, 8) | st.integers(0, (1 << 32) - 1))
def test_a_client_meets_nonsense_with_its_own_errors_only(data: bytes, reply: int) -> None:
    greeting = struct.pack(">QQH", nbd.NBDMAGIC, nbd.IHAVEOPT, 3)
    header = REPLY.pack(nbd.NBD_OPTION_REPLY_MAGIC, nbd.NBD_OPT_GO, reply, len(data))
    for start in (b"", greeting, greeting + header):
        with suppress(NbdBroken, NbdRefused):
            Side(nbd.client_handshake("csv")).feed(start + data)


# ---- transmission


@given(
    st.integers(0, 65535), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1), st.integers(0, 65535)
)
def test_a_request_comes_back_as_it_was(command: int, offset: int, length: int, flags: int) -> None:
    request = Request(command, offset, length, flags, cookie=offset)
    assert nbd.parse_request(nbd.encode_request(request)) == request


def test_what_does_not_begin_as_a_request_is_none() -> None:
    with pytest.raises(NbdBroken, match="no request"):
        nbd.parse_request(bytes(nbd.REQUEST.size))


READ, WRITE, FLUSH, TRIM, ZEROES = 0, 1, 3, 4, 6
FUA, NO_HOLE, DF, FAST_ZERO = 1, 2, 4, 16
MOST = nbd.MOST_PAYLOAD_BYTES


@pytest.mark.parametrize(
    ("request_", "size", "error"),
    [
        (Request(READ, 0, SIZE), SIZE, Error.NONE),
        (Request(READ, SIZE, 0), SIZE, Error.NONE),
        (Request(READ, SIZE - 1, 2), SIZE, Error.EINVAL),
        (Request(READ, (1 << 64) - 1, 1), SIZE, Error.EINVAL),
        (Request(READ, 0, MOST), 2 * MOST, Error.NONE),
        (Request(READ, 0, MOST + 1), 2 * MOST, Error.EINVAL),
        (Request(READ, 0, 1, FUA), SIZE, Error.NONE),
        (Request(READ, 0, 1, DF), SIZE, Error.EINVAL),
        (Request(WRITE, SIZE - 1, 1, FUA), SIZE, Error.NONE),
        (Request(WRITE, SIZE - 1, 2), SIZE, Error.ENOSPC),
        (Request(WRITE, (1 << 64) - 1, 1), SIZE, Error.ENOSPC),
        (Request(WRITE, 0, MOST + 1), 2 * MOST, Error.EINVAL),
        (Request(WRITE, 0, 1, NO_HOLE), SIZE, Error.EINVAL),
        (Request(TRIM, 0, SIZE), SIZE, Error.NONE),
        (Request(TRIM, 0, SIZE + 1), SIZE, Error.EINVAL),
        (Request(ZEROES, 0, 2 * MOST, FUA | NO_HOLE), 2 * MOST, Error.NONE),
        (Request(ZEROES, 1, SIZE), SIZE, Error.ENOSPC),
        (Request(ZEROES, 0, 1, FAST_ZERO), SIZE, Error.EINVAL),
        (Request(FLUSH), SIZE, Error.NONE),
        (Request(5), SIZE, Error.EINVAL),
        (Request(7, 0, 1), SIZE, Error.EINVAL),
    ],
)
def test_what_the_document_says_of_a_request(request_: Request, size: int, error: Error) -> None:
    assert nbd.judge(request_, size) is error


def test_a_reply_must_be_to_the_request() -> None:
    request = Request(READ, cookie=7)
    nbd.parse_simple_reply(nbd.simple_reply(7), request)
    with pytest.raises(NbdBroken, match="no reply to this request"):
        nbd.parse_simple_reply(nbd.simple_reply(8), request)
    with pytest.raises(NbdBroken, match="no reply: magic 0xffffffff"):
        nbd.parse_simple_reply(b"\xff" * nbd.SIMPLE_REPLY.size, request)


def test_of_many_requests_a_reply_says_which_it_answers() -> None:
    assert nbd.parse_reply_header(nbd.simple_reply(8)) == (0, 8)
    assert nbd.parse_reply_header(nbd.simple_reply(9, Error.EIO)) == (Error.EIO, 9)
    with pytest.raises(NbdBroken, match="no reply: magic 0x0"):
        nbd.parse_reply_header(bytes(nbd.SIMPLE_REPLY.size))


@pytest.mark.parametrize(("number", "name"), [(1, "EPERM"), (28, "ENOSPC"), (77, "EINVAL")])
def test_an_error_has_its_name(number: int, name: str) -> None:
    """One that the document does not know counts as EINVAL."""
    reply = nbd.SIMPLE_REPLY.pack(nbd.NBD_SIMPLE_REPLY_MAGIC, number, 7)
    with pytest.raises(NbdRefused) as refused:
        nbd.parse_simple_reply(reply, Request(WRITE, cookie=7))
    assert refused.value.name == name
