"""The rules of a connection, on a stage without a kernel: order, back-pressure, ends, faults, migration."""

from __future__ import annotations

from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT

import pytest

from testbed.guest.connections import (
    BULK_BYTES,
    CLOSING,
    FIN_SENT,
    HELD,
    INBOX_BYTES,
    OPEN,
    OUTBOX_HIGH_BYTES,
    PEER_ENDED,
    RELEASED,
    STREAM,
)
from testbed.guest.program import Connection, Program, ProgramError, load_program
from testbed.guest.programs.echo import Echo
from testbed.guest.rehearsal import Peer, Rehearsal
from testbed.guest.service import interest


class Diary(Program):
    """Notes every call in RAM, and does as its input says."""

    port = 7999
    inbox_limit_bytes = 8192
    connection_state_bytes = 8

    def attach(self) -> None:
        self.notes = self.memory.bytes("notes", 1024)
        self.used = self.memory.counter("used")

    def note(self, letter: bytes) -> None:
        self.notes[self.used.value] = letter[0]
        self.used.add()

    def text(self) -> str:
        return bytes(self.notes[: self.used.value]).decode()

    def connected(self, connection: Connection) -> None:
        self.note(b"c")

    def received(self, connection: Connection) -> None:
        self.note(b"r")
        order = bytes(connection.inbox)
        if order == b"raise":
            raise KeyError("what?")
        if order == b"close":
            connection.send(b"bye")
            connection.close()
        if order == b"keep":
            return
        if order.startswith(b"flood"):
            connection.send(b"f" * int(order[5:]))
        if order.startswith(b"again"):
            connection.state[0] += 1
            if connection.state[0] < 3:
                connection.again()
                return
        connection.consume(len(order))

    def ended(self, connection: Connection) -> None:
        self.note(b"e")
        connection.close()

    def closed(self, connection: Connection) -> None:
        self.note(b"x")


def diary_of(stage: Rehearsal) -> str:
    assert isinstance(stage.program, Diary)
    return stage.program.text()


def check_nothing_left(stage: Rehearsal, used_bytes: int) -> None:
    stage.service.table.memory.heap.check()
    assert stage.service.table.in_use == 0
    assert stage.service.bound() == []
    assert stage.service.lingering == 0
    assert stage.service.table.memory.heap.used_bytes == used_bytes


def test_life_of_a_connection() -> None:
    stage = Rehearsal(Diary)
    empty = stage.service.table.memory.heap.used_bytes
    peer = stage.connect()
    peer.send(b"hello")
    peer.end()
    assert diary_of(stage) == "crex"
    assert peer.guest_ended
    assert peer.guest_closed
    check_nothing_left(stage, empty)


def test_program_closes_first_and_waits_for_the_peer() -> None:
    stage = Rehearsal(Diary)
    peer = stage.connect()
    peer.send(b"close")
    assert peer.received() == b"bye"
    assert peer.guest_ended
    assert not peer.guest_closed
    peer.send(b"too late")
    assert diary_of(stage) == "cr"
    peer.end()
    assert diary_of(stage) == "crx"
    assert peer.guest_closed


def test_descriptor_is_kept_until_our_fin_is_acknowledged() -> None:
    stage = Rehearsal(Diary)
    peer = stage.connect()
    peer.last_ack_held = True
    peer.end()
    assert peer.guest_ended
    assert not peer.guest_closed
    assert stage.service.table.in_use == 1
    stage.migrate()
    stage.run()
    assert not peer.guest_closed
    peer.last_ack_held = False
    connection = stage.service.connections[peer.fileno()]
    stage.service.ready(connection, EPOLLIN | EPOLLHUP)
    assert peer.guest_closed
    assert diary_of(stage) == "cex"


def test_peer_that_never_ends_is_given_up() -> None:
    stage = Rehearsal(Diary)
    peer = stage.connect()
    peer.send(b"close")
    stage.elapse(1)
    assert not peer.guest_closed
    stage.elapse()
    assert peer.guest_closed
    assert diary_of(stage) == "crx"
    assert stage.service.counters[5] == 1


@pytest.mark.parametrize("before", [b"", b"hello", b"keep", b"flood200000"])
def test_reset_is_counted_and_told(before: bytes) -> None:
    stage = Rehearsal(Diary)
    empty = stage.service.table.memory.heap.used_bytes
    peer = stage.connect(window_bytes=1000)
    if before:
        peer.send(before)
    peer.reset()
    assert diary_of(stage).endswith("x")
    assert stage.service.counters[2] == 1
    check_nothing_left(stage, empty)


def test_fault_closes_its_connection_alone_and_is_told() -> None:
    stage = Rehearsal(Diary)
    bad, good = stage.connect(), stage.connect()
    bad.send(b"raise")
    assert stage.service.faults == ["program Diary raised in received(): KeyError: 'what?'"]
    assert stage.service.counters[3] == 1
    assert bad.guest_ended
    good.send(b"close")
    assert good.received() == b"bye"
    stage.migrate()
    assert stage.service.counters[3] == 1, "faults are counted in RAM"


