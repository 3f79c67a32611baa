"""Every program through a rebirth: its RAM is copied, everything else is thrown away, and no peer can tell.

The contract: a conversation that is cut anywhere, the guest then going on in a copy of its RAM, has the
same replies as one that is not cut. A program with state outside RAM fails it, which is shown.
"""

from __future__ import annotations

import inspect
import itertools
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.guest import program as program_module
from testbed.guest.heap import OutOfMemory
from testbed.guest.program import Connection, Program
from testbed.guest.programs.bulk import Bulk
from testbed.guest.programs.echo import Echo
from testbed.guest.programs.http import Http
from testbed.guest.programs.kv import BATCH, KeyValue
from testbed.guest.programs.ramp import Ramp
from testbed.guest.rehearsal import Rehearsal
from testbed.measure.pattern import pattern


class Forgetful(Echo):
    """Counts in a Python attribute: what every author of a guest program does first."""

    def attach(self) -> None:
        self.requests = 0

    def received(self, connection: Connection) -> None:
        self.requests += 1
        connection.send(b"%d:" % self.requests)
        super().received(connection)


def resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def kv_talk(*lines: str) -> list[bytes]:
    return [resp(*line.encode().split()) for line in lines]


KV_TALK = [
    *kv_talk("SET a 1", "INCR a", "GET a", "MSET x y z w", "MGET x nothing z"),
    b"PING\r\n",
    *kv_talk("MULTI", "INCR a", "INCR x", "EXEC", "HELLO 3", "GET nothing", "DEL x x", "DBSIZE"),
    resp(b"SET", b"b", b"v" * 3000),
    *kv_talk("FLUSHALL", "GET a", "SET a new", "DBSIZE", "GET a"),
]
HTTP_TALK = [
    b"GET /counter HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /missing HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /counter HTTP/1.1\r\nHost: x\r\n\r\n",
]
TALKS: dict[str, tuple[type[Program], bytes]] = {
    "echo": (Echo, bytes(range(256)) * 20),
    "kv": (KeyValue, b"".join(KV_TALK)),
    "http": (Http, b"".join(HTTP_TALK)),
    "forgetful": (Forgetful, b"one two three"),
}


def converse(program: type[Program], cuts: list[int], talk: bytes, *, rebirths: bool) -> bytes:
    """Say `talk` in pieces ending at `cuts`; with `rebirths` the guest moves after each. What it answered."""
    stage = Rehearsal(program, host="somewhere")
    peer, idle = stage.connect(window_bytes=700), stage.connect()
    heard = b""
    start = 0
    for end in [*sorted(cuts), len(talk)]:
        peer.send(talk[start:end])
        start = end
        if rebirths:
            stage.migrate("somewhere")
        heard += peer.received(300)
    while part := peer.received():
        heard += part
    assert stage.service.faults == []
    assert idle.received() == b""
    stage.service.table.memory.heap.check()
    return heard


@pytest.mark.parametrize("name", ["echo", "kv", "http"])
@settings(max_examples=30)
@given(data=st.data())
def test_rebirth_changes_no_reply(name: str, data: st.DataObject) -> None:
    program, talk = TALKS[name]
    cuts = data.draw(st.lists(st.integers(0, len(talk)), max_size=8))
    assert converse(program, cuts, talk, rebirths=True) == converse(program, cuts, talk, rebirths=False)


def test_rebirth_finds_state_outside_ram() -> None:
    program, talk = TALKS["forgetful"]
    assert converse(program, [4, 8], talk, rebirths=False) == b"1:one 2:two 3:three"
    assert converse(program, [4, 8], talk, rebirths=True) == b"1:one 1:two 1:three"


