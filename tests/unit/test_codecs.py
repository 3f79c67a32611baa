"""Codecs: one contract for all, then what each knows of its program. No socket anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.clients.codecs import Codec, EchoCodec, HttpCodec, KvCodec
from testbed.clients.integrity import Integrity

Server = Callable[[bytes], bytes]


def echo_server() -> Server:
    return lambda request: request


def kv_server() -> Server:
    """Enough RESP2 for one key, parsed by its lines (values here hold no line end: checked by length)."""
    held: dict[bytes, bytes] = {}

    def reply(request: bytes) -> bytes:
        words = list(_bulks(request))
        if words[0] == b"SET":
            held[words[1]] = words[2]
            return b"+OK\r\n"
        return b"$%d\r\n%s\r\n" % (len(held[words[1]]), held[words[1]])

    return reply


def _bulks(request: bytes) -> Iterator[bytes]:
    rest = request.partition(b"\r\n")[2]
    while rest:
        length, _, rest = rest.partition(b"\r\n")
        size = int(length[1:])
        yield rest[:size]
        rest = rest[size + 2 :]


def http_server() -> Server:
    served = 0

    def reply(request: bytes) -> bytes:
        nonlocal served
        assert request.startswith(b"GET /counter HTTP/1.1\r\nHost: [fd07::10]\r\n")
        served += 1
        body = json.dumps({"requests": served, "host": "host-a"}).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    return reply


PAIRS = {
    "echo": (lambda: EchoCodec(64, 7919), echo_server),
    "kv": (lambda: KvCodec(64, "client1:3"), kv_server),
    "http": (lambda: HttpCodec("fd07::10"), http_server),
}


@pytest.fixture(params=list(PAIRS))
def pair(request: pytest.FixtureRequest) -> tuple[Codec, Server]:
    make_codec, make_server = PAIRS[request.param]
    return make_codec(), make_server()


def test_right_replies_are_complete_and_whole(pair: tuple[Codec, Server]) -> None:
    codec, server = pair
    for _ in range(50):
        assert codec.received(server(codec.request()))
    codec.finish()
    assert codec.integrity.whole(), codec.complaint


@pytest.mark.parametrize("name", PAIRS)
@given(data=st.data())
def test_a_reply_is_complete_with_its_last_byte_however_it_is_cut(name: str, data: st.DataObject) -> None:
    make_codec, make_server = PAIRS[name]
    codec, server = make_codec(), make_server()
    for _ in range(4):
        reply = server(codec.request())
        cut = data.draw(st.integers(1, len(reply) - 1))
        assert not codec.received(reply[:cut])
        assert codec.received(reply[cut:])
    assert codec.integrity.whole()


def test_a_reply_that_comes_twice_is_duplicated(pair: tuple[Codec, Server]) -> None:
    codec, server = pair
    reply = server(codec.request())
    assert codec.received(reply)
    assert not codec.received(reply)
    assert codec.integrity == Integrity(duplicated=len(reply))
    assert codec.complaint
    assert codec.received(server(codec.request())), "it goes on"


def test_two_replies_in_one_piece_are_a_reply_and_a_duplicate(pair: tuple[Codec, Server]) -> None:
    codec, server = pair
    reply = server(codec.request())
    assert codec.received(reply + reply)
    assert codec.integrity == Integrity(duplicated=len(reply))


def test_a_reply_that_never_comes_is_lost(pair: tuple[Codec, Server]) -> None:
    codec, server = pair
    assert codec.received(server(codec.request()))
    server(codec.request())
    codec.finish()
    assert codec.integrity.lost > 0
    assert codec.integrity.duplicated == codec.integrity.corrupted == 0


@pytest.mark.parametrize("name", PAIRS)
@given(junk=st.lists(st.binary(min_size=1, max_size=200), max_size=5))
def test_no_reply_whatever_upsets_a_codec(name: str, junk: list[bytes]) -> None:
    codec = PAIRS[name][0]()
    codec.request()
    for piece in junk:
        if codec.received(piece):
            codec.request()
    codec.finish()
    assert not codec.integrity.whole()


def test_echo_after_a_late_duplicate_waits_for_the_reply_that_is_due() -> None:
    codec = EchoCodec(64)
    first = codec.request()
    assert codec.received(first)
    second = codec.request()
    assert not codec.received(first)
    assert codec.received(second)
    assert codec.integrity == Integrity(duplicated=64)


def test_bytes_of_another_connection_are_wrong() -> None:
    mine, other = EchoCodec(64, 0), EchoCodec(64, 7919)
    mine.request()
    mine.received(other.request())
    assert not mine.integrity.whole()


def kv_after_set() -> KvCodec:
    codec = KvCodec(64, "key")
    codec.request()
    assert codec.received(b"+OK\r\n")
    codec.request()
    return codec


@pytest.mark.parametrize(
    "reply",
    [b"$-1\r\n", b"$3\r\nold\r\n", b"-ERR no such thing\r\n", b"-OOM\r\n", b"+OK!\r\n", b":1\r\n"],
    ids=repr,
)
def test_kv_notices_a_value_that_is_not_the_one_stored(reply: bytes) -> None:
    codec = kv_after_set()
    assert codec.received(reply), "a wrong reply is a reply, else the probe would hang on it"
    assert codec.integrity.corrupted > 0
    assert repr(reply)[2:6] in str(codec.complaint)


def test_kv_sees_one_wrong_byte_in_a_value() -> None:
    codec, server = KvCodec(64, "key"), kv_server()
    assert codec.received(server(codec.request()))
    reply = bytearray(server(codec.request()))
    reply[40] ^= 1
    assert codec.received(bytes(reply))
    assert codec.integrity == Integrity(corrupted=1)


def test_kv_knows_the_reply_before_when_it_comes_again() -> None:
    codec = kv_after_set()
    assert not codec.received(b"+OK\r\n")
    assert codec.integrity == Integrity(duplicated=5)


def test_kv_reads_half_an_error_as_half() -> None:
    codec = kv_after_set()
    assert not codec.received(b"-ERR wro")
    assert codec.received(b"ng\r\n")


def http(status: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (http("500 Broken", b"no"), "500"),
        (http("200 OK", b"no json"), "counter"),
        (http("200 OK", b'{"requests": "7"}'), "counter"),
        (http("200 OK", b"[7]"), "counter"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "Content-Length"),
        (b"x" * 20_000, "head"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_http_notices_what_is_no_answer(reply: bytes, complaint: str) -> None:
    codec = HttpCodec("10.7.0.10")
    codec.request()
    assert codec.received(reply)
    assert codec.integrity.corrupted > 0
    assert complaint in str(codec.complaint)


def test_http_notices_a_guest_that_forgot_requests() -> None:
    codec = HttpCodec("10.7.0.10")
    for count in (5, 9):
        codec.request()
        assert codec.received(http("200 OK", b'{"requests": %d}' % count))
    assert codec.integrity.whole()
    codec.request()
    assert codec.received(http("200 OK", b'{"requests": 8}'))
    assert codec.integrity.corrupted > 0


def test_http_of_another_page_wants_no_counter() -> None:
    codec = HttpCodec("10.7.0.10", "/")
    assert codec.request().startswith(b"GET / HTTP/1.1\r\nHost: 10.7.0.10\r\n")
    assert codec.received(http("200 OK", b"<p>hello"))
    assert codec.integrity.whole()
