"""What has been fenced off writes nothing any more: also not the write that was under way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from testbed.storage import fencing, nbd, server, stream
from testbed.storage.control import answer
from testbed.storage.fencing import Door, Lun
from testbed.storage.lun import LunState, Nexus, ReservationType
from testbed.storage.nbd import NbdRefused, Request, TransmissionFlags
from testbed.storage.turns import TurnOver
from tests.unit.storage_fakes import DEADLINE_S, FakeStore

OLD, NEW = "a" * 16, "b" * 16
SIZE = 1 << 20
DISK, OTHER = 4096, 65536
"""Where two virtual disks begin, a lease each: `disk` and `other`, both of OLD's at epoch 5."""
OLD_NEXUS, NEW_NEXUS = Nexus(OLD, "disk", 5), Nexus(NEW, "disk", 6)
FIRST, SECOND, THIRD = (Nexus(OLD, "disk", 5, "5" * 16, turn) for turn in (1, 2, 3))
"""Connections of one client, with the same rights."""


def state() -> LunState:
    shared = LunState(SIZE).register(OLD).register(NEW).reserve(OLD, ReservationType.SHARED)
    return shared.guard(OLD, "disk", ((DISK, 4096),), epoch=5).guard(OLD, "other", ((OTHER, 4096),), epoch=5)


class CheckedOnly(Lun):
    """The negative control: a LUN that checks, then writes, and forgets what is under way in between."""

    @contextmanager
    def writing(self, nexus: Nexus, offset: int, length: int) -> Iterator[None]:
        if not self.state.may_write(nexus, offset, length):
            raise NbdRefused("EPERM", "fenced")
        yield


def made(kind: type[Lun] = Lun) -> tuple[Lun, FakeStore]:
    store = FakeStore(SIZE)
    return kind(store, state(), lambda changed: store.done.append(("kept",))), store


@contextmanager
def beside(act: Callable[[], object]) -> Iterator[threading.Event]:
    """`act` goes on in a thread of its own; the event says that it has come to its end."""
    ended = threading.Event()

    def run() -> None:
        act()
        ended.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield ended
    assert ended.wait(DEADLINE_S), "it is still waiting, or it has failed"
    thread.join()


def claim(unit: Lun) -> None:
    unit.change(lambda before: before.claim(NEW, "disk", 5))


def preempt(unit: Lun) -> None:
    unit.change(lambda before: before.preempt(NEW, OLD))


def wait_for_state(unit: Lun, true: Callable[[LunState], bool]) -> None:
    """A change that waits for writes has put its state in place by then: watch it, there is no event for
    it."""
    deadline = threading.Event()
    timer = threading.Timer(DEADLINE_S, deadline.set)
    timer.start()
    while not true(unit.state):
        assert not deadline.is_set()
    timer.cancel()


@pytest.mark.parametrize("fence", [claim, preempt])
def test_a_change_is_answered_when_no_older_write_can_land(fence: Callable[[Lun], None]) -> None:
    unit, store = made()
    store.hold = lambda offset: True
    with beside(lambda: unit.door(OLD_NEXUS).write(DISK, memoryview(b"old"))) as written:
        assert store.begun.wait(DEADLINE_S)
        with beside(lambda: (fence(unit), store.done.append(("answered",)))) as answered:
            wait_for_state(unit, lambda now: not now.may_write(OLD_NEXUS, DISK, 1))
            assert not answered.is_set()
            assert not written.is_set()
            store.go.set()
    assert store.done == [("kept",), ("write", DISK, 3), ("answered",)]


def test_the_successors_bytes_survive() -> None:
    unit, store = made()
    store.hold = lambda offset: not store.go.is_set()
    with beside(lambda: unit.door(OLD_NEXUS).write(DISK, memoryview(b"old"))):
        assert store.begun.wait(DEADLINE_S)
        with beside(lambda: (claim(unit), unit.door(NEW_NEXUS).write(DISK, memoryview(b"new")))):
            wait_for_state(unit, lambda now: now.leases["disk"].epoch == 6)
            store.go.set()
    assert store.content[DISK : DISK + 3] == b"new"


