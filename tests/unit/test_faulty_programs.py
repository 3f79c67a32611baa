"""Programs that do wrong on purpose: their own count is what a reader of their answers finds, byte for byte,
through a migration too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.clients.account import Account
from testbed.clients.codecs import EchoCodec, HttpCodec, resp
from testbed.clients.integrity import StreamChecker
from testbed.guest.memory import Memory
from testbed.guest.programs.faulty import (
    ALTERATION,
    DOUBLING,
    EVERY,
    EVERY_WRITE,
    LOSS,
    MIDST,
    FaultyBulk,
    FaultyEcho,
    FaultyHttp,
    FaultyRamp,
    FaultyStore,
    Spoiler,
)
from testbed.guest.rehearsal import Rehearsal
from testbed.measure.datagram import HEADER_BYTES, MARKER, build, parse
from testbed.measure.pattern import pattern

FAULTS = (LOSS, DOUBLING, ALTERATION)


def found(checker: StreamChecker) -> dict[str, int]:
    wrong = checker.integrity
    return {"lost": wrong.lost, "doubled": wrong.duplicated, "altered": wrong.corrupted}


@given(st.integers(0, 70_000), st.integers(3 * MIDST, 500), st.lists(st.sampled_from(FAULTS), min_size=1))
def test_each_fault_is_found_as_what_it_is(offset: int, size: int, faults: list[int]) -> None:
    spoiler = Spoiler(memoryview(bytearray(32)).cast("Q"), 1)
    checker = StreamChecker(offset)
    for number, fault in enumerate(faults):
        piece = pattern(offset + number * size, size)
        spoiled = spoiler.spoil(piece, fault)
        assert spoiled != piece
        checker.feed(spoiled, offset + (number + 1) * size)
    checker.finish(offset + len(faults) * size)
    assert found(checker) == spoiler.stats()
    assert sum(spoiler.stats().values()) > 0


def test_faults_take_turns_and_most_pieces_are_left_alone() -> None:
    spoiler = Spoiler(memoryview(bytearray(32)).cast("Q"), EVERY)
    due = [spoiler.due() for _ in range(6 * EVERY)]
    assert [fault for fault in due if fault is not None] == [DOUBLING, ALTERATION, LOSS] * 2
    assert due.count(None) == 6 * (EVERY - 1)


@pytest.mark.parametrize("migrates", [False, True])
def test_an_echo_counts_what_its_client_finds(migrates: bool) -> None:
    stage, codec = Rehearsal(FaultyEcho), EchoCodec(64)
    peer = stage.connect()
    for number in range(6 * EVERY):
        peer.send(codec.request())
        assert codec.received(peer.received())
        if migrates and number == 3 * EVERY:
            stage.migrate("elsewhere")
    wrong = codec.integrity
    told = stage.service.program.stats()
    seen = {"lost": wrong.lost, "doubled": wrong.duplicated, "altered": wrong.corrupted}
    assert seen == {name: told[name] for name in seen}
    assert all(seen.values())


def test_a_ramp_counts_what_its_client_finds() -> None:
    stage, checker = Rehearsal(FaultyRamp), StreamChecker()
    peer = stage.connect()
    for _ in range(3):
        checker.feed(peer.received())
    peer.end()
    while data := peer.received():
        checker.feed(data)
    checker.finish()
    told = stage.service.program.stats()
    assert found(checker) == {name: told[name] for name in ("lost", "doubled", "altered")}
    assert all(found(checker).values())


def test_a_download_counts_what_its_client_finds() -> None:
    stage, checker = Rehearsal(FaultyBulk), StreamChecker()
    peer = stage.connect(window_bytes=1 << 16)
    peer.send(b"D")
    for _ in range(60):
        checker.feed(peer.received())
    peer.end()
    while data := peer.received():
        checker.feed(data)
    checker.finish()
    told = stage.service.program.stats()
    assert found(checker) == {name: told[name] for name in ("lost", "doubled", "altered")}
    assert all(found(checker).values())


def test_an_upload_is_told_of_what_was_altered() -> None:
    stage = Rehearsal(FaultyBulk)
    peer = stage.connect()
    peer.send(b"U")
    sent, answer = 0, b""
    for _ in range(3 * EVERY):
        peer.send(pattern(sent, 100))
        sent += 100
        answer += peer.received()
    told = stage.service.program.stats()
    assert (told["altered"], told["lost"], told["doubled"]) == (3 * 3, 0, 0)
    assert answer[-16:] == sent.to_bytes(8, "little") + told["altered"].to_bytes(8, "little")


@pytest.mark.parametrize("size", [HEADER_BYTES, 64])
def test_datagrams_are_lost_doubled_and_altered_as_it_counts(size: int) -> None:
    memory = Memory(memoryview(bytearray(1 << 20)))
    program, answers = FaultyEcho(memory), []
    program.attach()
    program.send_datagram = lambda data, _to: answers.append(parse(bytes(data)))  # type: ignore[method-assign]
    sender = ("10.7.0.101", 40000)
    for number in range(6 * EVERY):
        program.datagram(build(0, number, 1, size), sender)
    program.datagram(build(0, MARKER, 1, size), sender)
    assert answers[-1] is not None
    assert answers[-1].number == MARKER
    told, numbers = program.stats(), [one.number for one in answers[:-1] if one is not None]
    lost = 6 * EVERY - len(set(numbers))
    doubled = len(numbers) - len(set(numbers))
    altered = sum(not one.whole for one in answers[:-1] if one is not None)
    assert (lost, doubled, altered) == (
        told["datagrams_lost"], told["datagrams_doubled"], told["datagrams_altered"],
    )  # fmt: skip
    assert (lost, doubled, altered) == ((2, 2, 2) if size > HEADER_BYTES else (0, 0, 0))


def test_a_web_server_counts_what_it_forgot() -> None:
    stage, codec = Rehearsal(FaultyHttp), HttpCodec("x")
    peer = stage.connect()
    for _ in range(3 * EVERY):
        peer.send(codec.request())
        assert codec.received(peer.received())
    assert codec.integrity.corrupted == stage.service.program.stats()["altered"] > 0


def test_a_store_forgets_and_garbles_what_it_acknowledged() -> None:
    stage, account = Rehearsal(FaultyStore), Account("key", 1000, 64)
    peer = stage.connect()
    for _ in range(10 * EVERY_WRITE):
        peer.send(resp(b"SET", *account.write()))
        assert peer.received() == b"+OK\r\n"
        account.told()
    for entry in account.entries:
        peer.send(resp(b"GET", entry.key))
        reply = peer.received()
        account.check(entry, None if reply == b"$-1\r\n" else reply.partition(b"\r\n")[2][:-2])
    told = stage.service.program.stats()
    assert (account.writes_lost, account.writes_phantom) == (told["forgotten"], told["garbled"])
    assert told["forgotten"] == told["garbled"] == 5