def test_rebirth_takes_views_of_the_old_ram_away() -> None:
    class Hidden(Echo):
        """Keeps a view of RAM from before: it must not find its state there."""

        shared: memoryview | None = None

        def attach(self) -> None:
            found = self.memory.words("count", 1)
            Hidden.shared = Hidden.shared or found

        def received(self, connection: Connection) -> None:
            assert Hidden.shared is not None
            connection.send(b"%d" % Hidden.shared[0])
            connection.consume(len(connection.inbox))

    stage = Rehearsal(Hidden)
    peer = stage.connect()
    peer.send(b"x")
    stage.migrate()
    peer.send(b"x")
    assert peer.received() == b"0%d" % 0xA5A5_A5A5_A5A5_A5A5


def test_example_of_the_documentation() -> None:
    text = inspect.getdoc(program_module) or ""
    example = textwrap.dedent(text.partition("::\n")[2].partition("\nThe rules")[0])
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "the example", "exec"), names)
    stage = Rehearsal(names["Shout"])
    peer = stage.connect()
    peer.send(b"hello\nwor")
    stage.migrate()
    peer.send(b"ld\n")
    assert peer.received() == b"HELLO\nWORLD\n"
    assert stage.program.lines.value == 2  # type: ignore[attr-defined]


# -- echo, ramp ------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(window=st.integers(1, 3000), pieces=st.lists(st.binary(max_size=9000), max_size=8))
def test_echo_through_a_slow_reader(window: int, pieces: list[bytes]) -> None:
    stage = Rehearsal(Echo)
    peer = stage.connect(window_bytes=window)
    for piece in pieces:
        peer.send(piece)
        stage.migrate()
    heard = b""
    while part := peer.received():
        heard += part
    assert heard == b"".join(pieces)


def test_ramp_both_ways_through_migrations() -> None:
    stage = Rehearsal(Ramp)
    peer = stage.connect(window_bytes=5000)
    sent = heard = 0
    for piece in (1, 999, 5000, 12345, 70000):
        peer.send(pattern(sent, piece))
        sent += piece
        got = peer.received()
        assert got == pattern(heard, len(got))
        heard += len(got)
        stage.migrate()
        stage.run()
    stats = stage.program.stats()
    assert (stats["bytes_received"], stats["bytes_wrong"], stats["first_wrong_at"]) == (sent, 0, None)
    assert heard >= 20000


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:], 1),
        (lambda data: data[:500] + data[501:], None),
        (lambda data: data[:500] + data[499:], None),
    ],
    ids=["flipped bit", "lost byte", "repeated byte"],
)
def test_ramp_finds_damage(damage: Callable[[bytes], bytes], wrong: int | None) -> None:
    stage = Rehearsal(Ramp)
    peer = stage.connect()
    peer.send(damage(pattern(0, 1000)))
    stats = stage.program.stats()
    assert stats["first_wrong_at"] == 500
    assert stats["bytes_wrong"] == wrong if wrong else stats["bytes_wrong"] > 400


def test_ramp_keeps_little_unsent() -> None:
    stage = Rehearsal(Ramp)
    stage.connect(window_bytes=10)
    assert stage.service.connections[100].unsent_bytes <= 16 << 10


# -- kv ---------------------------------------------------------------------------------------------------


def ask_kv(stage: Rehearsal, *words: bytes) -> bytes:
    peer = stage.connect()
    peer.send(resp(*words))
    heard = b""
    while part := peer.received():
        heard += part
    peer.end()
    return heard


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        ((b"ping",), b"+PONG\r\n"),
        ((b"PING", b"hi"), b"$2\r\nhi\r\n"),
        ((b"ECHO", b""), b"$0\r\n\r\n"),
        ((b"GET", b"none"), b"$-1\r\n"),
        ((b"GET",), b"-ERR wrong number of arguments for 'get' command\r\n"),
        ((b"MSET", b"a", b"1", b"b"), b"-ERR wrong number of arguments for 'mset' command\r\n"),
        ((b"FOO", b"bar"), b"-ERR unknown command 'FOO', with args beginning with: 'bar'\r\n"),
        ((b"F\r\nO",), b"-ERR unknown command 'F  O', with args beginning with: \r\n"),
        ((b"SET", b"k", b"v", b"EX", b"1"), b"-ERR syntax error\r\n"),
        ((b"EXEC",), b"-ERR EXEC without MULTI\r\n"),
        ((b"CONFIG", b"GET", b"save"), b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        ((b"COMMAND", b"DOCS"), b"*0\r\n"),
        ((b"HELLO", b"4"), b"-NOPROTO unsupported protocol version\r\n"),
        ((b"SELECT", b"1"), b"-ERR DB index is out of range\r\n"),
    ],
)
def test_kv_replies(words: tuple[bytes, ...], reply: bytes) -> None:
    assert ask_kv(Rehearsal(KeyValue), *words) == reply