@pytest.mark.parametrize("fence", [claim, preempt])
def test_to_check_and_then_write_is_not_enough(fence: Callable[[Lun], None]) -> None:
    """The negative control of the two tests above: the old write lands after the answer, over the new
    one's."""
    unit, store = made(CheckedOnly)
    store.hold = lambda offset: not store.done
    with beside(lambda: unit.door(OLD_NEXUS).write(DISK, memoryview(b"old"))):
        assert store.begun.wait(DEADLINE_S)
        fence(unit)
        store.done.append(("answered",))
        store.hold = lambda offset: False
        if fence is claim:
            unit.door(NEW_NEXUS).write(DISK, memoryview(b"new"))
        store.go.set()
    assert store.done[-1] == ("write", DISK, 3)
    assert store.content[DISK : DISK + 3] == b"old"


def test_a_claim_asked_again_waits_as_the_first_one_does() -> None:
    """Its first answer was lost, but not the write that it waited for."""
    unit, store = made()
    store.hold = lambda offset: True
    with beside(lambda: unit.door(OLD_NEXUS).write(DISK, memoryview(b"old"))):
        assert store.begun.wait(DEADLINE_S)
        with beside(lambda: claim(unit)) as first:
            wait_for_state(unit, lambda now: now.leases["disk"].epoch == 6)
            with beside(lambda: claim(unit)) as second:
                assert not first.is_set()
                assert not second.wait(0.05)
                store.go.set()
    assert [what for what, *_ in store.done] == ["kept", "write"], "the second one has changed nothing"


def test_a_claim_does_not_wait_for_the_writes_of_other_disks() -> None:
    unit, store = made()
    store.hold = lambda offset: True
    with beside(lambda: unit.door(Nexus(OLD, "other", 5)).write(OTHER, memoryview(b"x"))) as written:
        assert store.begun.wait(DEADLINE_S)
        claim(unit)
        assert not written.is_set()
        store.go.set()


def test_other_disks_go_on_while_a_claim_waits() -> None:
    unit, store = made()
    store.hold = lambda offset: offset == DISK
    with beside(lambda: unit.door(OLD_NEXUS).write(DISK, memoryview(b"old"))):
        assert store.begun.wait(DEADLINE_S)
        with beside(lambda: claim(unit)) as answered:
            wait_for_state(unit, lambda now: now.leases["disk"].epoch == 6)
            unit.door(Nexus(OLD, "other", 5)).write(OTHER, memoryview(b"x"))
            assert not answered.is_set()
            store.go.set()


@pytest.mark.parametrize("what", ["write", "trim", "write_zeroes"])
def test_every_command_that_writes_is_fenced(what: str) -> None:
    unit, store = made()
    door = unit.door(NEW_NEXUS)
    act = {
        "write": lambda: door.write(DISK, memoryview(b"x")),
        "trim": lambda: door.trim(DISK, 1),
        "write_zeroes": lambda: door.write_zeroes(DISK, 1, False),
    }[what]
    with pytest.raises(NbdRefused) as refused:
        act()
    assert (refused.value.name, store.done) == ("EPERM", [])
    claim(unit)
    act()
    assert store.done[0] == ("kept",)
    assert store.done[1][1:] == (DISK, 1)


def test_long_zeroes_are_checked_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "PIECE_BYTES", 1024)
    unit, store = made()
    store.hold = lambda offset: offset == DISK + 1024
    refused: list[NbdRefused] = []

    def zero() -> None:
        try:
            unit.door(OLD_NEXUS).write_zeroes(DISK, 4096, False)
        except NbdRefused as error:
            refused.append(error)

    with beside(zero):
        assert store.begun.wait(DEADLINE_S)
        with beside(lambda: claim(unit)):
            wait_for_state(unit, lambda now: now.leases["disk"].epoch == 6)
            store.go.set()
    assert refused[0].name == "EPERM"
    assert store.done == [("zeroes", DISK, 1024), ("kept",), ("zeroes", DISK + 1024, 1024)]


def test_an_exclusive_reservation_fences_reading_too() -> None:
    unit, _ = made()
    unit.change(lambda before: before.release(OLD).reserve(NEW, ReservationType.EXCLUSIVE))
    unit.door(Nexus(NEW)).read_into(0, memoryview(bytearray(1)))
    with pytest.raises(NbdRefused, match="EPERM"):
        unit.door(Nexus(OLD)).read_into(0, memoryview(bytearray(1)))