def test_input_that_is_never_consumed_is_the_programs_fault() -> None:
    class Hoarder(Diary):
        def received(self, connection: Connection) -> None:
            pass

    stage = Rehearsal(Hoarder)
    peer = stage.connect()
    peer.send(b"k" * 10000)
    problem = "ValueError: 8192 bytes of input left unconsumed: its inbox_limit_bytes"
    assert stage.service.faults == [f"program Hoarder raised in received(): {problem}"]
    assert peer.guest_ended


def test_again_comes_before_the_peers_end() -> None:
    stage = Rehearsal(Diary)
    peer = stage.connect()
    peer._to_guest += b"again"
    peer._ended = True
    stage.run()
    assert diary_of(stage) == "crrrex"


def test_state_of_a_new_connection_is_zero() -> None:
    stage = Rehearsal(Diary)
    first = stage.connect()
    stage.service.connections[first.fileno()].state[:] = b"leftover"
    first.end()
    second = stage.service.connections[stage.connect().fileno()]
    assert (second.slot, bytes(second.state)) == (0, bytes(8))


def test_slow_reader_stops_the_machine_from_reading() -> None:
    stage = Rehearsal(Diary)
    peer = stage.connect(window_bytes=1000)
    peer.send(b"flood%d" % (OUTBOX_HIGH_BYTES + 5000))
    peer.send(b"hello")
    assert diary_of(stage) == "cr", "congested: not read"
    got = len(peer.received())
    while part := peer.received():
        got += len(part)
    assert got == OUTBOX_HIGH_BYTES + 5000
    assert diary_of(stage) == "crr", "read again once there was room"


def test_inbox_grows_for_bulk_and_shrinks_again() -> None:
    stage = Rehearsal(Echo, ram_bytes=8 << 20)
    peer = stage.connect(window_bytes=1 << 20)
    connection = stage.service.connections[peer.fileno()]
    assert len(connection.room()) == INBOX_BYTES
    data = bytes(range(256)) * 1024
    peer.send(data)
    assert peer.received() == data
    assert len(connection.room()) == BULK_BYTES


def test_full_table_and_full_memory_refuse() -> None:
    stage = Rehearsal(Diary, max_connections=2)
    first, second, third = stage.connect(), stage.connect(), stage.connect()
    assert (first.guest_closed, second.guest_closed, third.guest_closed) == (False, False, True)
    assert stage.service.counters[1] == 1
    first.end()
    assert not stage.connect().guest_closed

    stage = Rehearsal(Diary, ram_bytes=1 << 16, max_connections=100)
    peers = [stage.connect() for _ in range(100)]
    assert any(peer.guest_closed for peer in peers)
    assert not peers[0].guest_closed
    assert stage.service.faults == []


def test_send_after_close_is_a_fault() -> None:
    class Late(Diary):
        def received(self, connection: Connection) -> None:
            connection.close()
            connection.send(b"late")

    stage = Rehearsal(Late)
    stage.connect().send(b"x")
    assert stage.service.faults == ["program Late raised in received(): ValueError: send() after close()"]


def test_consume_more_than_there_is() -> None:
    class Greedy(Diary):
        def received(self, connection: Connection) -> None:
            connection.consume(99)

    stage = Rehearsal(Greedy)
    stage.connect().send(b"abc")
    assert "consume(99): the inbox holds 3 bytes" in stage.service.faults[0]


def test_connection_whose_connected_was_not_called_yet_migrates() -> None:
    stage = Rehearsal(Diary)
    peer = Peer(stage, 500, 1000)
    stage.peers[500] = peer
    stage.service.accept(500)
    stage.migrate()
    assert diary_of(stage) == ""
    peer.send(b"hello")
    assert diary_of(stage) == "cr"


class Keeper(Diary):
    """Replies `x` to each byte, and holds the connection at the barrier that the byte names."""

    inbox_limit_bytes = 64
    barrier: int | None = 0

    def received(self, connection: Connection) -> None:
        self.note(b"r")
        barrier = connection.inbox[0]
        connection.consume(1)
        connection.hold(barrier)
        if barrier == 9:
            raise KeyError("while it is held")
        connection.send(b"%d" % barrier)
        if len(connection.inbox):
            connection.again()

    def reached(self) -> int | None:
        return self.barrier


def reach(stage: Rehearsal, barrier: int | None) -> None:
    assert isinstance(stage.program, Keeper)
    stage.program.barrier = barrier
    stage.service.disk_done(0, None, memoryview(b""))
    stage.run()