@pytest.mark.parametrize(
    ("value", "command", "reply"),
    [
        (b"9223372036854775807", (b"INCR",), b"-ERR value is not an integer or out of range\r\n"),
        (b"-9223372036854775808", (b"DECR",), b"-ERR value is not an integer or out of range\r\n"),
        (b"1.5", (b"INCR",), b"-ERR value is not an integer or out of range\r\n"),
        (b"-5", (b"INCRBY", b"15"), b":10\r\n"),
        (b"5", (b"INCRBY", b"x"), b"-ERR value is not an integer or out of range\r\n"),
    ],
)
def test_kv_numbers(value: bytes, command: tuple[bytes, ...], reply: bytes) -> None:
    stage = Rehearsal(KeyValue)
    ask_kv(stage, b"SET", b"n", value)
    assert ask_kv(stage, command[0], b"n", *command[1:]) == reply


@pytest.mark.parametrize(
    "junk",
    [
        b"*x\r\n", b"*99999999\r\n", b"*1\r\n@4\r\nPING\r\n", b"*1\r\n$-4\r\n", b"*1\r\n$524289\r\n",
        b"*1\r\n$x\r\n",
        b"*1\r\n$4\r\nPINGxx", b"*" + b"1" * 40, b"x" * 70000, b"*1\r\n" + b"$" * 40,
    ],
)  # fmt: skip
def test_kv_junk_is_answered_and_closed(junk: bytes) -> None:
    stage = Rehearsal(KeyValue)
    peer = stage.connect()
    peer.send(resp(b"PING") + junk)
    assert peer.received().startswith(b"+PONG\r\n-ERR Protocol error: ")
    assert peer.guest_ended
    assert stage.service.faults == []


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"*1\r\n", b"$4\r\n", b"PING\r\n"]), max_size=9))
def test_kv_survives_any_bytes(pieces: list[bytes]) -> None:
    stage = Rehearsal(KeyValue, ram_bytes=1 << 20, max_connections=4)
    peer = stage.connect()
    for piece in pieces:
        peer.send(piece)
    assert stage.service.faults == []


def test_kv_full_memory_is_an_error_and_not_the_end() -> None:
    stage = Rehearsal(KeyValue, ram_bytes=8 << 20)
    stored = 0
    while (reply := ask_kv(stage, b"SET", b"k%d" % stored, b"v" * 100_000)) == b"+OK\r\n":
        stored += 1
    assert reply == b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
    assert stored > 40
    assert ask_kv(stage, b"MSET", *[b"m"] * 200) == b"+OK\r\n", "what is small still has room"
    assert ask_kv(stage, b"SET", b"k0", b"w" * 100_000) == b"+OK\r\n", "so has what replaces its like"
    assert ask_kv(stage, b"STRLEN", b"k%d" % (stored - 1)) == b":100000\r\n"
    assert ask_kv(stage, b"DEL", b"k1") == b":1\r\n"
    assert ask_kv(stage, b"SET", b"new", b"v" * 100_000) == b"+OK\r\n"
    assert ask_kv(stage, b"FLUSHALL") == b"+OK\r\n"
    assert ask_kv(stage, b"SET", b"after", b"v" * 400_000) == b"+OK\r\n", "the flushed comes back"
    assert ask_kv(stage, b"DBSIZE") == b":1\r\n"
    assert stage.service.faults == []
    stage.service.table.memory.heap.check()