def test_a_flush_on_one_connection_covers_the_writes_of_all() -> None:
    """Which is what NBD_FLAG_CAN_MULTI_CONN promises."""
    unit, store = made()
    unit.door(OLD_NEXUS).write(DISK, memoryview(b"x"))
    other = unit.door(Nexus())
    assert TransmissionFlags.NBD_FLAG_CAN_MULTI_CONN in other.flags
    other.flush()
    assert store.done == [("write", DISK, 1), ("sync",)]


def test_a_state_that_cannot_be_kept_does_not_hold() -> None:
    def full(changed: LunState) -> None:
        raise OSError(28, "No space left on device")

    unit = Lun(FakeStore(SIZE), state(), full)
    request = {"do": "claim", "lun": "csv", "key": NEW, "lease": "disk", "expect": 5}
    told = answer({"csv": unit}, request)
    assert told["kind"] == "Full"
    assert unit.state == state()
    unit.door(OLD_NEXUS).write(DISK, memoryview(b"x"))


@pytest.mark.parametrize("abort", [True, False])
def test_preempt_with_abort_cuts_the_victims_connections(abort: bool) -> None:
    unit, _ = made()
    cut: list[str] = []
    with unit.door(OLD_NEXUS).attached(lambda: cut.append("old")):
        with unit.door(NEW_NEXUS).attached(lambda: cut.append("new")):
            request = {"do": "preempt", "lun": "csv", "key": NEW, "victim": OLD, "abort": abort}
            assert answer({"csv": unit}, request) == {"ok": {}}
    assert cut == (["old"] if abort else [])
    unit.cut(OLD)
    assert len(cut) <= 1, "a connection that has ended is not cut again"


# ---- turns


@contextmanager
def opened(unit: Lun, nexus: Nexus) -> Iterator[Door]:
    """A connection that nothing but its own end ends."""
    door = unit.door(nexus)
    with door.attached(lambda: None):
        yield door


def test_a_turn_is_opened_when_no_older_write_can_land() -> None:
    """Its client has given the older one up, and makes the same write and newer ones again."""
    unit, store = made()
    store.hold = lambda offset: not store.go.is_set()
    cut = threading.Event()
    first = unit.door(FIRST)
    with first.attached(cut.set), beside(lambda: first.write(DISK, memoryview(b"old"))):
        assert store.begun.wait(DEADLINE_S)

        def reconnect() -> None:
            with opened(unit, SECOND) as second:
                store.done.append(("opened",))
                second.write(DISK, memoryview(b"new"))

        with beside(reconnect) as answered:
            assert cut.wait(DEADLINE_S)
            assert not answered.wait(0.05)
            store.go.set()
    assert store.done == [("write", DISK, 3), ("opened",), ("write", DISK, 3)]
    assert store.content[DISK : DISK + 3] == b"new"


def test_a_write_in_the_receive_buffer_does_not_land_either() -> None:
    """It lies there behind the one under way, and the connection has been told to end but goes on."""
    unit, store = made()
    store.hold = lambda offset: not store.go.is_set()
    admitted = threading.Event()
    first = unit.door(FIRST)
    ours, theirs = socket.socketpair()
    with ours, theirs, first.attached(admitted.set), beside(lambda: server.serve(theirs, first)):
        stream.set_deadline(ours, DEADLINE_S)
        under_way, behind = (Request(nbd.NBD_CMD_WRITE, DISK, 3, cookie=cookie) for cookie in (1, 2))
        for request in (under_way, behind):
            stream.send(ours, nbd.encode_request(request), b"old")
        assert store.begun.wait(DEADLINE_S)
        with beside(lambda: reconnect_and_write(unit)):
            assert admitted.wait(DEADLINE_S)
            store.go.set()
        nbd.parse_simple_reply(stream.receive(ours, nbd.SIMPLE_REPLY.size), under_way)
        with pytest.raises(NbdRefused, match="EPERM"):
            nbd.parse_simple_reply(stream.receive(ours, nbd.SIMPLE_REPLY.size), behind)
        stream.send(ours, nbd.encode_request(Request(nbd.NBD_CMD_DISC)))
    assert store.content[DISK : DISK + 3] == b"new"


def reconnect_and_write(unit: Lun) -> None:
    with opened(unit, SECOND) as second:
        second.write(DISK, memoryview(b"new"))