def test_held_connection_neither_sends_nor_reads_before_its_barrier() -> None:
    stage = Rehearsal(Keeper)
    first, second = stage.connect(), stage.connect()
    first.send(b"\1\2")
    second.send(b"\3")
    first.send(b"\4")
    assert diary_of(stage) == "ccrr"
    reach(stage, 1)
    assert (first.received(), second.received()) == (b"1", b"")
    assert diary_of(stage) == "ccrrr", "the rest of its input came next, and is held in its turn"
    stage.migrate()
    stage.run()
    assert (first.received(), second.received()) == (b"", b"")
    reach(stage, 3)
    assert (first.received(), second.received()) == (b"2", b"3")
    reach(stage, 4)
    assert first.received() == b"4"


def test_released_connection_moves_before_it_has_gone_on() -> None:
    stage = Rehearsal(Keeper)
    peer = stage.connect()
    peer.send(b"\1")
    assert isinstance(stage.program, Keeper)
    stage.program.barrier = 1
    stage.service.disk_done(0, None, memoryview(b""))
    stage.migrate()
    stage.run()
    assert peer.received() == b"1"
    peer.send(b"\2")
    reach(stage, 2)
    assert peer.received() == b"2"


def test_queued_connection_that_is_held_meanwhile_is_not_called() -> None:
    stage = Rehearsal(Keeper)
    stage.peers[500] = Peer(stage, 500, 1000)
    stage.service.accept(500)
    connection = stage.service.connections[500]
    connection.hold(1)
    stage.service._settle(connection)
    stage.run()
    assert diary_of(stage) == ""
    reach(stage, 1)
    assert diary_of(stage) == "c"


def test_held_connection_that_is_closed_ends_only_after_its_barrier() -> None:
    stage = Rehearsal(Keeper)
    peer = stage.connect()
    peer.send(b"\11")
    assert not peer.guest_ended
    stage.migrate()
    stage.run()
    assert not peer.guest_ended
    reach(stage, 9)
    assert peer.guest_ended


def test_barrier_that_will_never_be_reached_closes_without_what_waits() -> None:
    stage = Rehearsal(Keeper)
    empty = stage.service.table.memory.heap.used_bytes
    peer = stage.connect()
    peer.send(b"\1")
    reach(stage, None)
    assert (peer.received(), peer.guest_closed) == (b"", True)
    assert diary_of(stage) == "crx"
    check_nothing_left(stage, empty)


def test_lost_connection_is_told_as_a_reset() -> None:
    stage = Rehearsal(Diary)
    stage.connect()
    stage.service.lose(0)
    assert diary_of(stage) == "cx"
    with pytest.raises(ValueError, match="no connection in slot 0"):
        stage.service.lose(0)


@pytest.mark.parametrize("slot", [-1, 3, 64, 1 << 40])
def test_socket_for_a_slot_that_ram_does_not_know(slot: int) -> None:
    stage = Rehearsal(Diary)
    stage.connect()
    with pytest.raises(ValueError, match="no connection in slot"):
        stage.service.adopt(slot, 999)


@pytest.mark.parametrize(
    ("flags", "unsent", "expected"),
    [
        (OPEN | HELD, 5, 0),
        (OPEN | HELD | CLOSING, 5, 0),
        (OPEN | RELEASED, 5, EPOLLIN | EPOLLOUT),
        (OPEN, 0, EPOLLIN),
        (OPEN, 1, EPOLLIN | EPOLLOUT),
        (OPEN, OUTBOX_HIGH_BYTES, EPOLLOUT),
        (OPEN | STREAM, 0, EPOLLIN | EPOLLOUT),
        (OPEN | PEER_ENDED, 0, 0),
        (OPEN | PEER_ENDED, 5, EPOLLOUT),
        (OPEN | CLOSING, 5, EPOLLOUT),
        (OPEN | CLOSING | FIN_SENT, 0, EPOLLIN),
        (OPEN | CLOSING | FIN_SENT | PEER_ENDED, 0, EPOLLIN | EPOLLET),
    ],
)
def test_what_is_watched_follows_from_the_record_alone(flags: int, unsent: int, expected: int) -> None:
    assert interest(flags, unsent) == expected


def test_hung_up_socket_is_not_polled_for_ever() -> None:
    stage = Rehearsal(Diary)
    peer = stage.connect()
    peer.last_ack_held = True
    peer.end()
    assert not stage.step(), "nothing changed: nothing is reported"
    assert peer.events() & EPOLLHUP
    assert not peer.events() & EPOLLERR


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ecco", "no program 'ecco': give one of bulk, echo, http, kv, kv-durable, ramp, or package."),
        ("no.such.module:Class", "cannot be imported: ModuleNotFoundError"),
        ("testbed.guest.program:Nothing", "has no Program called Nothing"),
        ("testbed.guest.program:GuestFault", "has no Program called GuestFault"),
        ("testbed.guest.program:Program", "port 0 is not a TCP port"),
        (":", "no program ':'"),
    ],
)
def test_program_that_cannot_be_used(name: str, problem: str) -> None:
    with pytest.raises(ProgramError) as raised:
        load_program(name)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)