def test_kv_mset_is_all_or_nothing() -> None:
    stage = Rehearsal(KeyValue, ram_bytes=4 << 20)
    assert isinstance(stage.program, KeyValue)
    with pytest.raises(OutOfMemory, match="8 values"):
        stage.program.store.set_all([(b"k%d" % index, b"v" * 500_000) for index in range(8)])
    assert len(stage.program.store) == 0
    stage.program.store.set_all([(b"k%d" % index, b"v" * 500_000) for index in range(5)])
    assert len(stage.program.store) == 5


def test_kv_long_pipeline_is_cut_into_steps() -> None:
    stage = Rehearsal(KeyValue)
    peer = stage.connect(window_bytes=1 << 20)
    peer._to_guest += resp(b"INCR", b"n") * 1000
    done = [0]
    while stage.step():
        done.append(stage.program.stats()["commands"])
        if len(done) % 7 == 0:
            stage.migrate()
    longest = max(after - before for before, after in itertools.pairwise(done))
    assert longest <= 2 * BATCH, "a step here is a socket's turn and the queue's"
    assert peer.received().endswith(b":1000\r\n")


def test_kv_transaction_with_an_error_does_nothing() -> None:
    stage = Rehearsal(KeyValue)
    peer = stage.connect()
    used = stage.service.table.memory.heap.used_bytes
    peer.send(resp(b"MULTI") + resp(b"SET", b"a", b"1") + resp(b"NO") + resp(b"EXEC") + resp(b"GET", b"a"))
    assert peer.received().endswith(
        b"-EXECABORT Transaction discarded because of previous errors.\r\n$-1\r\n"
    )
    peer.send(resp(b"MULTI") + resp(b"SET", b"a", b"1" * 5000))
    peer.reset()
    assert stage.service.table.memory.heap.used_bytes < used


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 9), st.integers(0, 600)),
            st.tuples(st.just("delete"), st.integers(0, 9), st.just(0)),
            st.tuples(st.just("clear"), st.just(0), st.just(0)),
            st.tuples(st.just("migrate"), st.just(0), st.just(0)),
        ),
        max_size=60,
    )
)
def test_store_against_a_dict(steps: list[tuple[str, int, int]]) -> None:
    stage = Rehearsal(KeyValue, ram_bytes=1 << 20, max_connections=2)
    model: dict[bytes, bytes] = {}
    for turn, (what, number, size) in enumerate(steps):
        assert isinstance(stage.program, KeyValue)
        store, key, value = stage.program.store, b"key%d" % number, bytes([turn]) * size
        if what == "set":
            store.set(key, value)
            model[key] = value
        elif what == "delete":
            assert store.delete(key) == (model.pop(key, None) is not None)
        elif what == "clear":
            store.clear()
            model.clear()
        else:
            stage.migrate()
        store = stage.program.store
        assert len(store) == len(model)
        for index in range(10):
            found = store.get(b"key%d" % index)
            assert (None if found is None else bytes(found)) == model.get(b"key%d" % index)
    stage.service.table.memory.heap.check()


# -- http -------------------------------------------------------------------------------------------------


def ask_http(stage: Rehearsal, request: bytes) -> tuple[bytes, bool]:
    peer = stage.connect()
    peer.send(request)
    return peer.received(), peer.guest_ended


