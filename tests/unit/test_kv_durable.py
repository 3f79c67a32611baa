"""The durable store: no reply before its write is lasting, nothing told is lost, wherever it is cut off."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.guest.heap import OutOfMemory
from testbed.guest.programs import log_format
from testbed.guest.programs.kv import KeyValue
from testbed.guest.programs.kv_durable import DurableKeyValue
from testbed.guest.programs.log_format import Header, LogError
from testbed.guest.rehearsal import Peer, Rehearsal
from tests.unit.disk_server import EIO, FLUSH, WRITE, DiskOfTests
from tests.unit.test_guest_programs import KV_TALK, resp

DISK_BYTES = 4 << 20
SMALL_BYTES = 256 << 10
INFINITY = float("inf")


def durable(disk: DiskOfTests, ram_bytes: int = 4 << 20) -> Rehearsal:
    return Rehearsal(DurableKeyValue, disk=disk, ram_bytes=ram_bytes)


def boot_again(disk: DiskOfTests, chance: random.Random | None = None) -> Rehearsal:
    """Guest and server of the disk have lost power: fresh RAM, and of what was not flushed a part."""
    disk.medium.crash(chance)
    disk.answers = INFINITY
    stage = durable(disk)
    stage.run()
    return stage


def program_of(stage: Rehearsal) -> DurableKeyValue:
    assert isinstance(stage.program, DurableKeyValue)
    return stage.program


def ask(peer: Peer, *words: bytes) -> bytes:
    peer.send(resp(*words))
    return peer.received()


def contents(stage: Rehearsal) -> dict[bytes, bytes]:
    store = program_of(stage).store
    return {key: bytes(value) for _, key, value in store.records(0, store.buckets)}


# -- holding ---------------------------------------------------------------------------------------------


def test_reply_waits_for_the_flush_and_so_does_what_was_asked_after_it() -> None:
    disk = DiskOfTests(DISK_BYTES)
    stage = durable(disk)
    writer, reader = stage.connect(), stage.connect()
    assert ask(writer, b"PING") == b"+PONG\r\n"
    disk.answers = 0
    assert ask(writer, b"SET", b"a", b"1") == b""
    assert ask(writer, b"GET", b"a") == b"", "its own connection keeps its order"
    assert ask(reader, b"GET", b"a") == b"$1\r\n1\r\n", "others read what is not lasting yet"
    disk.answers = 1  # the frame is written
    stage.run()
    assert writer.received() == b""
    assert FLUSH in [operation for operation, _, _ in disk.medium.log]
    disk.answers = 1
    stage.run()
    assert writer.received() == b"+OK\r\n$1\r\n1\r\n"
    assert boot_again(disk).program.stats()["keys"] == 1


def test_reply_that_changes_nothing_waits_for_nothing() -> None:
    disk = DiskOfTests(DISK_BYTES)
    stage = durable(disk)
    peer = stage.connect()
    disk.answers = 0
    assert ask(peer, b"DEL", b"none") == b":0\r\n"
    assert ask(peer, b"INCRBY", b"n", b"x").startswith(b"-ERR value")


def test_one_turn_is_one_write_and_one_flush() -> None:
    disk = DiskOfTests(DISK_BYTES)
    stage = durable(disk)
    peers = [stage.connect() for _ in range(20)]
    ask(peers[0], b"SET", b"first", b"")
    disk.medium.log.clear()
    for number, peer in enumerate(peers):
        peer._to_guest += resp(b"SET", b"k%d" % number, b"v") * 5
    stage.run()
    assert [peer.received() for peer in peers] == [b"+OK\r\n" * 5] * 20
    assert [operation for operation, _, _ in disk.medium.log] == [WRITE, FLUSH]


def test_what_comes_during_a_commit_is_the_next_one() -> None:
    disk = DiskOfTests(DISK_BYTES)
    stage = durable(disk)
    peers = [stage.connect() for _ in range(10)]
    disk.answers = 0
    for number, peer in enumerate(peers):
        peer.send(resp(b"SET", b"k%d" % number, b"v"))
    disk.answers = INFINITY
    stage.run()
    assert [peer.received() for peer in peers] == [b"+OK\r\n"] * 10
    assert program_of(stage).journal.stats()["commits"] == 2


def test_held_connection_that_quits_ends_or_is_reset() -> None:
    disk = DiskOfTests(DISK_BYTES)
    stage = durable(disk)
    quits, ends, breaks = stage.connect(), stage.connect(), stage.connect()
    used = stage.service.table.in_use
    disk.answers = 0
    quits.send(resp(b"SET", b"a", b"1") + b"QUIT\r\n")
    ends.send(resp(b"SET", b"b", b"1"))
    ends.end()
    breaks.send(resp(b"SET", b"c", b"1"))
    breaks.reset()
    assert stage.service.table.in_use == used - 1
    assert not quits.guest_ended
    assert not ends.guest_ended
    stage.migrate()
    disk.answers = INFINITY
    stage.run()
    assert quits.received() == b"+OK\r\n+OK\r\n"
    assert ends.received() == b"+OK\r\n"
    assert quits.guest_ended
    assert ends.guest_closed
    assert stage.service.faults == []


def test_slow_reader_is_held_and_sent_the_rest_after() -> None:
    disk = DiskOfTests(DISK_BYTES)
    stage = durable(disk)
    peer = stage.connect(window_bytes=1000)
    value = b"v" * 100_000
    peer.send(resp(b"SET", b"a", value) + resp(b"GET", b"a") * 2 + resp(b"INCR", b"n"))
    heard = b""
    while part := peer.received():
        heard += part
        stage.migrate()
        stage.run()
    assert heard == b"+OK\r\n" + (b"$100000\r\n" + value + b"\r\n") * 2 + b":1\r\n"


# -- moving ----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 1 << 16))
def test_no_reply_depends_on_moves_or_on_the_disk(data: st.DataObject, seed: int) -> None:
    """Cut anywhere, moved at any step, with a disk that answers when it likes: the same replies as of kv."""
    talk = b"".join(KV_TALK)
    plain = Rehearsal(KeyValue).connect()
    plain.send(talk)
    expected = b""
    while part := plain.received():
        expected += part
    disk = DiskOfTests(data.draw(st.sampled_from([SMALL_BYTES, DISK_BYTES])), seed=seed)
    stage, chance = durable(disk), random.Random(seed)
    peer, at, heard = stage.connect(window_bytes=700), 0, b""
    disk.answers = 0
    while at < len(talk):
        end = at + chance.randrange(1, 200)
        peer._to_guest += talk[at:end]
        at = end
        for _ in range(chance.randrange(6)):
            disk.answers += chance.randrange(2)
            stage.step()
            if chance.random() < 0.2:
                stage.migrate("somewhere")
            if chance.random() < 0.05:
                disk.lose()
                stage.step()
                stage.reconnect_disk()
        heard += peer.received(300)
    disk.answers = INFINITY
    stage.run()
    while part := peer.received():
        heard += part
    assert heard == expected
    assert stage.service.faults == []
    stage.service.table.memory.heap.check()


# -- booting ---------------------------------------------------------------------------------------------


def test_fresh_ram_over_a_disk_with_a_log() -> None:
    disk = DiskOfTests(DISK_BYTES)
    peer = durable(disk).connect()
    for words in ("SET a 1", "INCR a", "MSET b x c y", "DEL c", "MULTI", "INCR a", "SET d z", "EXEC"):
        ask(peer, *words.encode().split())
    stage = boot_again(disk)
    assert contents(stage) == {b"a": b"3", b"b": b"x", b"d": b"z"}
    ask(stage.connect(), b"FLUSHALL")
    ask(stage.connect(), b"SET", b"e", b"")
    assert contents(boot_again(disk)) == {b"e": b""}


@pytest.mark.parametrize("damage", ["digest", "cut", "number"])
def test_log_ends_at_a_torn_frame(damage: str) -> None:
    disk = DiskOfTests(DISK_BYTES)
    peer = durable(disk).connect()
    for number in range(5):
        ask(peer, b"SET", b"k%d" % number, b"v" * 1000)
    _, last, length = [request for request in disk.medium.log if request[0] == WRITE][-1]
    if damage == "digest":
        disk.medium.lasting[last + 900] ^= 1
    elif damage == "cut":
        disk.medium.lasting[last + 512 : last + length] = bytes(length - 512)
    else:
        disk.medium.lasting[last] += 1
    stage = boot_again(disk)
    assert sorted(contents(stage)) == [b"k0", b"k1", b"k2", b"k3"]
    ask(stage.connect(), b"SET", b"k5", b"")
    assert sorted(contents(boot_again(disk))) == [b"k0", b"k1", b"k2", b"k3", b"k5"]


def test_bytes_of_a_client_never_pass_for_a_frame() -> None:
    """A frame in a value, at a sector's start, and around it a frame that is torn and then written shorter.
    """
    disk = DiskOfTests(DISK_BYTES)
    stage = durable(disk)
    ask(stage.connect(), b"SET", b"a", b"1")
    forged = memoryview(bytearray(512))
    end = log_format.put_entry(forged, log_format.FRAME_HEAD_BYTES, log_format.SET, b"forged", b"1")
    log_format.seal(forged, end - log_format.FRAME_HEAD_BYTES, 3, seed=0)
    lead = 512 - log_format.FRAME_HEAD_BYTES - log_format.entry_bytes(1, 0)
    ask(stage.connect(), b"SET", b"b", bytes(lead) + bytes(forged) + bytes(3000))
    _, last, length = [request for request in disk.medium.log if request[0] == WRITE][-1]
    assert disk.medium.lasting[last + 512 : last + 1024] == forged
    disk.medium.lasting[last + length - 600] ^= 1  # torn
    stage = boot_again(disk)
    ask(stage.connect(), b"SET", b"c", b"3")
    assert contents(boot_again(disk)) == {b"a": b"1", b"c": b"3"}


def test_disk_with_something_else_is_not_written_over() -> None:
    disk = DiskOfTests(DISK_BYTES)
    disk.medium.seen[:8] = b"\xebfsroot1"
    with pytest.raises(LogError, match="holds something else"):
        durable(disk)
    assert disk.medium.seen[:8] == b"\xebfsroot1"
    with pytest.raises(LogError, match="a disk of 4096 bytes: a log needs 262144 or more"):
        durable(DiskOfTests(4096))
    with pytest.raises(ValueError, match="kv-durable needs a disk"):
        Rehearsal(DurableKeyValue)


def test_ram_that_is_too_small_for_the_log_is_said() -> None:
    disk = DiskOfTests(DISK_BYTES)
    peer = durable(disk).connect()
    for number in range(10):
        ask(peer, b"SET", b"k%d" % number, b"v" * 100_000)
    with pytest.raises(OutOfMemory):
        durable(disk, ram_bytes=1 << 20)


def test_header_is_written_in_turn_and_a_torn_one_hides_nothing() -> None:
    older, newer = Header(6, 0, 8192, 1), Header(7, 1, 8192, 2)
    pages = bytearray(older.encode() + newer.encode())
    assert (older.place, newer.place) == (0, 4096)
    assert log_format.decode_headers(bytes(pages), 1 << 20) == newer
    pages[4096 + 20] ^= 1
    assert log_format.decode_headers(bytes(pages), 1 << 20) == older
    large = replace(newer, area_bytes=1 << 20)
    with pytest.raises(LogError, match="do not fit"):
        log_format.decode_headers(bytes(4096) + large.encode(), 1 << 20)


# -- areas fill ------------------------------------------------------------------------------------------


def test_full_area_is_copied_to_the_other() -> None:
    disk = DiskOfTests(SMALL_BYTES)
    stage = durable(disk)
    peer = stage.connect()
    expected = {}
    for turn in range(3000):
        key, value = b"k%d" % (turn % 50), b"%d" % turn * 20
        assert ask(peer, b"SET", key, value) == b"+OK\r\n"
        expected[key] = value
        if turn % 100 == 0:
            stage.migrate()
    stats = program_of(stage).journal.stats()
    assert stats["snapshots"] >= 5
    assert contents(stage) == expected
    assert contents(boot_again(disk)) == expected
    assert stage.service.faults == []


def test_commits_go_on_while_the_area_is_copied() -> None:
    """Someone always has a write to commit; the copy takes many steps, and yet comes to its end."""
    disk = DiskOfTests(2 << 20)
    stage = durable(disk)
    peers = [stage.connect() for _ in range(3)]
    for number in range(40):
        ask(peers[0], b"SET", b"large%d" % number, b"v" * 3000)
    commits = []
    for turn in range(6000):
        for peer in peers:
            if not peer._to_guest:
                peer._to_guest += resp(b"SET", b"k%d" % (turn % 7), b"%d" % turn)
        stage.step()
        journal = program_of(stage).journal.stats()
        if len(commits) < journal["snapshots"]:
            commits.append(journal["commits"])
        if turn % 50 == 0:
            stage.migrate()
    assert len(commits) >= 2
    assert journal["stalls"] == 0


def test_full_disk_is_an_error_for_that_write_and_deletes_make_room() -> None:
    disk = DiskOfTests(SMALL_BYTES)
    stage = durable(disk)
    peer = stage.connect()
    stored = 0
    while (reply := ask(peer, b"SET", b"k%d" % stored, b"v" * 4000)) == b"+OK\r\n":
        stored += 1
    assert reply == b"-ERR disk full\r\n"
    assert stored > 15
    assert ask(peer, b"GET", b"k%d" % stored) == b"$-1\r\n"
    assert ask(peer, b"SET", b"small", b"s") == b"+OK\r\n"
    assert ask(peer, b"MULTI") + ask(peer, b"SET", b"x", b"v" * 9000) + ask(peer, b"EXEC") == (
        b"+OK\r\n+QUEUED\r\n*1\r\n-ERR disk full\r\n"
    )
    for _ in range(20):
        assert ask(peer, b"DEL", b"k0") == b":1\r\n"
        assert ask(peer, b"SET", b"k0", b"w" * 4000) == b"+OK\r\n"
    expected = contents(stage)
    assert len(expected) == stored + 1
    assert contents(boot_again(disk)) == expected
    assert ask(peer, b"FLUSHALL") == b"+OK\r\n"
    assert ask(peer, b"SET", b"large", b"v" * 60_000) == b"+OK\r\n"
    assert stage.service.faults == []


@pytest.mark.parametrize("operation", [WRITE, FLUSH])
def test_disk_that_fails_acknowledges_nothing_more(operation: int) -> None:
    disk = DiskOfTests(DISK_BYTES)
    stage = durable(disk)
    peer, other = stage.connect(), stage.connect()
    assert ask(peer, b"SET", b"a", b"1") == b"+OK\r\n"
    disk.medium.errors[operation] = EIO
    assert ask(peer, b"SET", b"a", b"2") == b""
    assert peer.guest_closed
    disk.medium.errors.clear()
    assert ask(other, b"SET", b"a", b"3") == b"-ERR disk failed: nothing can be stored any more\r\n"
    assert ask(other, b"GET", b"a") == b"$1\r\n2\r\n"
    assert program_of(stage).journal.stats()["broken"] is True
    stage.migrate()
    stage.run()
    assert ask(other, b"INCR", b"n").startswith(b"-ERR disk failed")


# -- whatever happens ------------------------------------------------------------------------------------


class Client:
    """Writes its own key with rising numbers, now and then two keys in a transaction, and knows what it was
    told."""

    def __init__(self, stage: Rehearsal, number: int, filler: bytes) -> None:
        self.key, self.twin = b"c%d" % number, b"t%d" % number
        self.sent, self.told = 0, 0
        self._filler = filler
        self._waiting: list[tuple[bytes, int]] = []
        self._heard = b""
        self.connect(stage)

    def connect(self, stage: Rehearsal) -> None:
        self.peer, self._waiting, self._heard = stage.connect(), [], b""

    def write(self, both: bool) -> None:
        self.sent += 1
        value = b"%d %b" % (self.sent, self._filler)
        if both:
            words = (b"MULTI",), (b"SET", self.key, value), (b"SET", self.twin, value), (b"EXEC",)
            reply = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n"
        else:
            words, reply = ((b"MSET", self.key, value, self.twin, value),), b"+OK\r\n"  # type: ignore[assignment]
        self.peer._to_guest += b"".join(resp(*each) for each in words)
        self._waiting.append((reply, self.sent))

    def listen(self) -> None:
        self._heard += bytes(self.peer._to_peer)
        del self.peer._to_peer[:]
        while self._waiting and self._heard.startswith(self._waiting[0][0]):
            reply, self.told = self._waiting.pop(0)
            self._heard = self._heard[len(reply) :]
        assert not self._heard or self._waiting[0][0].startswith(self._heard), self._heard


def number_in(value: bytes | None) -> int:
    return int(value.split()[0]) if value is not None else 0


def lost_writes(clients: list[Client], found: dict[bytes, bytes]) -> int:
    """How many clients do not find what they were told. What was never sent, or half a transaction, is an
    error."""
    lost = 0
    for client in clients:
        number, twin = number_in(found.get(client.key)), number_in(found.get(client.twin))
        assert number == twin, "half a transaction"
        assert number <= client.sent
        lost += number < client.told
    return lost


def live_through(data: st.DataObject, seed: int, disk_bytes: int) -> tuple[int, int]:
    """Clients write while everything happens, and the guest loses power some times. Returns lost writes and
    copies made."""
    chance = random.Random(seed)
    disk = DiskOfTests(disk_bytes, seed=seed)
    stage = durable(disk)
    clients = [Client(stage, number, b"f" * chance.choice([10, 800, 3000, 8000])) for number in range(4)]
    disk.answers = 0
    copies = lost = 0
    events = st.sampled_from(["move", "lose", "crash of the disk", "power", "work", "work", "work"])
    for event in data.draw(st.lists(events, min_size=3, max_size=12)):
        for _ in range(chance.randrange(60)):
            chance.choice(clients).write(chance.random() < 0.5)
            disk.answers += chance.randrange(3)
            for _ in range(chance.randrange(4)):
                stage.step()
            for client in clients:
                client.listen()
        if event == "move":
            stage.migrate("elsewhere")
        elif event in ("lose", "crash of the disk"):
            disk.lose()
            if event == "crash of the disk":
                disk.medium.crash(chance)
            stage.step()
            stage.reconnect_disk()
        elif event == "power":
            copies += program_of(stage).journal.stats()["snapshots"]
            assert stage.service.faults == []
            stage = boot_again(disk, chance)
            lost += lost_writes(clients, contents(stage))
            disk.answers = 0
            for client in clients:
                client.connect(stage)
                client.told = client.sent = number_in(contents(stage).get(client.key))
    copies += program_of(stage).journal.stats()["snapshots"]
    disk.answers = INFINITY
    stage.run()
    for client in clients:
        client.listen()
        assert client.told == client.sent, "everyone is answered in the end"
    lost += lost_writes(clients, contents(stage)) + lost_writes(clients, contents(boot_again(disk, chance)))
    stage.service.table.memory.heap.check()
    assert stage.service.faults == []
    return lost, copies


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 1 << 20))
def test_nothing_told_is_lost_whatever_happens(data: st.DataObject, seed: int) -> None:
    lost, _ = live_through(data, seed, SMALL_BYTES)
    assert lost == 0


def test_without_the_flush_the_same_test_finds_lost_writes() -> None:
    """The negative control: a disk whose flush does nothing."""
    disk = DiskOfTests(DISK_BYTES)
    disk.medium.flush_works = False
    stage = durable(disk)
    client = Client(stage, 0, b"")
    for _ in range(10):
        client.write(True)
        stage.run()
        client.listen()
    assert client.told == 10
    assert lost_writes([client], contents(boot_again(disk))) == 1