def test_without_a_session_an_older_write_lands_after_newer_ones() -> None:
    """The negative control of the test above."""
    unit, store = made()
    store.hold = lambda offset: not store.done
    with opened(unit, OLD_NEXUS) as first, beside(lambda: first.write(DISK, memoryview(b"old"))):
        assert store.begun.wait(DEADLINE_S)
        store.done.append(("held",))
        with opened(unit, OLD_NEXUS) as second:
            second.write(DISK, memoryview(b"new"))
        store.go.set()
    assert store.content[DISK : DISK + 3] == b"old"


@pytest.mark.parametrize("what", ["write", "trim", "write_zeroes"])
def test_a_turn_that_is_over_writes_nothing(what: str) -> None:
    """Not even when the one that has ended it is gone."""
    unit, store = made()
    with opened(unit, FIRST) as first:
        act = {
            "write": lambda: first.write(DISK, memoryview(b"x")),
            "trim": lambda: first.trim(DISK, 1),
            "write_zeroes": lambda: first.write_zeroes(DISK, 1, False),
        }[what]
        act()
        with opened(unit, SECOND):
            pass
        with pytest.raises(NbdRefused) as refused:
            act()
        with pytest.raises(TurnOver, match="turn 1 of session 5555555555555555 is over: it is at 2"):
            with opened(unit, FIRST):
                pass
    assert refused.value.name == "EPERM"
    assert len(store.done) == 1


def test_a_turn_ends_those_of_its_own_session_alone() -> None:
    unit, store = made()
    others = (OLD_NEXUS, FIRST, Nexus(OLD, "disk", 5, "6" * 16, 1), Nexus(NEW, None, None, "5" * 16, 1))
    doors = {nexus: unit.door(nexus) for nexus in others}
    cut: list[Nexus] = []
    with ExitStack() as stack:
        for nexus, door in doors.items():
            stack.enter_context(door.attached(lambda nexus=nexus: cut.append(nexus)))
        stack.enter_context(opened(unit, SECOND)).write(DISK, memoryview(b"x"))
        assert cut == [FIRST]
        doors[OLD_NEXUS].write(DISK, memoryview(b"x"))
        doors[others[2]].write(DISK, memoryview(b"x"))
        doors[others[3]].write(0, memoryview(b"x"))
    assert len(store.done) == 4


def test_a_turn_does_not_wait_for_the_writes_of_others() -> None:
    unit, store = made()
    store.hold = lambda offset: True
    with beside(lambda: unit.door(OLD_NEXUS).write(DISK, memoryview(b"old"))) as written:
        assert store.begun.wait(DEADLINE_S)
        with opened(unit, FIRST), opened(unit, SECOND):
            assert not written.is_set()
        store.go.set()


def test_a_turn_that_waits_is_ended_by_the_next_one() -> None:
    """Behind a slow disk a client tries again and again: each of its tries ends when the next one comes."""
    unit, store = made()
    store.hold = lambda offset: True
    admitted = threading.Event()

    def second() -> None:
        with pytest.raises(TurnOver), opened(unit, SECOND):
            pass

    def third() -> None:
        with opened(unit, THIRD):
            store.done.append(("opened",))

    with ExitStack() as stack:
        first = unit.door(FIRST)
        stack.enter_context(first.attached(admitted.set))
        stack.enter_context(beside(lambda: first.write(DISK, memoryview(b"old"))))
        assert store.begun.wait(DEADLINE_S)
        waiting = stack.enter_context(beside(second))
        assert admitted.wait(DEADLINE_S), "the second one has not been admitted"
        last = stack.enter_context(beside(third))
        assert waiting.wait(DEADLINE_S)
        assert not last.is_set()
        store.go.set()
    assert store.done == [("write", DISK, 3), ("opened",)]


def test_the_service_names_what_there_is() -> None:
    units = {"csv": made()[0]}
    assert answer(units, {"do": "luns"}) == {"ok": {"csv": {"bytes": SIZE}}}
    told = answer(units, {"do": "status", "lun": "cvs"})
    assert (told["kind"], told["error"]) == ("NoSuchLun", "there is no LUN 'cvs'; there are: csv")
    status = answer(units, {"do": "status", "lun": "csv"})["ok"]
    assert status["reservation"] == {"type": "shared", "holder": OLD}
    assert status["leases"]["disk"] == {"holder": OLD, "epoch": 5, "ranges": [[DISK, 4096]]}