@pytest.mark.parametrize(
    ("request_bytes", "status", "closes"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, False),
        (b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, False),
        (b"GET /?q=1 HTTP/1.1\r\nHost: x\r\n\r\n", 200, False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200, True),
        (b"GET / HTTP/1.0\r\n\r\n", 200, True),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", 200, False),
        (b"GET /no HTTP/1.1\r\nHost: x\r\n\r\n", 404, False),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405, False),
        (b"GET / HTTP/1.1\r\n\r\n", 400, True),
        (b"GET /\r\n\r\n", 400, True),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400, True),
        (b"G(T / HTTP/1.1\r\nHost: x\r\n\r\n", 400, True),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, True),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, True),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, True),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", 411, True),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 411, True),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n", 413, True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20000, 431, True),
    ],
)
def test_http_status(request_bytes: bytes, status: int, closes: bool) -> None:
    reply, closed = ask_http(Rehearsal(Http), request_bytes)
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert closed == closes


def test_http_tells_the_host_and_counts_across_hosts() -> None:
    stage = Rehearsal(Http, host="host-a")
    peer = stage.connect()
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    peer.send(ask)
    assert b"Served by host-a</h1>\n<p>1 requests" in peer.received()
    peer.send(ask[:10])
    stage.migrate("host-<b>")
    peer.send(ask[10:])
    assert b"Served by host-&lt;b&gt;</h1>\n<p>2 requests" in peer.received()


def test_http_gives_a_browser_no_reason_to_ask_for_an_icon() -> None:
    """Which it would otherwise do once a site, and be told 404: a request too many, and an error."""
    reply, _ = ask_http(Rehearsal(Http), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"<link rel=icon href='data:,'>" in reply


def test_http_head_has_no_body_and_the_length_of_one() -> None:
    stage = Rehearsal(Http)
    reply, _ = ask_http(stage, b"HEAD /counter HTTP/1.1\r\nHost: x\r\n\r\n")
    assert reply.endswith(b"\r\n\r\n")
    assert b"Content-Length: 0" not in reply


def test_http_says_continue_once_also_when_it_moves_meanwhile() -> None:
    stage = Rehearsal(Http)
    peer = stage.connect()
    peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n")
    assert peer.received() == b"HTTP/1.1 100 Continue\r\n\r\n"
    stage.migrate()
    peer.send(b"abc")
    assert peer.received() == b""
    peer.send(b"def")
    assert b'"body_bytes": 6' in peer.received()


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"GET / HTTP/1.1\r\n", b"\r\n"]), max_size=9))
def test_http_survives_any_bytes(pieces: list[bytes]) -> None:
    stage = Rehearsal(Http, ram_bytes=1 << 20, max_connections=4)
    peer = stage.connect()
    for piece in pieces:
        peer.send(piece)
    assert stage.service.faults == []


def test_a_download_is_the_ramp_through_migrations() -> None:
    stage = Rehearsal(Bulk)
    peer = stage.connect(window_bytes=5000)
    peer.send(b"D")
    heard = 0
    for _ in range(40):
        got = peer.received()
        assert got == pattern(heard, len(got))
        heard += len(got)
        stage.migrate()
        stage.run()
    assert heard >= 40 * 5000
    assert stage.program.stats()["bytes_sent"] >= heard


@pytest.mark.parametrize("wrong", [0, 3])
def test_an_upload_is_taken_and_checked_through_migrations(wrong: int) -> None:
    stage = Rehearsal(Bulk)
    peer = stage.connect()
    peer.send(b"U" + pattern(0, 9))
    sent, words = 9, peer.received()
    for piece in (1, 999, 70000):
        data = pattern(sent, piece)
        stage.migrate()
        altered = bytes(byte ^ 1 for byte in data[:wrong]) + data[wrong:]
        peer.send(altered if piece == 999 else data)
        sent += piece
        words += peer.received()
    last = words[-16:]
    assert len(words) % 16 == 0
    assert (int.from_bytes(last[:8], "little"), int.from_bytes(last[8:], "little")) == (sent, wrong)
    assert stage.program.stats() == {"bytes_sent": 0, "bytes_received": sent, "bytes_wrong": wrong}
